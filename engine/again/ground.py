"""Where a run is done again: in memory, on a clock that stands still while calls are made outside, in the time of the world."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar, cast

from dspex.bus.memory.virtual import ReadyKey, Stall, VirtualLoop

T = TypeVar("T")


class _OutsideStall(Stall):
    """Waits for what was begun outside, and comes to rest where nothing was."""

    outside = 0

    def select(self, timeout: float | None = None) -> list[ReadyKey]:
        ready = super(Stall, self).select(0)
        while not ready and timeout != 0 and self.outside:
            ready = super(Stall, self).select(None)  # who ends out there wakes it
        return ready or super().select(timeout)


class OutsideLoop(VirtualLoop):
    """A loop with a virtual clock, some of whose tasks wait for another loop, which runs in another thread.

    Args:
        world: the other loop.
    """

    def __init__(self, world: asyncio.AbstractEventLoop) -> None:
        self._world = world
        super().__init__(_OutsideStall)
        self._made: set[asyncio.Future[Any]] = set()
        self._given_up = False

    async def outside(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What a coroutine of the other loop gives. The clock stands still until then. Raises CancelledError once `give_up` was
        called.
        """
        if self._given_up:
            raise asyncio.CancelledError
        stall = cast("_OutsideStall", self._stall)
        future = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(make(), self._world), loop=self)
        stall.outside += 1
        self._made.add(future)
        try:
            return await future
        finally:
            stall.outside -= 1
            self._made.discard(future)

    def give_up(self) -> None:
        """Cancel what was begun outside, and begin nothing more. From another thread, too."""

        def cancel() -> None:
            self._given_up = True
            for future in list(self._made):
                future.cancel()

        with suppress(RuntimeError):  # it is closed: it has come to its end meanwhile
            self.call_soon_threadsafe(cancel)
