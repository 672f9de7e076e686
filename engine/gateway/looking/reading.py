"""What the gateway reads once for all who look: at the same time, and until there is something else to be read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from dspex.bus import subjects
from dspex.engine.client.client import Client
from dspex.engine.client.runs import kept

T = TypeVar("T")

_SECOND, _MOST, _SHARE = 1.0, 5.0, 4.0
"""How long what was read stands: a second, and four times as long as it took, but five seconds at most."""


class ReadOnWrite(Generic[T]):
    """What follows from logs alone: it is read again only where anything was written since.

    Attributes:
        last: what was read last; None: it never was.
    """

    def __init__(self, read: Callable[[Client], Awaitable[T]]) -> None:
        self._read, self._turn = read, asyncio.Lock()  # who asks at the same time reads nothing twice
        self._at: Sequence[object] = ()  # what was written when it was read
        self.last: T | None = None

    async def now(self, client: Client) -> T:
        """What it is now. Raises as reading does."""
        async with self._turn:
            at = await _written(client)
            if self.last is None or at != self._at:
                self.last, self._at = await self._read(client), at
            return self.last


class ReadAtPace(Generic[T]):
    """What changes with time: it is read once a second at most, and where that takes long for a fifth of the time."""

    def __init__(self, read: Callable[[Client], Awaitable[T]]) -> None:
        self._read, self._turn = read, asyncio.Lock()
        self._last: T | None = None
        self._until = 0.0

    async def now(self, client: Client) -> T:
        """What it is, or was a moment ago. Raises as reading does."""
        clock = asyncio.get_running_loop().time
        async with self._turn:
            began = clock()
            if self._last is None or began >= self._until:
                self._last = await self._read(client)
                self._until = clock() + min(_MOST, max(_SECOND, _SHARE * (clock() - began)))
            return self._last


async def _written(client: Client) -> Sequence[object]:
    """How far the application's stream and those of its sources are, what is applied, and what is kept beside: no run changes
    without them.
    """
    applied = await client.manifests()
    streams = {stream for one in applied.values() for stream in one.streams.values()}
    infos = await asyncio.gather(*map(client.bus.stream, sorted({subjects.stream(client.app), *streams})))
    ends = [(info.first, info.last) for info in infos if info is not None]
    versions = sorted((name, one.version) for name, one in applied.items())
    return [*ends, *versions, await kept.revision(client.bus, client.app)]
