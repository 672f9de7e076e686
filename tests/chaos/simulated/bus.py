"""The connection of a simulated process: it can be frozen, die in a commit, hear late, and be told a wrong time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, TypeVar

from dspex.bus.errors import BusError, Unreachable
from dspex.bus.memory.connection import MemoryBus
from dspex.bus.memory.handles import MemoryReader
from dspex.bus.memory.server import MemoryServer
from dspex.bus.message import Message
from dspex.bus.port import BusEvents, NewMessage, StreamInfo

T = TypeVar("T")


class Bus(MemoryBus):
    """A connection of a process. While it is frozen, nothing that the process does reaches the server, nor comes back.

    `deadly`: how likely a commit is the last thing that the process does; half of these land first. `slow`: seconds until the
    answer to a commit comes, at most; what follows from it may be there before. `forgets`: how likely the process is cut off
    before it removes a message. `few`: gives how many messages a reader may give at once now, so that what was stored together
    is not heard together; 0 for as many as there are. `skew`: seconds that the time which it is told is ahead of the server's.
    """

    def __init__(
        self,
        server: MemoryServer,
        random: Random,
        *,
        deadly: float = 0.0,
        slow: float = 0.0,
        forgets: float = 0.0,
        few: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__(server, BusEvents())
        self.random, self.deadly, self.slow, self.forgets = random, deadly, slow, forgets
        self.few, self.skew = few, 0.0
        self.thawed, self.dead = asyncio.Event(), asyncio.Event()
        self.thawed.set()

    async def trip(self) -> None:
        await self.thawed.wait()
        await super().trip()
        await self.thawed.wait()

    async def stream(self, name: str) -> StreamInfo | None:
        info = await super().stream(name)
        return replace(info, now=info.now + self.skew) if info is not None else None

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        fate = self.random.random()
        if fate < self.deadly / 2:
            await self._die()
        sequence = await super().commit(drafts, timeout=timeout)
        if fate < self.deadly:
            await self._die()
        if self.slow:
            await asyncio.sleep(self.random.uniform(0, self.slow))
            await self.thawed.wait()
        return sequence

    async def reader(self, stream: str, filters: Sequence[str], **options: Any) -> Any:
        found = await super().reader(stream, filters, **options)
        return Sips(found, self) if self.few() else found

    async def delete(self, stream: str, sequence: int, *, erase: bool = False) -> None:
        if self.forgets and self.random.random() < self.forgets:
            raise Unreachable("the process was cut off (a fault of the test)")
        await super().delete(stream, sequence, erase=erase)

    async def _die(self) -> None:
        self.thawed.clear()
        self.dead.set()
        await asyncio.Event().wait()


class Sips:
    """A reader that gives a few messages at a time."""

    def __init__(self, reader: MemoryReader, bus: Bus) -> None:
        self._reader, self._bus = reader, bus

    async def read(self, limit: int) -> list[Message]:
        few = self._bus.few()
        return await self._reader.read(min(limit, self._bus.random.randint(1, few)) if few else limit)

    async def close(self) -> None:
        await self._reader.close()


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Do it until the bus lets it pass, as a publisher does with one id."""
    while True:
        try:
            return await call()
        except BusError as e:
            if not e.retryable:
                raise
        await asyncio.sleep(0.1)
