"""The pump: it reads one input and lets the partitions of this process take what arrives. It is the same for every input.

Pumps take turns on one thread, and an arrival is never interrupted, so a partition needs no lock.

A partition in which too much is open takes no gated arrivals. So that the others need not wait for it, it leaves the shared
reader and catches up with one of its own, until it has taken all that the shared reader passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from dspex.bus.message import Message
from dspex.bus.seldom import logger
from dspex.bus.tasks import Tasks, first
from dspex.engine.log.rows import Position
from dspex.engine.runtime.inputs.input import EVERY, Input
from dspex.engine.runtime.partition import Partition

_log = logger("dspex.engine")
SHORTEST, LONGEST = 0.5, 30.0  # seconds until it reads again after an error
CHUNK = 256  # messages taken before the loop gets a turn: about 4 ms


class Pump:
    """Feeds partitions from one input.

    Args:
        partitions: those that this process owns now, by index. The owner changes it while the pump stands still.
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
        clock: Callable[[], float],
        readers: asyncio.Semaphore,
        name: str,
    ) -> None:
        self.input, self._partitions, self._clock, self._readers, self._name = input, partitions, clock, readers, name
        self._now = 0.0  # on the clock; asked once for each chunk, so that its arrivals are one run in the log entry
        self.at: int | None = None
        self.at_time = 0.0
        self._passed: dict[int, int] = {}  # partition that catches up → last sequence that the shared reader passed over
        self.before: dict[int, tuple[int, float]] = {}  # and what was read last before the first: sequence and time
        self._joined = asyncio.Event()
        self._pause = SHORTEST

    def pause(self) -> float:
        """Seconds until it is to read again after an error: longer each time, until it could read."""
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST)
        return pause

    def catches_up(self, p: Partition) -> bool:
        """Whether a partition has a reader of its own now."""
        return p.index in self._passed

    def reached(self, p: Partition) -> int:
        """Up to this sequence a partition has taken what is its own."""
        taken = p.tables.position(self.input.name).sequence
        at = self.before[p.index][0] if self.catches_up(p) else self.at
        return taken if at is None else max(taken, at)

    def stored(self, p: Partition) -> int:
        """Up to this sequence what a partition has taken is stored too."""
        if p.settled.is_set() and not p.revoked:
            return self.reached(p)
        return p.durable.get(self.input.name, Position()).sequence

    def forget(self) -> None:
        """Nothing was read yet for the partitions that are here now."""
        self.at = None
        self._passed.clear()  # whoever caught up when it stood still reads with the others again

    async def run(self) -> None:
        """Read until cancelled."""
        mine = list(self._partitions.values())
        if not mine:
            return
        input = self.input
        self.forget()
        await input.verify(mine, self._clock())
        # of the partitions as they were: one may have been fenced while the log was looked at
        self.at = after = await input.begin(mine)
        self.at_time = 0.0
        lanes = Tasks(self._name)
        try:
            await first(self._shared(mine, after, lanes), lanes.wait())
        finally:
            await lanes.stop()

    async def _shared(self, mine: Sequence[Partition], after: int, lanes: Tasks) -> None:
        input, partitions, passed = self.input, self._partitions, self._passed
        reader = await input.open(mine, after, self._name)
        self._pause = SHORTEST
        try:
            while True:
                messages = await reader.read(CHUNK)
                self._now = self._clock()
                for message in messages:
                    owner = input.owner(message)
                    p = partitions.get(owner)
                    if owner == EVERY:
                        self._tell(message)
                    elif p is not None:
                        if p.index in passed:
                            passed[p.index] = message.sequence
                        elif p.takes(input.gated):
                            if not self._took(p, message):
                                await self._take(p, message)
                        elif input.gated and p.full and len(passed) + 1 < len(partitions):
                            passed[p.index] = message.sequence
                            input.leaves(p)
                            self.before[p.index] = (self.at or 0, self.at_time)
                            lanes.start(self._catch_up(p), f"partition {p.index}")
                        else:
                            await self._take(p, message)
                    self.at, self.at_time = message.sequence, message.time
                    while passed and passed.keys() >= partitions.keys():
                        self._joined.clear()  # nobody is left to read for
                        await self._joined.wait()
        finally:
            await reader.close()

    async def _catch_up(self, p: Partition) -> None:
        """Read for one partition until it has taken all that the shared reader passed over."""
        await self._room(p)
        async with self._readers:
            await self.input.verify([p], self._clock())  # what it has not taken yet may be gone since it was passed over
            after = p.tables.position(self.input.name).after
            reader = await self.input.open([p], after, f"{self._name}-{p.index}")
            try:
                while p.index in self._passed:
                    messages = await reader.read(CHUNK)
                    self._now = self._clock()
                    for message in messages:
                        owner = self.input.owner(message)
                        if owner in (p.index, EVERY):
                            await self._take(p, message) if owner == p.index else self.input.tell(p, message, self._now)
                            if message.sequence >= self._passed[p.index]:
                                del self._passed[p.index]  # nothing is awaited in between: the shared reader goes on behind it
                                self._joined.set()
                                break
            finally:
                await reader.close()

    def _tell(self, message: Message) -> None:
        """Tell all partitions; those that catch up hear of it from their own reader, when they get there."""
        for p in self._partitions.values():
            if p.index in self._passed:
                self._passed[p.index] = message.sequence
            else:
                self.input.tell(p, message, self._now)

    def _took(self, p: Partition, message: Message) -> bool:
        """Let a partition, which has room, take what arrives with a message, if nobody need be asked for more."""
        at = p.tables.positions.rows.get(self.input.name)
        if at is not None and message.sequence <= at.sequence and message.sequence <= at.after:
            return True  # before
        arrival = self.input.at_once(p, message, self._now)
        if arrival is not None:
            p.take_in(arrival)
        return arrival is not None

    async def _take(self, p: Partition, message: Message) -> None:
        """Let a partition take what arrives with a message, once it has room."""
        await self._room(p)
        if self._took(p, message):
            return
        arrivals = await self.input.arrivals(p, message, self._now)
        for index, arrival in enumerate(arrivals):
            if index:  # of a frame with many events
                await self._room(p)
            p.take_in(arrival)

    async def _room(self, p: Partition) -> None:
        """Backpressure: a commit must make room, or calls must finish, before this partition takes more."""
        while not p.takes(self.input.gated):
            p.room.clear()
            await p.room.wait()
            self._now = self._clock()
