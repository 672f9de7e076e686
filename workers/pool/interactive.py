"""Interactive calls: requests over core NATS, answered on the caller's inbox, recorded afterwards (DESIGN.md, 4).

The pool is a member of the class's queue group only while it has a free slot. So the server picks among idle pools, and
"nobody listens" reaches a caller at once as "saturated or absent". A request that arrives when the last slot has just gone
is answered `busy`, and the caller asks again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgpack
import structlog

from dspex.bus import subjects
from dspex.bus.errors import BusError, DecodeError, WorkerLost
from dspex.bus.message import Message
from dspex.bus.port import Subscription
from dspex.bus.records import ACCEPTED, BUSY, KIND_HEADER, RESULT, Work

if TYPE_CHECKING:
    from dspex.workers.pool.pool import Pool

log: Any = structlog.get_logger("dspex.workers")


class Interactive:
    """The door for interactive calls of one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._changed = asyncio.Event()
        pool.children.freed = self._changed.set
        self._subscription: Subscription | None = None

    async def run(self) -> None:
        """Join the queue group while there is a free slot, leave it while there is none; until cancelled."""
        try:
            while True:
                self._changed.clear()
                await self._join_or_leave()
                # a slot is also taken by work from the queue, of which nobody tells: look again soon
                changed = asyncio.ensure_future(self._changed.wait())
                try:
                    await asyncio.wait([changed], timeout=0.5)
                finally:
                    changed.cancel()
        finally:
            if self._subscription is not None:
                await self._subscription.close()

    async def _join_or_leave(self) -> None:
        config, free = self._pool.config, self._pool.free()
        try:
            if free > 0 and self._subscription is None:
                subject = subjects.call(config.app, config.name)
                self._subscription = await self._pool.bus.subscribe(subject, self._on_request, queue=config.name)
            elif free <= 0 and self._subscription is not None:
                subscription, self._subscription = self._subscription, None
                await subscription.close()
        except BusError as error:
            log.warning("cannot join the queue group", pool=config.name, error=error.message)

    async def _on_request(self, message: Message) -> None:
        if self._pool.free() <= 0:
            self._changed.set()
            await self._pool.bus.send(message.reply, b"", headers={KIND_HEADER: BUSY})
            return
        try:
            work = Work.unpack(message.data)
        except DecodeError as error:
            log.error("unreadable request dropped", pool=self._pool.config.name, why=error.message)
            return
        self._pool.unplaced += 1
        self._changed.set()
        self._pool.spawn(self._serve(message, work))

    async def _serve(self, message: Message, work: Work) -> None:
        pool = self._pool
        data: Any = msgpack.packb({"kind": ACCEPTED, "call": work.call, "worker": pool.worker})
        await pool.bus.send(message.reply, data, headers={KIND_HEADER: ACCEPTED})
        try:
            outcome = await pool.run(work, message.data)
        except asyncio.CancelledError:
            outcome = pool.refusal(work, WorkerLost(f"{work.node}: the pool was stopped", node=work.node))
            await pool.bus.send(message.reply, outcome.pack(), headers={KIND_HEADER: RESULT})
            raise
        await pool.bus.send(message.reply, outcome.pack(), headers={KIND_HEADER: RESULT})
        await pool.records.store(subjects.record(pool.config.app, pool.config.name), outcome, work, message.data)
