"""Whether a process is in the queue group of its pool: only while it has a free slot."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import subjects
from dspex.bus.errors import BusError
from dspex.bus.message import Message
from dspex.bus.port import Bus, Subscription

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

LOOK_AGAIN: Final = 0.5  # seconds between two looks at the free slots
LEAVE_AFTER: Final = 0.02  # seconds between the last slot's being taken and leaving the queue group


class QueueGroup:
    """Of the interactive calls of one pool. `free`: how many more calls may be accepted; `handler` gets the requests."""

    def __init__(
        self, bus: Bus, app: str, pool: str, free: Callable[[], int], handler: Callable[[Message], Awaitable[None]]
    ) -> None:
        self._bus, self._app, self._pool, self._free, self._handler = bus, app, pool, free, handler
        self._changed = asyncio.Event()
        self._one = asyncio.Lock()
        self._subscription: Subscription | None = None

    @property
    def joined(self) -> bool:
        """Whether it gets requests."""
        return self._subscription is not None

    @property
    def to_join(self) -> bool:
        """Whether it gets none, and will soon: there is a free slot."""
        return self._subscription is None and self._free() > 0

    def look(self) -> None:  # at each call, so `run` is woken only where it has something to do
        """There may be a free slot now, or none."""
        if (self._free() > 0) != self.joined:
            self._changed.set()

    async def run(self) -> None:
        """Join the group while there is a free slot, leave it while there is none; until cancelled."""
        try:
            while True:
                self._changed.clear()
                await self.settle()
                # work from the queue takes slots too, and `look` is not called for that: look again soon
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN):
                        await self._changed.wait()
        finally:
            if self._subscription is not None:
                await self._subscription.close()

    async def settle(self) -> None:
        """Be in the group if there is a free slot, and else not."""
        async with self._one:
            try:
                await self._join_or_leave()
            except BusError as error:
                log.warning("cannot join the queue group", pool=self._pool, error=error.message)

    async def _join_or_leave(self) -> None:
        free = self._free()
        if free > 0 and self._subscription is None:
            subject = subjects.call_pattern(self._app, self._pool)
            self._subscription = await self._bus.subscribe(subject, self._handler, queue=self._pool)
        elif free <= 0 and self._subscription is not None:
            await asyncio.sleep(LEAVE_AFTER)  # requests under way are answered `busy`; a closed subscription drops them
            if self._free() <= 0:  # else its calls are short, and to leave and come back would keep callers waiting
                subscription, self._subscription = self._subscription, None
                await subscription.close()
