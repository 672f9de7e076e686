"""Interactive calls: requests over core NATS, answered on the caller's inbox, recorded afterwards.

A process is a member of its pool's queue group only while it has a free slot. So the server picks among processes that have
one, and "nobody listens" reaches a caller at once as "saturated or absent". A request that arrives when the last slot has just
been taken is answered `busy`, and the caller asks again.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import subjects
from dspex.bus.errors import BusError, DataError, DecodeError, DspexError, NotAllowed
from dspex.bus.message import Message, in_session
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.seldom import Seldom
from dspex.bus.serving import payloads
from dspex.bus.serving.deployed import Deployed
from dspex.bus.serving.keys.secret_fields import refused
from dspex.bus.serving.sayings import RESULT
from dspex.bus.serving.sessions.state import MOST_BYTES, check_inputs
from dspex.bus.serving.work_loop import PASSED_ON
from dspex.bus.tasks import Tasks
from dspex.workers.pool.children.child_process import Child
from dspex.workers.pool.children.handing import HandedCall
from dspex.workers.pool.plain import answer_to, error_headers, is_plain, refusal, request_of, tell_busy
from dspex.workers.pool.telling import Asker, Telling
from dspex.workers.processes.queue_group import QueueGroup

if TYPE_CHECKING:
    from dspex.workers.pool.pool import Pool

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

ACCEPT_AFTER = 0.05  # seconds until a caller who is not streamed to is told that a worker has the call; a result says it, too
UNSENT, UNSENT_FOR = 100, 60.0  # answers that could not be sent, and seconds for which they are kept
PLACED_WITHIN = 1.5  # seconds until the worker that a call requires must have room; after 2 s its caller asks again in any case


class Interactive:
    """Takes and answers the interactive calls of one pool. `group`: where it hears of them."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.group = QueueGroup(pool.bus, pool.config.app, pool.config.name, pool.free, self._on_request)
        self._deployed = Deployed(pool.bus, pool.config.app, pool.config.name)
        self._sent_away = 0
        self._askers: dict[str, Asker] = {}  # by call, of those that run
        self._answering: dict[str, Asker] = {}  # whose answer is large, and is being sent
        self._unsent: dict[str, tuple[Asker, NewMessage]] = {}  # by call, answers that could not be sent
        self._to_accept: list[Asker] = []  # who has not been told that a worker has the call
        self._turns = pool.work.turns
        self._large = Tasks("large results", lambda name, error: log.error("a result was not sent", exc_info=error))
        self._seldom = Seldom(log)  # anybody who may ask can ask in vain as often as they like

    def sent_away(self) -> int:
        """Requests that found no free slot since this was asked last."""
        number, self._sent_away = self._sent_away, 0
        return number

    async def drain(self, seconds: float) -> None:
        """Have turns stored, and what is large sent."""
        await self._large.finish(seconds)
        await self._large.stop()

    def still(self, call: str, reply: str) -> None:
        """Tell who asks that this process has a call, where it runs or its answer is being sent; and give the answer that could
        not be sent to who asked for it. Raises BusError.
        """
        pool = self._pool
        if (asker := self._askers.get(call) or self._answering.get(call)) is not None:
            asker.accept(pool.bus, pool.worker, max(0, pool.free()), pool.children.slots.waiting, reply)
        elif call in self._unsent and self._unsent[call][0].hears_at(reply):
            asker, answer = self._unsent.pop(call)
            self._tell(answer._replace(subject=reply), asker)

    async def _on_request(self, message: Message) -> None:
        if not subjects.is_inbox(message.reply):  # nobody waits for an answer, or it would go where the caller may not publish
            self._refused(message, "it has no inbox for the answer")
            return
        try:
            if self._pool.free() <= 0 and not any(asker.asks_again(message) for asker in self._askers.values()):
                self._sent_away += 1
                self.group.look()
                tell_busy(self._pool.bus, message, self._pool.config.name)
                return
            if subjects.CLAIM_CHECK in message.headers:  # fetched aside: a small request behind it does not wait for that
                self._large.start(self._fetched(message), "large request")
            else:
                await self._take(message)
        except BusError as error:
            log.warning("a request was dropped", pool=self._pool.config.name, why=error.message)

    async def _fetched(self, message: Message) -> None:
        """Take a request whose body is to be fetched. It will want a slot."""
        self._pool.executions.preparing += 1
        try:
            await self._take(message)
        except BusError as error:
            log.warning("a request was dropped", pool=self._pool.config.name, why=error.message)
        finally:
            self._pool.executions.preparing -= 1

    async def _take(self, message: Message) -> None:
        """Answer a request that was sent here. Raises BusError."""
        try:
            if not payloads.is_whole(message.headers):
                message = await payloads.required(self._pool.bus, self._pool.config.app, message)
            work = await self._asked(message)
        except (DataError, NotAllowed) as error:
            self._refuse(message, error)
            return
        if self._pool.draining:  # since it came
            tell_busy(self._pool.bus, message, self._pool.config.name)
            return
        self._go_on(message, work, placed=not self._pool.handing.decides(work))

    async def handed(self, message: Message) -> None:
        """Answer a request that another process of the pool has given to this one. Raises BusError."""
        try:
            work = self._read(message)
            await self._deployed.check(work)
        except (DataError, NotAllowed) as error:
            self._refuse(message, error)
        else:
            self._go_on(message, work, placed=not work.required)

    def _go_on(self, message: Message, work: CallRequest, *, placed: bool) -> None:
        if placed:
            self._begin(message, work)
        else:
            self._large.start(self._place(message, work), "placing")

    async def _place(self, message: Message, work: CallRequest) -> None:
        """Have a request answered where it belongs."""
        pool = self._pool
        pool.executions.preparing += 1
        try:
            until = asyncio.get_running_loop().time() + PLACED_WITHIN
            place = await pool.handing.place(work, HandedCall.of(message), until)
        except TimeoutError:
            tell_busy(pool.bus, message, pool.config.name)
            return
        except BusError as error:
            log.warning("a request was dropped", pool=pool.config.name, why=error.message)
            return
        except DspexError as error:
            self._reply(message.reply, refusal(error))
            return
        finally:
            pool.executions.preparing -= 1
        if place == PASSED_ON:
            return
        if pool.draining:  # since then: no worker would answer it here
            tell_busy(pool.bus, message, pool.config.name)
        else:
            self._begin(message, work, place)

    async def _asked(self, message: Message) -> CallRequest:
        """What is asked for, by whom it may be. Raises as `_read`, and BusError."""
        if is_plain(message):
            return await request_of(message, self._deployed)
        work = self._read(message)
        await self._deployed.check(work)
        return work

    def _read(self, message: Message) -> CallRequest:
        """The request. Raises DataError where it is none, NotAllowed where it came on a subject that is not its own."""
        config, work = self._pool.config, CallRequest.unpack(message.data)
        if work.record is not None:
            raise DecodeError("an interactive call does not say where its record is stored")
        if work.turn is not None and len(message.data) > MOST_BYTES:
            check_inputs(work.inputs)
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

    def _refuse(self, message: Message, error: DspexError) -> None:
        self._refused(message, error.message)
        self._reply(message.reply, refusal(error), plain=is_plain(message))

    def _begin(self, message: Message, work: CallRequest, only: Child | None = None) -> None:
        pool = self._pool
        if (asker := self._askers.get(work.call)) is not None and asker.asks_again(message):
            asker.reply = message.reply
            if asker.telling is not None:
                asker.telling.move(message.reply)
            self._accept(asker, pool.free())
            return
        plain = is_plain(message)
        packed = work.pack() if plain else message.data
        asker = self._askers[work.call] = Asker(work, packed, message.reply, told=plain, plain=plain)
        if work.stream:
            self._accept(asker, pool.free() - 1)
            asker.telling = Telling(pool.bus, message.reply)
        self._turns.begin(work, asyncio.get_running_loop().time() + work.timeout)
        execution = pool.executions.start(work, packed, partial(self._ended, asker), only=only)
        execution.telling = asker.telling  # what its child says comes later, if it has one
        if not work.stream:
            if not self._to_accept:
                asyncio.get_running_loop().call_later(ACCEPT_AFTER, self._accept_all)
            self._to_accept.append(asker)
        self.group.look()

    def _accept_all(self) -> None:
        to_accept, self._to_accept = self._to_accept, []
        for asker in to_accept:
            if not asker.told:
                self._accept(asker, self._pool.free())

    def _accept(self, asker: Asker, free: int) -> None:
        pool = self._pool
        asker.accept(pool.bus, pool.worker, max(0, free), pool.children.slots.waiting)

    def _ended(self, asker: Asker, record: CallRecord) -> None:
        if self.group.to_join:
            self._large.start(self._settled(asker, record), "joining")
        elif asker.work.turn is None:
            self._answered(asker, record)
        else:
            self._large.start(self._spoken(asker, record), "turn")

    async def _settled(self, asker: Asker, record: CallRecord) -> None:
        """Answer behind the return to the queue group: a client that knows of a free slot asks on at once."""
        await self.group.settle()
        await self._spoken(asker, record)

    async def _spoken(self, asker: Asker, record: CallRecord) -> None:
        self._answered(asker, record if asker.work.turn is None else await self._turns.written(asker.work, record))

    def _answered(self, asker: Asker, record: CallRecord) -> None:
        """Send the result, and have it recorded."""
        if self._askers.get(asker.work.call) is asker:
            del self._askers[asker.work.call]
        if asker.telling is not None:
            asker.telling.end()
        packed = self._reply(asker.reply, record, asker, plain=asker.plain)
        if not asker.work.describe:
            self._pool.records.put(record, asker.work, packed)
            self._pool.service.heard(asker.work, record)

    def _reply(self, reply: str, record: CallRecord, asker: Asker | None = None, *, plain: bool = False) -> bytes:
        """Send the result, and give it as it is sent; one that no message holds by its hash."""
        pool = self._pool
        headers = {subjects.KIND: RESULT, **in_session(asker.work.session if asker is not None else None)}
        if record.error is not None:
            headers |= error_headers(record.error)
        draft = NewMessage(reply, pool.records.sized(record), headers)
        sent = answer_to(reply, record, payloads.inline(pool.bus, pool.bus.max_payload)) if plain else draft
        if payloads.must_be_stored(pool.bus, sent):
            if asker is not None and (error := refused(pool.bus, asker.work.spec, "an answer that no message holds")):
                return self._reply(reply, refusal(error), plain=plain)
            self._large.start(self._reply_large(draft, asker), "large result")
            return draft.data
        self._tell(sent, asker)
        return draft.data

    def _tell(self, result: NewMessage, asker: Asker | None) -> None:
        """Send a result, and keep it for a while where it cannot be sent: who waits for it asks whether its call still runs."""
        if asker is not None:
            asker.told = True
        try:
            self._pool.bus.tell(result.subject, result.data, headers=result.headers)
        except BusError as error:
            self._not_sent(error)
            if asker is not None and not asker.plain and len(self._unsent) < UNSENT:
                self._unsent[asker.work.call] = asker, result
                asyncio.get_running_loop().call_later(UNSENT_FOR, self._unsent.pop, asker.work.call, None)

    async def _reply_large(self, draft: NewMessage, asker: Asker | None) -> None:
        pool = self._pool
        if asker is not None:
            self._answering[asker.work.call] = asker
        try:
            draft = await payloads.sent(pool.bus, pool.config.app, draft)
            await pool.bus.send(draft.subject, draft.data, headers=draft.headers)
        except BusError as error:
            self._not_sent(error)
        finally:
            if asker is not None:
                self._answering.pop(asker.work.call, None)

    def _not_sent(self, error: BusError) -> None:
        log.warning("a result was not sent; it is recorded", pool=self._pool.config.name, why=error.message)
