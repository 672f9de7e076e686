"""Turns of sessions: a call that is to be one is a turn once its answer is stored there, and only then its caller is told.

So the turn is there also where the caller dies meanwhile; and where this process dies, there is none, nobody got an answer, and
who asks again does not find half of one.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from dspex.bus.errors import BusError, Cancelled, DecodeError, DspexError, SessionEnded, SessionError
from dspex.bus.port import Bus
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.seldom import Seldom
from dspex.bus.serving import payloads
from dspex.bus.serving.sessions.state import (
    BEAT,
    HISTORY,
    MOST_BYTES,
    SessionState,
    StoredTurn,
    check_inputs,
    left,
    most_of_turn,
    renewed,
    taken,
)
from dspex.bus.serving.sessions.store import SessionStore
from dspex.bus.tasks import Tasks
from dspex.workers.answer import error_map

log = structlog.get_logger("dspex.workers")
PAUSE: Final = 0.2  # seconds between two tries to store a turn
TO_TELL: Final = 0.5  # seconds before the caller gives up, in which it can be told that its turn could not be stored


class Turns:
    """The calls of a pool that are to be turns."""

    def __init__(self, bus: Bus, app: str) -> None:
        self._store, self._bus = SessionStore(bus, app), bus
        self._open: dict[str, str] = {}  # call → session, of those that run
        self._ends: dict[str, float] = {}  # call → when nobody waits for its answer any more
        self._seldom = Seldom(log)
        self._tasks = Tasks("turns", lambda name, error: log.error("places of sessions are not renewed", exc_info=error))

    @staticmethod
    def check(work: CallRequest, packed: bytes) -> None:
        """Raise DecodeError for a turn of no session, InvalidInput for one whose inputs alone are too large."""
        if work.turn is not None and not work.session:
            raise DecodeError("it is to be a turn, and does not say of which session")
        if work.turn is not None and len(packed) > MOST_BYTES:
            check_inputs(work.inputs)

    def begin(self, work: CallRequest) -> None:
        """A call runs: its place is renewed until its turn is written."""
        if work.turn is not None and work.session is not None:
            self._open[work.call] = work.session
            self._ends[work.call] = asyncio.get_running_loop().time() + work.timeout
            if not self._tasks:
                self._tasks.start(self._renew(), "renewal")

    async def written(self, work: CallRequest, record: CallRecord) -> CallRecord:
        """The record, once it is a turn of its session; with an error where it cannot be one.

        With other outputs where the call was asked again, and another process was first: those of the turn.
        """
        try:
            async with asyncio.timeout_at(self._ends[work.call] - min(TO_TELL, work.timeout / 4)):
                turn = await self._write(work, record)
        except TimeoutError:
            return _failed(record, SessionError(f"the turn of session {work.session} could not be stored", node=work.node))
        except DspexError as error:
            return _failed(record, error)
        finally:
            self._open.pop(work.call, None)
            self._ends.pop(work.call, None)
        return record if turn is None or turn.cut or turn.outputs == record.outputs else replace(record, outputs=turn.outputs)

    async def stop(self) -> None:
        """Renew no more."""
        await self._tasks.stop()

    async def _write(self, work: CallRequest, record: CallRecord) -> StoredTurn | None:
        """The turn of a call, once it is stored; None where it failed."""
        session = str(work.session)
        if record.outputs is None:
            with suppress(BusError, SessionError):  # its caller does the same
                await self._store.change(session, lambda state, now: left(_there(session, state), work.call))
            return None
        most = most_of_turn(payloads.inline(self._bus, self._bus.max_payload))
        inputs, outputs = {k: v for k, v in work.inputs.items() if k != HISTORY}, record.outputs

        def change(state: SessionState | None, now: float) -> SessionState:
            turn = StoredTurn(work.call, work.turn or work.call, now, inputs, outputs)
            return taken(_there(session, state), now, turn, most)

        while True:
            try:
                state = await self._store.change(session, change)
                return next((turn for turn in state.turns if turn.call == work.call), None)
            except BusError as error:
                if not error.retryable:
                    raise
                self._seldom.warning("a turn is not stored yet", session=session, why=error.message)
            await asyncio.sleep(PAUSE)

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


def _there(id: str, state: SessionState | None) -> SessionState:
    if state is None or state.ended:
        raise SessionEnded(f"session {id} was ended")
    return state


def _failed(record: CallRecord, error: DspexError) -> CallRecord:
    return replace(record, outputs=None, error=error_map(error))
