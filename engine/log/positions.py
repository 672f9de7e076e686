"""Where to begin in a stream: behind which sequence an application starts to read, what was stored before a time, what is
still needed; pages, and what was read of many logs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import NamedTuple

from dspex.bus.message import Message
from dspex.bus.port import PAGE_BYTES, PAGE_MESSAGES, Bus, StreamInfo
from dspex.engine.graph.nodes import Source
from dspex.engine.log.entries import LogAddress
from dspex.engine.log.rows import NONE, Place
from dspex.engine.log.tables import Change, Tables

NEAR = 64  # messages before the end of a stream, among which a time is looked for first


async def first_position(bus: Bus, stream: str, source: Source) -> int:
    """The sequence behind which a stage starts when its topology is applied for the first time."""
    if source.start == "all":
        return 0
    if isinstance(source.start, int):
        return max(0, source.start - 1)
    info = await bus.stream(stream)
    if info is None:  # all that will be in it is new
        return 0
    return info.last if source.start == "new" else await sequence_before(bus, info, source.start)


async def sequence_before(bus: Bus, info: StreamInfo, at: float, *, within: int = 0) -> int:
    """The last sequence stored before `at` (seconds since the epoch), found by halving; or one that is lower by as much as
    `within`, which takes fewer questions.

    It looks near the end first: who waits for what was just published need not look through the whole stream.
    """
    low, high, step = max(1, info.first), info.last + 1, NEAR
    while high - low > within:
        middle = max((low + high) // 2, high - step)
        message = await bus.next(info.name, ">", middle)  # what was removed in between is passed over
        if message is not None and message.sequence < high and message.time < at:
            low, step = message.sequence + 1, high
        else:
            high, step = middle, step * 8
    return low - 1


async def pages(bus: Bus, stream: str, filters: Sequence[str], *, start: int = 1) -> AsyncIterator[list[Message]]:
    """The messages that are stored now, oldest first; none where there is no such stream. Raises BusError.

    A page at a time: all of it together may be larger than memory.
    `start`: the first sequence that is looked at.
    """
    info = await bus.stream(stream)
    start, stop = (max(start, info.first), info.last) if info is not None else (1, 0)
    while start <= stop and (page := await bus.page(stream, filters, start=start, stop=stop)):
        yield page
        if _is_last(bus, page):
            return
        start = page[-1].sequence + 1


def _is_last(bus: Bus, page: Sequence[Message]) -> bool:
    """Whether there was room for more, whatever that is, so that nothing is left: to ask costs a consumer."""
    size = sum(len(message.data) for message in page)
    return len(page) < PAGE_MESSAGES and 2 * size < PAGE_BYTES and 2 * bus.max_payload < PAGE_BYTES


def needed(tables: Tables) -> dict[str, int]:
    """The first sequence of each input, and of the requests ("work"), that a recovery from here may still read."""
    first = {name: position.after + 1 for name, position in tables.positions.rows.items()}
    places = [timer.place for timer in tables.timers.rows.values() if timer.place is not None]
    places += [Place("records", row.held) for row in tables.calls.rows.values() if row.held]
    for place in places:
        first[place.input] = min(place.sequence, first.get(place.input, NONE))
    first["work"] = min((row.work for row in tables.calls.rows.values()), default=NONE)
    return first


def held_by(tables: Tables, nodes: Collection[str], stage: str) -> list[Change]:
    """The changes that drop what these nodes hold: calls, timers, and state; with `stage` all there is."""
    calls = [number for number, row in sorted(tables.calls.rows.items()) if stage in nodes or row.node in nodes]
    kept = sorted(tables.timers.rows.items())
    timers = [number for number, row in kept if stage in nodes or row.node in nodes or number in calls]
    keyed = [key for key in sorted(tables.keyed.rows) if stage in nodes or key[0] in nodes]
    found: list[Change] = [("calls", number, None) for number in calls]
    return [*found, *(("timers", number, None) for number in timers), *(("keyed", key, None) for key in keyed)]


def unwanted(stage: str, calls: Collection[str], resets: Mapping[str, int], tables: Tables) -> set[int]:
    """Open calls that nobody is to be asked for any more: their operator was dropped, or what it holds is about to be.

    `calls`: operators of the stage that have any. `resets`: node → the version of the manifest that drops what it holds.
    """
    gone = {number for number, row in tables.calls.rows.items() if row.node not in calls}
    nodes = [node for node, at in resets.items() if at > tables.position("manifest").sequence]
    return gone | {int(key) for table, key, _ in held_by(tables, nodes, f"@{stage}") if table == "calls"}


class Entries(NamedTuple):
    """What was read of many logs from a sequence on, by subject: all that was stored then."""

    begin: int
    of: Mapping[str, Sequence[Message]]

    def between(self, address: LogAddress, start: int, stop: int) -> list[Message] | None:
        """The messages of a log, with pieces, up to the one at `stop`; None where that was not read, or not from `start` on."""
        own = self.of.get(address.subject, ())
        if start < self.begin or all(m.sequence != stop for m in own):
            return None
        found = [m for m in (*own, *self.of.get(address.pieces, ())) if start <= m.sequence <= stop]
        return sorted(found, key=lambda m: m.sequence)
