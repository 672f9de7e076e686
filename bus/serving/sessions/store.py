"""Reads and changes what is stored of sessions: the bucket `_sessions`, one key each.

    {"head": what anybody who may read the bucket sees, and "seal", which key the body is sealed with; "" for none
     "body": data and turns as MessagePack, sealed where the application's payloads are}

The head is in clear, so that who cleans up can see what is over, whether or not it has the key.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from typing_extensions import TypedDict

from dspex.bus import codecs, subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import DecodeError, Fenced, NotAllowed, SessionError, Unsettled, is_seconds
from dspex.bus.message import Message, in_session
from dspex.bus.port import Bucket, Bus, NewMessage
from dspex.bus.serving.keys.clear_text import SETTING, may_store
from dspex.bus.serving.sessions.state import SessionState, ended

FRESH: Final = 60.0  # seconds for which the server's clock is carried on without asking
_FEW: Final = 256  # changes that are read one by one
AT_ONCE: Final = 16  # sessions that are read together
SessionChange = Callable[[SessionState | None, float], SessionState]

_HEAD: Final = ("ttl", "touched", "ended", "count", "revision", "line", "saver")
_BODY: Final = ("data", "turns")


class _Stored(TypedDict):
    head: dict[str, Any]
    body: bytes


class _Body(TypedDict):
    data: dict[str, Any]
    turns: list[Any]


@dataclass
class _Line:
    """Who wants to change a session over one connection. `count`: the one that does, and those that wait."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    count: int = 0


_WAITING: Final = weakref.WeakKeyDictionary[Bus, dict[str, list[asyncio.Event]]]()  # likewise, who waits for a turn
_LINES: Final = weakref.WeakKeyDictionary[Bus, dict[str, _Line]]()  # of each connection, by the key of the session


class KnownHeads(NamedTuple):
    """The heads of all sessions by id, as of a revision of the bucket."""

    heads: Mapping[str, SessionState] = {}
    revision: int = 0


