"""Interactive calls: requests over core NATS, answered on the caller's inbox, recorded afterwards.

A process is a member of its pool's queue group only while it has a free slot. So the server picks among processes that have
one, and "nobody listens" reaches a caller at once as "saturated or absent". A request that arrives when the last slot has just
been taken is answered `busy`, and the caller asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import codecs, subjects
from dspex.bus.errors import BusError, DataError, DecodeError, DspexError, InvalidInput, NotAllowed, WorkerLost
from dspex.bus.message import Message, in_session
from dspex.bus.port import NewMessage, Subscription
from dspex.bus.records import ACCEPTED, BUSY, RESULT, CallRecord, CallRequest
from dspex.bus.seldom import Seldom
from dspex.bus.serving import payloads
from dspex.bus.serving.deployed import Deployed
from dspex.workers.answer import error_map
from dspex.workers.pool.slots import Reservation

if TYPE_CHECKING:
    from dspex.workers.pool.pool import Pool

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

LOOK_AGAIN = 0.5  # seconds between two looks at the free slots
LEAVE_AFTER = 0.02  # seconds between the last slot's being taken and leaving the queue group


class Interactive:
    """Takes and answers the interactive calls of one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._changed = asyncio.Event()
        pool.children.slots.freed = self._changed.set
        self._deployed = Deployed(pool.bus, pool.config.app, pool.config.name)
        self._subscription: Subscription | None = None
        self._seldom = Seldom(log)  # anybody who may ask can ask in vain as often as they like

    async def run(self) -> None:
        """Join the queue group while there is a free slot, leave it while there is none; until cancelled."""
        try:
            while True:
                self._changed.clear()
                await self._join_or_leave()
                # work from the queue takes slots too, and `freed` is not called for that: look again soon
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN):
                        await self._changed.wait()
        finally:
            if self._subscription is not None:
                await self._subscription.close()

    async def _join_or_leave(self) -> None:
        config, free = self._pool.config, self._pool.free()
        try:
            if free > 0 and self._subscription is None:
                subject = subjects.call_pattern(config.app, config.name)
                self._subscription = await self._pool.bus.subscribe(subject, self._on_request, queue=config.name)
            elif free <= 0 and self._subscription is not None:
                await asyncio.sleep(LEAVE_AFTER)  # requests under way are answered `busy`; a closed subscription drops them
                subscription, self._subscription = self._subscription, None
                await subscription.close()
        except BusError as error:
            log.warning("cannot join the queue group", pool=config.name, error=error.message)

    async def _on_request(self, message: Message) -> None:
        if not subjects.is_inbox(message.reply):  # nobody waits for an answer, or it would go where the caller may not publish
            self._refused(message, "it has no inbox for the answer")
            return
        if self._pool.free() <= 0:
            self._changed.set()
            await self._pool.bus.send(message.reply, b"", headers={subjects.KIND: BUSY})
            return
        try:
            message = await payloads.required(self._pool.bus, self._pool.config.app, message)
            work = self._read(message)
            await self._deployed.check(work)
        except (DataError, NotAllowed) as error:
            self._refused(message, error.message)
            await self._reply(message, _refusal(error))
            return
        except BusError as error:
            log.warning("a request was dropped", pool=self._pool.config.name, why=error.message)
            return
        reservation = self._pool.children.slots.reserve()
        self._changed.set()
        self._pool.work.calls.start(self._serve(message, work, reservation), "interactive call")

    def _read(self, message: Message) -> CallRequest:
        """The request. Raises DataError where it is none, NotAllowed where it came on a subject that is not its own."""
        config, work = self._pool.config, CallRequest.unpack(message.data)
        if work.record is not None:
            raise DecodeError("an interactive call does not say where its record is stored")
        self._pool.records.check(work)
        if message.subject != (wanted := work.called_on(config.app, config.name)):
            # The server lets a caller use the subjects that it may; what it asks for must be what it is allowed to ask.
            raise NotAllowed(f"a request for {wanted} came on {message.subject}", fix="send it on its own subject")
        return work

    def _refused(self, message: Message, why: str) -> None:
        self._pool.work.refused += 1
        pool = self._pool.config.name
        self._seldom.error("requests are refused; dspex status --json counts them", pool=pool)
        log.debug("a request was refused", pool=pool, subject=message.subject, why=why)

    async def _serve(self, message: Message, work: CallRequest, reservation: Reservation) -> None:
        pool = self._pool
        with reservation:
            slots = pool.children.slots
            accepted = {
                "kind": ACCEPTED,
                "call": work.call,
                "worker": pool.worker,
                "free": pool.free(),
                "waiting": slots.waiting,
            }
            await pool.bus.send(message.reply, codecs.msgpack_bytes(accepted), headers={subjects.KIND: ACCEPTED})
            try:
                record = await pool.attempts.run(work, message.data, reservation)
            except asyncio.CancelledError:
                stopped = pool.attempts.failed(work, WorkerLost("the pool was stopped", node=work.node))
                await self._reply(message, stopped, work.session)
                raise
        await self._reply(message, record, work.session)
        await pool.records.store(record, work)

    async def _reply(self, message: Message, record: CallRecord, session: str | None = None) -> None:
        """Send the result; one that no message holds by its hash."""
        pool = self._pool
        headers = {subjects.KIND: RESULT, **in_session(session)}
        draft = NewMessage(message.reply, pool.records.sized(record), headers)
        draft = await payloads.sent(pool.bus, pool.config.app, draft)
        await pool.bus.send(draft.subject, draft.data, headers=draft.headers)


def _refusal(error: DspexError) -> CallRecord:
    """What the caller gets. What is no request names no call: the caller knows its own by the subject of the answer."""
    said = InvalidInput(error.message) if isinstance(error, DecodeError) else error
    return CallRecord("", 1, 1, "", "", error=error_map(said))
