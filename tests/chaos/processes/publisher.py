"""Publishes the events of a run, and can be told to wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from workload import SOURCE, Given

from dspex.bus import codecs, subjects
from dspex.bus.errors import BusError
from dspex.bus.port import Bus, NewMessage
from dspex.bus.serving import payloads

LANES = 64  # publishes in flight


class Publisher:
    """Publishes events, keys in order, each until it is stored.

    Args:
        pace: seconds between two events of a key.

    Attributes:
        stored: event → when it was stored, seconds since the epoch.
    """

    def __init__(self, bus: Bus, app: str, events: Sequence[Given], pace: float = 0.0) -> None:
        self._bus, self._app, self._events, self._pace = bus, app, events, pace
        self._room = asyncio.Semaphore(LANES)
        self.stored: dict[str, float] = {}

    async def run(self) -> None:
        lanes: dict[str, list[Given]] = {}
        for event in self._events:
            lanes.setdefault(event.key, []).append(event)
        await asyncio.gather(*(self._lane(events) for events in lanes.values()))

    async def _lane(self, events: Sequence[Given]) -> None:
        for event in events:
            body = codecs.encode(event.data)[0] if event.raw is None else event.raw
            headers = {subjects.MESSAGE_ID: event.id, subjects.RUN: event.id, subjects.KEY: event.key}
            if self._bus.sealing is not None:
                headers[subjects.SESSION] = f"session of {event.key}"
            draft = NewMessage(SOURCE, body, headers)
            while event.id not in self.stored:
                async with self._room:
                    await self._try(event.id, draft)
            await asyncio.sleep(self._pace)

    async def _try(self, id: str, draft: NewMessage) -> None:
        try:
            await self._bus.publish(await payloads.checked_in(self._bus, self._app, draft), timeout=2.0)
        except BusError as e:
            if not e.retryable:
                raise
            await asyncio.sleep(0.1)
        else:
            self.stored[id] = time.time()

    async def pause(self) -> None:
        """Publish nothing more until `resume`; returns when nothing is in flight."""
        for _ in range(LANES):
            await self._room.acquire()

    def resume(self) -> None:
        for _ in range(LANES):
            self._room.release()
