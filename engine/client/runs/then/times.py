"""What a partition kept at several times, with its log read once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import suppress
from typing import Final

from dspex.bus.errors import RecordingIncomplete
from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.engine.log.entries import LogAddress
from dspex.engine.log.latest import as_of
from dspex.engine.log.reading import Chain
from dspex.engine.log.tables import Tables

_PIECE: Final = 8192  # sequences that are looked through at a time


async def look_at_times(
    bus: Bus, app: str, topology: str, stage: str, partition: int, names: Mapping[str, str], at: Collection[int]
) -> AsyncIterator[tuple[int, Tables | None]]:
    """The tables of a partition as of its last entries up to several sequences, in their order, with its log read once. Those
    of one time become those of the next. None where what was then is not kept any more.
    """
    address, done, found = LogAddress.of(app, topology, stage, partition), 0, None
    for stop in sorted({*at}):
        if found is not None:
            await _on_to(bus, address, *found, done, stop)
        else:
            with suppress(RecordingIncomplete):
                found = await as_of(bus, address, stop, names)
        done = stop
        yield stop, found[0] if found is not None else None


async def _on_to(bus: Bus, address: LogAddress, tables: Tables, chain: Chain, after: int, stop: int) -> None:
    """Bring tables, which are as of the last entry up to a sequence, to the last one up to a later one."""
    pieces, filters = dict[int, Message](), [address.subject, address.pieces]
    for start in range(after + 1, stop + 1, _PIECE):
        for message in await bus.scan(address.stream, filters, start=start, stop=min(stop, start + _PIECE - 1)):
            if message.subject == address.pieces:
                pieces[message.sequence] = message
            elif (changed := await chain.step(message, pieces)) is not None:
                pieces.clear()
                tables.apply(changed, message.sequence)
