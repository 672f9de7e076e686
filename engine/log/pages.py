"""Reading much of a stream, a page at a time: all of it together may be larger than memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from dspex.bus.message import Message
from dspex.bus.port import Bus


async def pages(bus: Bus, stream: str, filters: Sequence[str], *, start: int = 1) -> AsyncIterator[list[Message]]:
    """The messages that are stored now, oldest first, page by page; none where there is no such stream. Raises BusError.

    `start`: the first sequence that is looked at.
    """
    info = await bus.stream(stream)
    start, stop = (max(start, info.first), info.last) if info is not None else (1, 0)
    while start <= stop and (page := await bus.page(stream, filters, start=start, stop=stop)):
        yield page
        start = page[-1].sequence + 1
