"""Messages and runs, the latest first."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Sequence
from typing import Final

from dspex.bus.message import Message, id_time
from dspex.bus.port import Bus, StreamInfo

_FEW, _MANY = 256, 8192  # sequences of a stream that are looked through at a time, from the end
_GRAIN: Final = 0.0011  # seconds: ids tell milliseconds


async def backwards(
    bus: Bus, info: StreamInfo, subject: str, *, since: float = 0.0, first: int = 0, last: int | None = None
) -> AsyncIterator[Message]:
    """The messages of a subject, the latest first, as far as they are asked for. `first`, `last`: only of these sequences."""
    high, size, first = info.last if last is None else last, _FEW, max(first, info.first)
    while high >= first:
        low = max(first, high - size + 1)
        found: list[Message] = await bus.scan(info.name, [subject], start=low, stop=high)
        for message in reversed(found):
            if message.time < since:
                return
            yield message
        high, size = low - 1, min(2 * size, _MANY)


async def by_begin(ways: Sequence[AsyncIterator[tuple[float, str]]], since: float) -> AsyncIterator[str]:
    """Runs in the order in which they began, the latest first, each once. `ways`: times that go back, and at each a run that
    began then or earlier.
    """
    heads: list[tuple[float, int, str]] = []  # the latest of each way that is left, by its negative time; and of no way, runs
    seen = set[str]()
    for index, head in enumerate(await asyncio.gather(*(anext(way, None) for way in ways))):
        if head is not None:
            heapq.heappush(heads, (-head[0], index, head[1]))
    while heads:
        at, index, run = heapq.heappop(heads)
        began = -began.timestamp() if (began := id_time(run)) is not None else at
        if began > at + _GRAIN:  # an event of a run that began before it
            if run not in seen and -began >= since:
                heapq.heappush(heads, (began, len(ways), run))
        elif run not in seen:
            seen.add(run)
            yield run
        if index < len(ways) and (head := await anext(ways[index], None)) is not None:
            heapq.heappush(heads, (-head[0], index, head[1]))