class SessionStore:
    """The sessions of an application."""

    def __init__(self, bus: Bus, app: str) -> None:
        self._bus, self._app = bus, app
        self._opened: Bucket | None = None
        self._ahead, self._asked = 0.0, float("-inf")  # of the server's clock before that of the loop; when it was asked

    async def read(self, id: str) -> SessionState | None:
        """A session; None where there is none. Raises BusError; SessionError where what is stored is none."""
        stored = await (await self._bucket()).get(subjects.session_key(id))
        return None if stored is None else await self._unpacked(id, stored[0])

    async def head(self, id: str) -> SessionState | None:
        """The same without data and turns, for which no key is needed; one that cannot be read has ended. Raises BusError."""
        stored = await (await self._bucket()).get(subjects.session_key(id))
        return None if stored is None else _head(stored[0])

    async def heads(self, known: KnownHeads) -> KnownHeads:
        """The heads of all sessions. `known`: as it was before: only what was changed since is read. Raises BusError."""
        if not (ids := await self.ids()):
            return KnownHeads()
        bucket = await self._bucket()
        revision = await bucket.revision()  # before anything is read: what is put meanwhile is read the next time
        few = 0 <= revision - known.revision <= _FEW  # else it is another bucket, or all are read sooner
        heads = {id: known.heads[id] for id in ids if few and id in known.heads}
        if heads:
            changed = await bucket.items(after=known.revision)
            heads |= {subjects.session_of(key): _head(stored) for key, (stored, _) in changed.items()}
        left = [id for id in ids if id not in heads]
        for start in range(0, len(left), AT_ONCE):
            some = left[start : start + AT_ONCE]
            heads |= {id: head for id, head in zip(some, await asyncio.gather(*map(self.head, some))) if head is not None}
        return KnownHeads(heads, revision)

    async def change(self, id: str, change: SessionChange) -> SessionState:
        """The session as `change` makes it of what is stored and of the time. The same thing twice must be the same as once.

        Called again where somebody else changed it meanwhile. Changes over one connection are made in the order in which they
        were asked for: else the first call of a process could find itself behind its second. Raises what it raises, BusError,
        SessionError.
        """
        async with self._in_line(subjects.session_key(id)):
            return await self._change(id, change)

    @asynccontextmanager
    async def _in_line(self, key: str) -> AsyncGenerator[None]:
        lines = _LINES.setdefault(self._bus, {})
        line = lines.setdefault(f"{self._app} {key}", _Line())
        line.count += 1
        try:
            async with line.lock:
                yield
        finally:
            line.count -= 1
            if not line.count:
                del lines[f"{self._app} {key}"]

    async def _change(self, id: str, change: SessionChange) -> SessionState:
        bucket, key = await self._bucket(), subjects.session_key(id)
        while True:
            stored, now = await asyncio.gather(bucket.get(key), self.now())
            before = None if stored is None else await self._unpacked(id, stored[0])
            if (after := change(before, now)) == before:
                return after
            try:
                await bucket.put(key, await self._packed(id, after), revision=0 if stored is None else stored[1])
            except (Fenced, Unsettled):
                continue  # what is stored now says what became of it
            return after

    @contextmanager
    def waiting(self, id: str) -> Generator[asyncio.Event]:
        """Wait for a turn in a session: the event is set when a call over this connection ends, for the first that waits."""
        sessions, key = _WAITING.setdefault(self._bus, {}), f"{self._app} {id}"
        mine = asyncio.Event()
        sessions.setdefault(key, []).append(mine)
        try:
            yield mine
        finally:
            sessions[key].remove(mine)
            if not sessions[key]:
                del sessions[key]

    def pass_on(self, id: str) -> None:
        """A call has had its turn, or left: the next one over this connection may look at once."""
        if waiting := _WAITING.get(self._bus, {}).get(f"{self._app} {id}"):
            waiting[0].set()

    async def ids(self) -> list[str]:
        """The ids of all sessions that there are, those that are over included."""
        if not await self._bus.has("bucket", subjects.sessions(self._app)):
            return []
        return [subjects.session_of(key) for key in await (await self._bucket()).keys()]

    async def remove(self, id: str, revision: int | None = None) -> None:
        """Leave nothing of a session: its id may be used for another one. `revision`: unless it has changed since that."""
        if await self._bus.has("bucket", subjects.sessions(self._app)):
            await (await self._bucket()).delete(subjects.session_key(id), revision=revision)

    async def purge(self) -> int:
        """Remove what has ended and need not be remembered as that any more; how many. Nobody uses such a session."""
        if not (ids := await self.ids()):
            return 0
        bucket, count = await self._bucket(), 0
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            now = await self.now()
            found = await asyncio.gather(*(bucket.get(subjects.session_key(id)) for id in some))
            for id, stored in zip(some, found):
                if stored is not None and _head(stored[0]).forgotten(now):
                    await self.remove(id, stored[1])  # another engine may have, and a new session may be there
                    count += 1
        return count

    async def end(self, id: str) -> bool:
        """End a session; whether there was one that had not ended. Of what is no session nothing is left."""
        try:
            found = await self.read(id)
        except SessionError:
            await self.remove(id)
            return True
        if found is None or found.ended:
            return False
        await self.change(id, lambda state, now: ended(state or found, now))
        return True

    async def now(self) -> float:
        """What the server's clock says, in seconds since the epoch."""
        here = asyncio.get_running_loop().time()
        if here - self._asked > FRESH:
            there = await (await self._bucket()).time()
            self._ahead, self._asked = there - here, here
        return asyncio.get_running_loop().time() + self._ahead

    async def _bucket(self) -> Bucket:
        if self._opened is None:
            self._opened = await self._bus.bucket(subjects.sessions(self._app))
        return self._opened

    async def _packed(self, id: str, state: SessionState) -> bytes:
        # named tuples become maps here, and not one by one in the encoder, which takes ten times as long
        body, seal = codecs.msgpack_bytes({"data": state.data, "turns": [turn.stored() for turn in state.turns]}), ""
        await may_store(self._bus, self._app)
        if self._bus.sealing is not None:
            sealed = await self._bus.sealing.sealed(NewMessage("", body, in_session(id)))
            body, seal = sealed.data, (sealed.headers or {})[subjects.SEALED]
        head = {name: getattr(state, name) for name in _HEAD} | {"seal": seal}
        return codecs.msgpack_bytes({"head": head, "body": body})

    async def _unpacked(self, id: str, stored: bytes) -> SessionState:
        """What is stored, whoever wrote it. One whose key was deleted is ended."""
        try:
            raw: _Stored = checked(_Stored, "a session", codecs.decode(stored, codecs.MSGPACK))
            seal, body = raw["head"].pop("seal", ""), raw["body"]
            if seal:
                opened = await self._opened_body(id, str(seal), body)
                if opened is None:
                    head = _sound(raw["head"])
                    return ended(head, head.touched)
                body = opened
            return _sound(raw["head"] | checked(_Body, "a session", codecs.decode(body, codecs.MSGPACK)))
        except DecodeError as error:
            why = f"what is stored of session {id[:100]} is none: {error}"
            raise SessionError(why, code="DX705", fix="end it, which leaves nothing of that: dspex sessions end ID") from None

    async def _opened_body(self, id: str, seal: str, body: bytes) -> bytes | None:
        if self._bus.sealing is None:
            raise NotAllowed(f"session {id} is sealed, and this process has no key", fix=f'set {SETTING} = "NAME"')
        headers = {subjects.SEALED: seal, **in_session(id)}
        opened = await self._bus.sealing.opened(Message("", body, headers, 0, 0.0))
        return opened.data if opened is not None else None


def _head(stored: bytes) -> SessionState:
    """What is stored of a session without data and turns; one that cannot be read has ended."""
    try:
        return _sound(checked(_Stored, "a session", codecs.decode(stored, codecs.MSGPACK))["head"])
    except DecodeError:
        return SessionState(0.0, 0.0, ended=True)


def _sound(raw: Mapping[str, Any]) -> SessionState:
    """A session of plain data, whoever wrote it. Raises DecodeError, also for times that nobody can have."""
    try:
        state = SessionState(**checked(SessionState, "a session", {k: v for k, v in raw.items() if k in (*_HEAD, *_BODY)}))
    except TypeError as error:
        raise DecodeError(f"not a session of dspex: {error}") from None
    times = (state.ttl, state.touched, *(place.until for place in state.line), *(turn.time for turn in state.turns))
    if not all(map(is_seconds, times)) or min(state.count, state.revision) < 0:
        raise DecodeError("not a session of dspex: its times are no numbers of seconds, or its counts below 0")
    return state
