"""Turns of sessions: a call that is to be one is a turn once its answer is stored there, and only then its caller is told.

So the turn is there also where the caller dies meanwhile; and where this process dies, there is none, nobody got an answer, and
who asks again does not find half of one.

A submitted call has no caller that stands in the line for it. It takes its place when a worker has it, so it is the worker that
waits for its turn, without a slot, and fills its history then. Whoever gets it after a death finds its turn, or its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final, TypeAlias, TypeVar

import structlog

from dspex.bus.errors import (
    BusError,
    CallTimeout,
    Cancelled,
    DataError,
    DspexError,
    SessionConflict,
    SessionEnded,
    SessionError,
)
from dspex.bus.port import Bus, Delivery
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.seldom import Seldom
from dspex.bus.serving import payloads
from dspex.bus.serving.sessions.line import turn_of, with_history
from dspex.bus.serving.sessions.state import (
    BEAT,
    HISTORY,
    InLine,
    SessionState,
    StoredTurn,
    check_inputs,
    kept_for,
    left,
    most_of_turn,
    renewed,
    saved,
    taken,
    used,
)
from dspex.bus.serving.sessions.store import SessionStore
from dspex.bus.tasks import Tasks

log = structlog.get_logger("dspex.workers")
PAUSE: Final = 0.2  # seconds between two tries to store a turn
GivenRecord = TypeVar("GivenRecord")
AcceptTurn: TypeAlias = Callable[[CallRequest, Delivery], Callable[[], Awaitable[GivenRecord]]]
TO_TELL: Final = 0.5  # seconds before the caller gives up, in which it can be told that its turn could not be stored


class Turns:
    """The calls of a pool that are to be turns."""

    def __init__(self, bus: Bus, app: str) -> None:
        self._store, self._bus = SessionStore(bus, app), bus
        self._open: dict[str, str] = {}  # call → session, of those that run
        self._ends: dict[str, float] = {}  # call → when nobody waits for its answer any more
        self._seldom = Seldom(log)
        self._tasks = Tasks("turns", lambda name, error: log.error("places of sessions are not renewed", exc_info=error))

    def taking(self, pool: str, accept: AcceptTurn[GivenRecord], age: float) -> AcceptTurn[CallRecord | GivenRecord]:
        """What accepts a submitted call that is to be a turn: `accept` does, when it is its turn. `age`: of its request."""

        def take(work: CallRequest, delivery: Delivery) -> Callable[[], Awaitable[CallRecord | GivenRecord]]:
            until = asyncio.get_running_loop().time() + work.left - age
            return partial(self._submitted, work, pool, until, lambda filled: accept(filled, delivery)())

        return take

    async def _submitted(
        self, work: CallRequest, pool: str, until: float, answered: Callable[[CallRequest], Awaitable[GivenRecord]]
    ) -> CallRecord | GivenRecord:
        """Have a submitted call answered when it is its turn, and make the answer one; its record.

        Where there is a turn of its name, that is the answer. Where another call has taken its place, as who came meanwhile may
        with policy "interrupt", or while this process stood still, it takes another one and is answered anew, because it has to
        know what was said. `until`: its deadline, on the clock of the loop. Raises BusError.
        """
        session, place = str(work.session), InLine(work.call, 0.0, pool, work.turn or work.call)
        record = CallRecord.of(work)
        try:
            check_inputs(work.inputs)
            while True:
                with suppress(Cancelled, SessionConflict):
                    async with asyncio.timeout_at(until):
                        state = await turn_of(self._store, session, place, "queue", partial(_used, session), lambda first: None)
                    if (known := state.turn(place.turn)) is not None and not known.cut:
                        return replace(record, outputs=known.outputs, error=None, route="record")
                    self.begin(work, until)
                    filled = with_history(work.spec, work.inputs, state.turns)
                    kept = kept_for(work.spec, state)
                    asked = work if filled is work.inputs and kept is None else work.with_inputs(filled, kept=kept)
                    made = await answered(asked)
                    if not isinstance(made, CallRecord):
                        return made
                    record = made  # with what it has cost, whatever becomes of it
                    return await self._in_time(asked, made, until)
        except TimeoutError:
            await self._leave(session, work.call)
            late = CallTimeout(f"other calls of session {session} had it until its deadline", node=work.node)
            return _failed(record, late)
        except (DataError, SessionError) as error:
            return _failed(record, error)
        finally:
            self._end(work.call)

    def begin(self, work: CallRequest, until: float) -> None:
        """A call runs: its place is renewed until its turn is written. `until`: nobody waits for its answer any more."""
        if work.turn is not None and work.session is not None:
            self._open[work.call] = work.session
            self._ends[work.call] = until
            if not self._tasks:
                self._tasks.start(self._renew(), "renewal")

    async def written(self, work: CallRequest, record: CallRecord) -> CallRecord:
        """The record, once it is a turn of its session; with an error where it cannot be one.

        With other outputs where the call was asked again, and another process was first: those of the turn.
        """
        try:
            return await self._in_time(work, record, self._ends[work.call])
        except DspexError as error:
            return _failed(record, error)
        finally:
            self._end(work.call)

    async def _in_time(self, work: CallRequest, record: CallRecord, until: float) -> CallRecord:
        """The same until then; raises why it cannot be one."""
        try:
            async with asyncio.timeout_at(until - min(TO_TELL, work.timeout / 4)):
                turn = await self._write(work, record)
        except TimeoutError:
            raise SessionError(f"the turn of session {work.session} could not be stored", node=work.node) from None
        if record.saved is not None:  # it is where it belongs
            record = replace(record, saved=None)
        return record if turn is None or turn.cut or turn.outputs == record.outputs else replace(record, outputs=turn.outputs)

    def _end(self, call: str) -> None:
        self._open.pop(call, None)
        self._ends.pop(call, None)

    async def stop(self) -> None:
        """Renew no more."""
        await self._tasks.stop()

    async def _write(self, work: CallRequest, record: CallRecord) -> StoredTurn | None:
        """The turn of a call, once it is stored; None where it failed."""
        session = str(work.session)
        if record.outputs is None:
            await self._leave(session, work.call)
            return None
        most = most_of_turn(payloads.inline(self._bus, self._bus.max_payload))
        inputs, outputs = {k: v for k, v in work.inputs.items() if k != HISTORY}, record.outputs
        kept, secrets = work.kept, sorted(work.spec.secrets)

        def change(state: SessionState | None, now: float) -> SessionState:
            turn = StoredTurn(work.call, work.turn or work.call, now, inputs, outputs, secrets=secrets)
            there = _there(session, state)
            after = taken(there, now, turn, most)
            if record.saved is None or kept is None or after is there:
                return after
            return saved(session, after, record.saved, kept.revision, work.call)

        while True:
            try:
                state = await self._store.change(session, change)
                return next((turn for turn in state.turns if turn.call == work.call), None)
            except BusError as error:
                if not error.retryable:
                    raise
                self._seldom.warning("a turn is not stored yet", session=session, why=error.message)
            await asyncio.sleep(PAUSE)

    async def _leave(self, session: str, call: str) -> None:
        with suppress(BusError, SessionError):  # who cannot say so is passed over
            await self._store.change(session, lambda state, now: left(_there(session, state), call))

    async def _renew(self) -> None:
        while self._open:
            await asyncio.sleep(BEAT)
            for call, session in list(self._open.items()):
                try:
                    await self._store.change(session, partial(_renewed, session, call))
                except (Cancelled, SessionError):
                    self._open.pop(call, None)  # it has no place any more
                except BusError as error:
                    self._seldom.warning("the place of a call in a session is not renewed", session=session, why=error.message)


def _renewed(id: str, call: str, state: SessionState | None, now: float) -> SessionState:
    return renewed(_there(id, state), now, call)


def _used(id: str, state: SessionState | None, now: float) -> SessionState:
    return used(id, _there(id, state), now, None)


def _there(id: str, state: SessionState | None) -> SessionState:
    if state is None or state.ended:
        raise SessionEnded(f"session {id} was ended")
    return state


def _failed(record: CallRecord, error: DspexError) -> CallRecord:
    return replace(record, outputs=None, saved=None, error={**error.as_dict(), "traceback": ""})
