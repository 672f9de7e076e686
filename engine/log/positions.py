"""Where to begin in a stream: behind which sequence an application starts to read, what was stored before a time; and pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from dspex.bus.message import Message
from dspex.bus.port import Bus, StreamInfo
from dspex.engine.graph.nodes import Source


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


async def sequence_before(bus: Bus, info: StreamInfo, at: float) -> int:
    """The last sequence stored before `at` (seconds since the epoch), found by halving."""
    low, high = max(1, info.first), info.last + 1
    while low < high:
        middle = (low + high) // 2
        message = await bus.next(info.name, ">", middle)  # what was removed in between is passed over
        if message is not None and message.sequence < high and message.time < at:
            low = message.sequence + 1
        else:
            high = middle
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
        start = page[-1].sequence + 1
