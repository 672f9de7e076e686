"""One call on its way to a worker: sent until one takes it, and what comes back of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import orjson

from dspex.bus import codecs, subjects
from dspex.bus.errors import BusError, CallError, CallTimeout, DecodeError, PayloadTooLarge, Saturated, WorkerLost
from dspex.bus.message import Message, in_session
from dspex.bus.port import Bus, NewMessage
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving import payloads
from dspex.bus.serving.keys.clear_text import may_store
from dspex.bus.serving.keys.secret_fields import need_key
from dspex.bus.serving.sayings import ACCEPTED, BUSY, RESULT, SAID, Said, Saying
from dspex.engine.client.calls.full import FullPool

ACCEPT_WITHIN = 2.0  # seconds for the accepted frame: a worker that is alive sends it before it runs anything
STILL_EVERY = 3.0  # seconds until a pool is asked whether it still has a call
STILL_ASKED = 3  # questions without an answer, one after the other, behind which nobody has it
_LOST = "call again; dspex pools ls shows which processes there are"


class Meanwhile(Protocol):
    """Who is told of a call before its result is there. None of it may raise."""

    def accepted(self, call: str, worker: str) -> None:
        """A worker has it."""
        ...

    def said(self, said: Sequence[Said]) -> None:
        """What the worker says; see `Said`."""
        ...

    def ended(self, outputs: Mapping[str, Any]) -> None:
        """It has answered."""
        ...


class Asking:
    """One call on its way to a worker.

    Its frames are taken as they come, outside the task that waits, which wakes once: for the result, or to ask again.
    """

    def __init__(self, bus: Bus, app: str, pool: str, request: CallRequest, told: Meanwhile | None = None) -> None:
        self.bus, self.app, self.pool, self.request, self.told = bus, app, pool, request, told
        self.inbox = bus.inbox(self._take)
        self.taken = False  # a worker has accepted it
        self._sent = False
        self._answered = False
        self._refused = False  # no worker took it when it was sent
        self._unheard = False  # a worker got it, perhaps, and said nothing
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Future[Message | None] = self._loop.create_future()  # the result; None: no worker took it
        self._late: asyncio.TimerHandle | None = None
        self._still: asyncio.TimerHandle | None = None
        self._unanswered = 0  # questions whether it is still run
        self._full = FullPool.of(bus, app, pool, request)

    async def record(self) -> CallRecord:
        """Ask until a worker takes it, then wait for the result."""
        subject, headers = self.request.called_on(self.app, self.pool), in_session(self.request.session)
        draft = NewMessage(subject, self.request.pack(), headers)
        if (size := len(draft.data)) > (most := payloads.most(self.bus)):
            raise PayloadTooLarge(f"{size:,} bytes for {draft.subject}, and one payload may have {most:,}", node=self.pool)
        if payloads.must_be_stored(self.bus, draft):
            need_key(self.bus, self.request.spec, "a request that no message holds", self.request.node)
            await may_store(self.bus, self.app)
            draft = await payloads.sent(self.bus, self.app, draft)
        place = await self._full.come()
        while True:
            if (result := await self._asked(draft)) is not None:
                if not payloads.is_whole(result.headers):
                    result = await payloads.required(self.bus, self.app, result)
                record = CallRecord.unpack(result.data)
                if self._unheard and record.call:  # another one, which stood still, may have it too. A refusal names no call
                    self._cancel()
                return record
            self._refused = True
            await self._full.refused(place)

    async def _asked(self, draft: NewMessage) -> Message | None:
        """The result; None where no worker takes the call: all are busy or frozen, or there is none."""
        if not self.taken:  # else one that was slow has taken it meanwhile
            if self._heard.done():
                self._heard = self._loop.create_future()
            self._late = self._loop.call_later(ACCEPT_WITHIN, self._silent)
            if self.told is not None:  # of two workers, one is heard: else their pieces would be mixed
                self.inbox.close()
                self.inbox = self.bus.inbox(self._take)
            self._sent = True
            await self.bus.send(draft.subject, draft.data, headers=draft.headers, reply=self.inbox.subject)
        try:
            return await self._heard
        finally:
            if self._late is not None:
                self._late.cancel()  # it would speak of the next time that it is sent

    def _take(self, frame: Message) -> None:
        kind = frame.headers.get(subjects.KIND, "")
        if kind in (ACCEPTED, RESULT):  # the result alone is a refusal
            if not self.taken and self._heard.done():
                self._heard = self._loop.create_future()  # of a worker that was taken for frozen
            if kind == ACCEPTED and not self.taken and self.told is not None:
                self.told.accepted(self.request.call, _worker(frame))
            if kind == RESULT or not self.taken:
                self._full.took()
            self.taken = True
            self._answered = self._answered or kind == RESULT
            self._unanswered = 0
            if self._still is None and not self._answered:
                self._still = self._loop.call_later(STILL_EVERY, self._ask_whether_still)
            if kind == RESULT and not self._heard.done():
                self._heard.set_result(frame)
        elif kind == SAID and self.told is not None:
            with suppress(DecodeError):  # then it is missing, and is taken from the result
                self.told.said(Saying.unpack(frame.data).said)
        elif kind == BUSY or frame.headers.get("Status") == "503":
            self._not_taken()

    def _ask_whether_still(self) -> None:
        """A pool that is killed says nothing, and an answer can be lost. Who has the call says so as it did at first."""
        if self._heard.done():
            return
        if self._unanswered == STILL_ASKED:
            why = f"pool {self.pool} has the call no more: the process that ran it has died, or its answer was lost on its way"
            self._heard.set_exception(WorkerLost(why, node=self.pool, run=self.request.call, fix=_LOST).of_call())
            return
        self._still = self._loop.call_later(STILL_EVERY, self._ask_whether_still)
        said = orjson.dumps({"kind": "still", "call": self.request.call})
        with suppress(BusError):  # nobody was asked: the connection is cut
            self.bus.tell(subjects.control(self.app, self.pool), said, reply=self.inbox.subject)
            self._unanswered += 1

    def _silent(self) -> None:
        self._unheard = self._unheard or not self.taken
        self._not_taken()

    def _not_taken(self) -> None:
        if not self.taken and not self._heard.done():
            self._heard.set_result(None)

    def close(self) -> None:
        """It is over: what still comes is dropped, and a worker that has it and has not answered stops it.

        Also where no worker has said that it has it: one may have it and not have said so yet.
        """
        self.inbox.close()
        for timer in (self._late, self._still):
            if timer is not None:
                timer.cancel()
        if self.taken:
            self._full.freed()
        if self._sent and not self._answered:
            self._cancel()

    def _cancel(self) -> None:
        said = orjson.dumps({"kind": "cancel", "call": self.request.call})
        with suppress(BusError):  # who cannot be told finds out by its deadline
            self.bus.tell(subjects.control(self.app, self.pool), said)

    def gave_up(self, timeout: float) -> CallError:
        """The error for a call that got no result in time."""
        run, timeout = self.request.call, round(timeout, 1 if timeout > 1 else 3)  # of a session, what others have left of it
        seen = self._full.seen if self._refused or not self._sent else None
        if self.taken or not seen:
            return CallTimeout(f"no answer from pool {self.pool} within {timeout:g} s", node=self.pool, run=run).of_call()
        slots = seen["slots"] * seen["ready"]
        return Saturated(
            f"pool {self.pool} is saturated ({seen['busy']} of {slots} slots busy); gave up after {timeout:g} s",
            node=self.pool,
            run=run,
            fix=f"wait, raise --timeout, or start more workers: dspex worker {self.pool}",
        )


def _worker(accepted: Message) -> str:
    """Which worker it was; "" where it does not say so."""
    try:
        said = codecs.decode(accepted.data, codecs.MSGPACK)
    except DecodeError:
        return ""
    worker = said.get("worker") if isinstance(said, dict) else None
    return worker if isinstance(worker, str) else ""
