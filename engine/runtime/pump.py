"""The pump: it reads one input and lets the partitions of this process take what arrives. It is the same for every input.

Pumps take turns on one thread, and an arrival is never interrupted, so a partition needs no lock.

A partition in which too much is open takes no gated arrivals. So that the others need not wait for it, it leaves the shared
reader and catches up with one of its own, until it has taken all that the shared reader passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog

from dspex.bus.message import Message
from dspex.bus.tasks import Tasks, first
from dspex.engine.runtime.inputs.input import Input
from dspex.engine.runtime.partition import Partition

_log = structlog.get_logger("dspex.engine")
CHUNK = 256  # messages taken before the loop gets a turn: about 4 ms


class Pump:
    """Feeds partitions from one input.

    Args:
        partitions: those that this process owns now, by index. The owner changes it while the pump stands still.
        request_commit: called when a partition has something to commit.
        clock: seconds since the epoch.
        readers: bounds how many partitions of this process catch up at a time.

    Attributes:
        at: up to this sequence everything was taken, or passed over for a partition that catches up; None before it reads.
        at_time: when the message there was stored; 0 where none was read yet.
    """

    def __init__(
        self,
        input: Input,
        partitions: Mapping[int, Partition],
        request_commit: Callable[[Partition], None],
        clock: Callable[[], float],
        readers: asyncio.Semaphore,
        name: str,
    ) -> None:
        self.input, self._partitions, self._clock, self._readers, self._name = input, partitions, clock, readers, name
        self.request_commit = request_commit
        self.at: int | None = None
        self.at_time = 0.0
        self._passed: dict[int, int] = {}  # partition that catches up → last sequence that the shared reader passed over
        self._joined = asyncio.Event()

    def catches_up(self, p: Partition) -> bool:
        """Whether a partition has a reader of its own now."""
        return p.index in self._passed

    def reached(self, p: Partition) -> int:
        """Up to this sequence a partition has taken what is its own."""
        taken = p.tables.position(self.input.name).sequence
        return taken if self.at is None or self.catches_up(p) else max(taken, self.at)

    async def run(self) -> None:
        """Read until cancelled."""
        mine = list(self._partitions.values())
        if not mine:
            return
        input = self.input
        self.at = None  # nothing was read yet for the partitions that are here now
        self._passed.clear()  # whoever caught up when it stood still reads with the others again
        await input.verify(mine, self._clock())
        # of the partitions as they were: one may have been fenced while the log was looked at
        self.at = after = min(p.tables.position(input.name).after for p in mine)
        self.at_time = 0.0
        lanes = Tasks(self._name)
        try:
            await first(self._shared(mine, after, lanes), lanes.wait())
        finally:
            await lanes.stop()

    async def _shared(self, mine: Sequence[Partition], after: int, lanes: Tasks) -> None:
        reader = await self.input.open(mine, after, self._name)
        try:
            while True:
                for message in await reader.read(CHUNK):
                    await self._pass(message, lanes)
                self._request_commits()
        finally:
            await reader.close()

    async def _pass(self, message: Message, lanes: Tasks) -> None:
        """Let the partition that a message is for take it, or leave it to its own reader."""
        p = self._partitions.get(self.input.owner(message))
        if p is not None:
            if p.index in self._passed:
                self._passed[p.index] = message.sequence
            elif self.input.gated and p.full and len(self._passed) + 1 < len(self._partitions):
                self._passed[p.index] = message.sequence
                lanes.start(self._catch_up(p), f"partition {p.index}")
            else:
                await self._take(p, message)
        self.at, self.at_time = message.sequence, message.time
        while self._passed and len(self._passed) == len(self._partitions):
            self._joined.clear()  # nobody is left to read for
            await self._joined.wait()

    async def _catch_up(self, p: Partition) -> None:
        """Read for one partition until it has taken all that the shared reader passed over."""
        while p.full:
            await self._room(p)
        async with self._readers:
            after = p.tables.position(self.input.name).after
            reader = await self.input.open([p], after, f"{self._name}-{p.index}")
            try:
                while p.index in self._passed:
                    for message in await reader.read(CHUNK):
                        if self.input.owner(message) == p.index:
                            await self._take(p, message)
                            if message.sequence >= self._passed[p.index]:
                                del self._passed[p.index]  # nothing is awaited in between: the shared reader goes on behind it
                                self._joined.set()
                                break
                    self.request_commit(p)
            finally:
                await reader.close()

    async def _take(self, p: Partition, message: Message) -> None:
        """Let a partition take what arrives with a message, as soon as there is room for it."""
        if message.sequence <= p.tables.position(self.input.name).after:
            return
        fetched = await self.input.fetched(p, message)
        arrivals = self.input.arrivals(p, message, fetched, self._clock())
        while True:
            while p.crowded:
                await self._room(p)
            if (arrival := next(arrivals, None)) is None:  # asked for when there is room: it depends on the tables
                return
            while arrival.gated and (p.crowded or p.full):
                await self._room(p)
                arrival = arrival._replace(number=p.tables.number)  # another pump may have used it meanwhile
            p.take_in(arrival)

    async def _room(self, p: Partition) -> None:
        """Backpressure: a commit must make room, or calls must finish, before this partition takes more."""
        p.room.clear()
        self.request_commit(p)
        await p.room.wait()

    def _request_commits(self) -> None:
        for p in self._partitions.values():
            if not p.settled.is_set():
                self.request_commit(p)
