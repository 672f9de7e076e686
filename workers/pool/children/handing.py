"""A call that reaches one process of a pool and is another one's to answer: it is handed over, and then it is as if that other
one had got it. Whoever had it before leaves it alone.

The server gives a call to any process of the pool. So this one decides, before anything else is done about the call:

    affinity            who answers it
    ------------------  ------------------------------------------------------------------------------------------------
    none                whoever has it
    prefer, no code     whoever has it: only the code of users keeps something in the memory of one process
    prefer, its code    the process of its key (rendezvous), where that has room and answers at once; else whoever has it
    require             the worker that holds its key: see holding.py

A durable call goes over with the token of its delivery: the new process gives the signs of life, stores the record and acks.
An interactive one goes over with its caller's inbox. Where no answer comes, nobody knows who has it, and it is left alone: the
server delivers it again, and a caller asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import codecs, subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import BusError, DataError, DecodeError, Saturated, Unreachable
from dspex.bus.message import Message, in_session
from dspex.bus.port import Delivery, NewMessage, Subscription
from dspex.bus.records import CallRequest
from dspex.bus.seldom import Seldom
from dspex.bus.serving import payloads
from dspex.bus.serving.work_loop import PASSED_ON
from dspex.workers.pool.children.child_process import Child
from dspex.workers.pool.children.holding import Holding, own

if TYPE_CHECKING:
    from dspex.workers.pool.pool import Pool

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

WITHIN: Final = 1.0  # seconds for an answer to a call that is handed over
LATE: Final = 5.0  # seconds after which a call is not taken any more: nobody waits for the answer. Clocks are closer than that
AGAIN: Final = 0.1  # seconds until a process that has no room, or does not answer, is asked again
CallPlace: TypeAlias = Child | Literal["passed on"] | None
"""Where a call is answered: by this child, by another process, or by any child of this process."""

_TAKEN, _FULL = b"taken", b"full"


@dataclass(frozen=True)
class HandedCall:
    """A call on its way from one process of a pool to another: the message in which the first one got it.

    Attributes:
        subject, headers, data: of the message. data: the packed CallRequest, whole.
        reply: the inbox of its caller; "" of a durable call.
        token: of the delivery of a durable call; "" of an interactive one.
    """

    subject: str
    headers: Mapping[str, str]
    data: bytes
    reply: str = ""
    token: str = ""

    @classmethod
    def of(cls, message: Message, token: str = "") -> Self:
        """What is handed over of a message that has its own body."""
        headers = {k: v for k, v in message.headers.items() if k not in (subjects.CLAIM_CHECK, subjects.SEALED)}
        return cls(message.subject, headers, message.data, "" if token else message.reply, token)

    def pack(self) -> bytes:
        return codecs.msgpack_bytes(vars(self))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """What `pack` gave. Raises DecodeError."""
        raw = codecs.decode(data, codecs.MSGPACK)
        try:
            call = cls(**checked(cls, "a call that is handed over", raw))
        except TypeError as error:
            raise DecodeError(f"not a call that is handed over: {error}") from None
        if bool(call.token) == bool(call.reply) or (call.reply and not subjects.is_inbox(call.reply)):
            raise DecodeError("not a call that is handed over: it is durable, or has the inbox of its caller")
        return call


class Handing:
    """Gives calls to the processes that are to have them, and takes those that others give."""

    def __init__(self, pool: Pool, holding: Holding) -> None:
        self._pool, self._holding = pool, holding
        self._subscription: Subscription | None = None
        self._seldom = Seldom(log)

    async def start(self) -> None:
        """Take what others give, from now on. Raises BusError."""
        config = self._pool.config
        subject = subjects.handed(config.app, config.name, self._pool.id)
        self._subscription = await self._pool.bus.subscribe(subject, self._on_handed)

    async def stop(self) -> None:
        """Take nothing more."""
        if self._subscription is not None:
            await self._subscription.close()

    # -- giving
    def decides(self, work: CallRequest) -> bool:
        """Whether `place` has to be asked who answers a call. Costs nothing but for calls with a key, of code of users."""
        return work.affinity is not None and (work.required or self._preferred(work) != self._pool.id)

    async def place(self, work: CallRequest, call: HandedCall, until: float) -> CallPlace:
        """Who answers a call; it is handed over where that is another process. `until`: on the clock of the loop.

        Raises AffinityLost; TimeoutError where the worker that it requires had no room until then; ConfigError, BusError.
        """
        if not work.required:
            there = self._preferred(work)
            elsewhere = there != self._pool.id and await self._given(there, call, work) is not False
            return PASSED_ON if elsewhere else None
        while True:
            found = await self._holding.holder(str(work.affinity))
            if not isinstance(found, str):
                return found
            if await self._given(found, call, work) is not False:
                return PASSED_ON
            if asyncio.get_running_loop().time() + AGAIN >= until:
                raise TimeoutError
            await asyncio.sleep(AGAIN)

    def _preferred(self, work: CallRequest) -> str:
        others = self._pool.scaling.others
        if not others or work.affinity is None or not work.spec.refs:
            return self._pool.id
        return own(work.affinity, (self._pool.id, *others))

    async def _given(self, process: str, call: HandedCall, work: CallRequest) -> bool | None:
        """Whether a process has taken a call; None where nobody knows. Raises BusError."""
        app, bus = self._pool.config.app, self._pool.bus
        subject = subjects.handed(app, self._pool.config.name, process)
        headers, clock = in_session(work.session), self._pool.work.clock
        if clock.known:
            headers[subjects.HANDED] = f"{clock():.3f}"
        draft = await payloads.sent(bus, app, NewMessage(subject, call.pack(), headers))
        try:
            answer = await bus.request(draft.subject, draft.data, headers=draft.headers, timeout=WITHIN)
        except Saturated:
            return False  # it does not listen
        except Unreachable:
            return None
        return answer.data == _TAKEN

    # -- taking
    async def _on_handed(self, message: Message) -> None:
        pool = self._pool
        try:
            message = await payloads.required(pool.bus, pool.config.app, message)
            call = HandedCall.unpack(message.data)
            work = CallRequest.unpack(call.data)
            delivery = self._delivery(call) if call.token else None
        except (DataError, BusError) as error:
            self._seldom.error("a call that was handed over is refused", pool=pool.config.name, why=error.message)
            return
        full = pool.children.slots.waiting_for_one >= pool.children.slots.total if work.required else pool.free() <= 0
        full = full or self._is_late(message)
        if not subjects.is_inbox(message.reply):
            return
        pool.bus.tell(message.reply, _FULL if full or pool.draining else _TAKEN)
        if full or pool.draining:
            return
        try:
            if delivery is not None:
                await pool.work.adopt(delivery, pool.accept_handed)
            else:
                await pool.interactive.handed(Message(call.subject, call.data, call.headers, reply=call.reply))
        except BusError as error:
            log.warning("a call that was handed over is not served; it will come again", why=error.message)

    def _is_late(self, message: Message) -> bool:
        """Whether it was handed over so long ago that somebody else has it by now: this process stood still meanwhile. Where it
        is only a clock that is wrong, who waits goes on without this process.
        """
        try:
            return self._pool.work.clock.age(float(message.headers[subjects.HANDED])) > LATE
        except (KeyError, ValueError):
            return False

    def _delivery(self, call: HandedCall) -> Delivery:
        """Raises DecodeError where it is none of this pool's."""
        app, pool = self._pool.config.app, self._pool.config.name
        band = subjects.band_of(app, pool, call.subject)
        if band is None:
            raise DecodeError(f"no work of pool {pool} waits on {call.subject[:200]}")
        consumer = subjects.work_consumer(pool, band)
        message = Message(call.subject, call.data, call.headers)
        return self._pool.bus.held(subjects.stream(app), consumer, call.token, message)
