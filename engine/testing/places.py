"""Where a testing driver runs: on the in-memory bus. See wired.py for a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from dspex.bus.memory.faults import Faults, Luck
from dspex.bus.memory.server import MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.port import Bus, Delivery

START = 1_767_225_600.0  # 2026-01-01: when the clock of every driver begins


class Ground(Protocol):
    """A bus and a clock. Made in the thread of the driver, and used there alone.

    Attributes:
        loop: whose clock stands still until the driver moves it.
        luck: the faults of the bus.
        now: the time, in seconds since 1970.
    """

    @property
    def loop(self) -> VirtualLoop: ...
    @property
    def luck(self) -> Luck: ...
    @property
    def now(self) -> float: ...

    async def connect(self) -> Bus:
        """A connection."""
        ...

    def lost(self, deliveries: Sequence[Delivery]) -> None:
        """A process died that had taken this work: it comes again after `ack_wait`."""
        ...

    def close(self) -> None:
        """End it, and all that runs on its loop."""
        ...


class InMemory:
    """The in-memory bus, which keeps the contract of NATS."""

    def __init__(
        self, seed: int = 0, faults: Faults | None = None, *, start: float = START, loop: VirtualLoop | None = None
    ) -> None:
        self._start, self.loop = start, loop or VirtualLoop()
        self.server = MemoryServer(seed=seed, faults=faults, epoch=start, passing=True)
        self.luck = self.server.luck

    @property
    def now(self) -> float:
        return self._start + self.loop.time()

    async def connect(self) -> Bus:
        await asyncio.sleep(0)
        return self.server.connect()

    def lost(self, deliveries: Sequence[Delivery]) -> None:
        pass  # it counts the time itself

    def close(self) -> None:
        self.loop.close()
