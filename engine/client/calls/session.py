"""A session as a client holds it: calls in their order, what was said before, and data that outlives everybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast, get_args

import orjson
from typing_extensions import TypeVar

from dspex.bus import codecs, subjects
from dspex.bus.errors import BusError, CallTimeout, Cancelled, ConfigError, SessionError
from dspex.bus.message import new_id
from dspex.bus.records import Usage
from dspex.bus.serving.sessions.line import turn_of
from dspex.bus.serving.sessions.state import (
    BEAT,
    InLine,
    Policy,
    SessionState,
    StoredTurn,
    kept_for,
    left,
    renewed,
    saved,
    used,
)
from dspex.bus.serving.sessions.store import SessionStore
from dspex.bus.settings.duration import Duration, seconds
from dspex.bus.tasks import Tasks
from dspex.engine.client import call as interactive
from dspex.engine.client.call import Result, Speaking
from dspex.engine.client.calls.asking import Meanwhile
from dspex.engine.client.calls.stream import Answer
from dspex.engine.client.publish import named
from dspex.engine.client.resolve import HasCall, Nodes, Resolved
from dspex.engine.client.run import Run
from dspex.engine.client.status.sessions import SessionInfo, Turn

if TYPE_CHECKING:
    from dspex.engine.client.client import Client

V = TypeVar("V", default=dict[str, Any])


class Session:
    """Ordered and durable: calls are answered one at a time, whatever process asks, and each sees the turns before it.

    A handle, which costs nothing until it is used. To leave `async with` does not end the session.

    Attributes:
        id: of the session. policy: what a call does where another one has the session; see `Client.session`.
    """

    def __init__(self, client: Client, nodes: Nodes, id: str, ttl: Duration | None, policy: Policy) -> None:
        """`ttl`: None: one that is there keeps its own."""
        subjects.session_key(id)  # it may be none
        if not {"\r", "\n"}.isdisjoint(id):  # no header can have it: each call would be refused
            raise ConfigError("a session cannot have an id with a line break", code="DX101", fix="leave it out")
        if policy not in get_args(Policy):
            raise ConfigError(f"there is no policy {policy!r}", code="DX105", fix=f"one of: {', '.join(get_args(Policy))}")
        self.id = id
        self.policy: Policy = policy
        self._client, self._nodes, self._ttl = client, nodes, None if ttl is None else seconds(ttl)
        if self._ttl is not None and not self._ttl > 0:
            raise ConfigError(f"a session cannot live for {ttl!r}", code="DX105", fix='a ttl such as "30d"', node="ttl")
        self._store = SessionStore(client.bus, client.app)
        self._unsure: tuple[int, bytes, str] | None = None  # revision, data and saver of what may have been saved
        self._beats = Tasks(f"session {id[:40]}")

    async def __aenter__(self) -> Self:
        await self._store.change(self.id, self._used)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        """The session goes on."""

    async def call(
        self, what: HasCall[V] | str, data: Any, /, *, timeout: Duration | None = None, id: str | None = None
    ) -> Result[V]:
        """Ask a worker, once it is this call's turn; with an answer it is the session's next turn.

        The turn is stored before the answer is given, by the worker: it is there also where this process dies meanwhile. An
        input `history` that is not given is filled with the turns that are kept (a `dspy.History`).

        Args:
            what, data: as of `Client.call`. timeout: of the whole call, the wait for its turn included.
            id: names the turn. Where there is one of that name, its answer is given and nobody is asked: so who does not know
                what became of a call asks again with the same id.

        Raises:
            SessionBusy: policy "reject", and another call has the session. SessionEnded. SessionConflict: another call has
            taken the place of this one, which was silent for too long. Cancelled: a later call came in its place. And what
            `Client.call` raises.
        """
        return await self._speak(what, data, None if timeout is None else seconds(timeout), id)

    def stream(
        self, what: HasCall[V] | str, data: Any, /, *, timeout: Duration | None = None, id: str | None = None
    ) -> Answer[V]:
        """The same, with the text of the answer as the model writes it; see `Client.stream`."""
        limit = None if timeout is None else seconds(timeout)
        return Answer(lambda told: self._speak(what, data, limit, id, told))

    async def publish(self, subject: str, data: Any) -> Run:
        """`Client.publish` of an event that belongs to the session."""
        return await self._client.publish(subject, data, session=self.id)

    async def history(self, *, limit: int = 50) -> AsyncIterator[Turn]:
        """The last turns that are kept, the oldest first: of a session its last 200, and at most 256 KiB of them."""
        state = await self._store.read(self.id)
        for turn in state.turns[max(0, len(state.turns) - limit) :] if state is not None else ():
            time, secrets = datetime.fromtimestamp(turn.time, UTC), frozenset(turn.secrets)
            yield Turn(turn.call, time, turn.inputs, turn.outputs, turn.cut, secrets)

    async def load(self) -> tuple[dict[str, Any], int]:
        """The data that was saved, and its revision; `{}` and 0 where there is none. Raises SessionEnded."""
        state, now = await self._store.read(self.id), await self._store.now()
        state = self._used(state, now)
        return dict(state.data), state.revision

    async def save(self, data: Mapping[str, Any], revision: int) -> int:
        """Store data, if `revision` is what `load` gave for the latest; its new revision.

        Raises SessionConflict where somebody saved meanwhile, SessionEnded, OutputTooLarge: at most 256 KiB. After another
        error, such as of a connection that is cut, it may be stored or not: the same once more, on this object, stores it once.
        """
        packed = codecs.msgpack_bytes(data)
        unsure, self._unsure = self._unsure, None
        saver = unsure[2] if unsure is not None and unsure[:2] == (revision, packed) else new_id()
        try:
            state = await self._store.change(
                self.id, lambda found, now: saved(self.id, self._used(found, now), data, revision, saver)
            )
        except (BusError, asyncio.CancelledError):
            self._unsure = revision, packed, saver
            raise
        return state.revision

    async def end(self) -> bool:
        """End it, and forget its data and its turns; whether it was there and had not ended.

        Its id can be used for another session after an hour, or its ttl where that is shorter.
        """
        return await self._store.end(self.id)

    async def info(self) -> SessionInfo | None:
        """What is known of it; None where there is no such session."""
        state = await self._store.read(self.id)
        return None if state is None else SessionInfo.of(self.id, state, await self._store.now())

    # -- its turn
    async def _speak(
        self, what: HasCall[V] | str, data: Any, timeout: float | None, id: str | None, told: Meanwhile | None = None
    ) -> Result[V]:
        """See `call`; with `told`, `stream`."""
        if id is not None:
            named(id)
        asked = await self._client.resolve(what)
        limit = interactive.limit_of(what, asked, timeout, streamed=told is not None)
        place, end = InLine(new_id(), 0.0, asked.pool, id or ""), asyncio.get_running_loop().time() + limit
        spoken = False
        try:
            state = await self._in_time(place, limit)
            if id is not None and (known := state.turn(id)) is not None:
                return _again(asked, data, known, told)
            beats = self._beats.start(self._beat(place), "place")
            try:
                left_over = end - asyncio.get_running_loop().time()
                speaking = Speaking(place.call, id or place.call, state.turns, kept_for(asked.spec, state))
                result = await interactive.call(
                    self._client.bus, self._nodes, what, data, timeout=left_over, session=self.id, told=told, speaking=speaking
                )
            finally:
                beats.cancel()
            spoken = True
            return result
        finally:
            if not spoken:
                with suppress(BusError, SessionError):  # who cannot say so is passed over
                    await self._store.change(self.id, lambda state, now: left(self._used(state, now), place.call))
            self._store.pass_on(self.id)  # the worker has written the turn before it answered

    async def _in_time(self, place: InLine, limit: float) -> SessionState:
        """Wait for its turn, for so long. Raises CallTimeout."""
        try:
            async with asyncio.timeout(limit):
                return await turn_of(self._store, self.id, place, self.policy, self._used, self._interrupted)
        except TimeoutError:
            text = f"other calls of session {self.id} had it for {limit:g} s"
            raise CallTimeout(text, fix="wait longer, or use another policy").of_call() from None

    def _used(self, state: SessionState | None, now: float) -> SessionState:
        return used(self.id, state, now, self._ttl)

    def _interrupted(self, first: InLine) -> None:
        """Tell the pool of a call whose place another one has taken."""
        said = orjson.dumps({"kind": "cancel", "call": first.call})
        with suppress(BusError):  # who cannot be told has no turn in any case
            self._client.bus.tell(subjects.control(self._client.app, first.pool), said)

    async def _beat(self, place: InLine) -> None:
        """Renew the place for as long as there is one."""
        while True:
            await asyncio.sleep(BEAT)
            try:
                await self._store.change(self.id, lambda state, now: renewed(self._used(state, now), now, place.call))
            except (Cancelled, SessionError):
                return  # the answer says why
            except BusError:
                pass  # the next one may come through


def _again(asked: Resolved[V], data: Any, turn: StoredTurn, told: Meanwhile | None) -> Result[V]:
    """The answer of a turn that there is. Raises SessionError for one that is not there whole."""
    if turn.cut:
        why = f"the answer was too large for its session, which has its beginning; the record of call {turn.call} has all of it"
        raise SessionError(why, fix="ask again under another id, or read what is kept: session.history()")
    outputs = dict(turn.outputs)
    if told is not None:
        told.ended(outputs)
    answer = asked.call.accept(data, outputs) if asked.call else cast("V", outputs)
    return Result(answer, turn.call, "record", Usage(), "", "", 1, timedelta(0), "")
