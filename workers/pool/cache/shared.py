"""Answers in the bucket of an application: all processes of a pool share them, and they outlive the processes.

What is there was written by somebody who may do so, and is checked: by type, by the pool's key where its records are signed,
and it is sealed where payloads are. Whatever goes wrong here, the call is made instead.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final, NamedTuple

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import codecs, subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import BusError, DataError
from dspex.bus.message import Message, in_session
from dspex.bus.port import Bucket, Bus, NewMessage
from dspex.bus.records import Outputs
from dspex.bus.seldom import Seldom
from dspex.bus.serving.keys.signatures import Keys, is_signed, signed
from dspex.bus.serving.server_clock import ServerClock
from dspex.bus.tasks import Tasks
from dspex.workers.pool.cache.kept import CachedAnswer

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

LARGEST: Final = 256 << 10  # bytes of an answer that is shared
WAITING: Final = 1000  # answers that are on their way to the bucket: more are not shared
AGAIN: Final = 10.0  # seconds until the bucket is looked for again, where there is none


class _Stored(NamedTuple):
    """A value of the bucket: a message, as it would be stored in a stream."""

    data: bytes
    headers: dict[str, str]


class _Body(NamedTuple):
    """Its body. `at`: the server's time."""

    key: bytes
    outputs: Outputs
    lm: str
    program: str
    dspy_version: str
    call: str
    warning: str
    at: float


class SharedAnswers:
    """The answers of one pool in the bucket.

    Args:
        clock: the server's time.
        keys: of the pool; without them nothing is signed.
    """

    def __init__(self, bus: Bus, app: str, pool: str, clock: ServerClock, keys: Keys) -> None:
        self._bus, self._app, self._pool, self._clock, self._keys = bus, app, pool, clock, keys
        self._bucket: Bucket | None = None
        self._look_at = -math.inf
        self._tasks = Tasks(f"cache of {pool}")
        self._seldom = Seldom(log)

    async def get(self, key: bytes, ttl: float, session: str | None) -> tuple[CachedAnswer, float] | None:
        """The answer, if it is not older than `ttl` seconds, and how old it is. Raises nothing."""
        try:
            if (bucket := await self._there()) is None:
                return None
            where = subjects.cache_key(self._pool, ttl, key)
            if (found := await bucket.get(where)) is None or (body := await self._opened(found[0], where, session)) is None:
                return None
        except (BusError, DataError) as error:
            self._failed("a cached answer was not read", error)
            return None
        age = self._clock.age(body.at)
        if body.key != key or not age < ttl:
            return None
        size = len(found[0])
        return CachedAnswer(body.outputs, body.lm, body.program, body.dspy_version, body.call, 0.0, size, body.warning), age

    def put(self, key: bytes, ttl: float, session: str | None, answer: CachedAnswer) -> None:
        """Share an answer, in a moment. One that is too large is not shared."""
        if answer.size <= LARGEST and len(self._tasks) < WAITING and self._clock.known:
            self._tasks.start(self._put(key, ttl, session, answer), "share")

    async def drain(self, seconds: float) -> None:
        """Have those shared that are on their way, within so many seconds."""
        await self._tasks.finish(seconds)
        await self._tasks.stop()

    async def _put(self, key: bytes, ttl: float, session: str | None, answer: CachedAnswer) -> None:
        try:
            if (bucket := await self._there()) is None:
                return
            where = subjects.cache_key(self._pool, ttl, key)
            body = _Body(
                key, answer.outputs, answer.lm, answer.program, answer.dspy_version, answer.call, answer.warning, self._clock()
            )
            message = NewMessage(
                where, codecs.msgpack_bytes(body._asdict()), {subjects.MESSAGE_ID: where, **in_session(session)}
            )
            if self._bus.sealing is not None:
                message = await self._bus.sealing.sealed(message)
            if self._keys:
                message = signed(message, self._keys)
            stored = _Stored(message.data, dict(message.headers or {}))
            await bucket.put(where, codecs.msgpack_bytes(stored._asdict()))
        except (BusError, DataError) as error:
            self._failed("an answer was not shared", error)

    async def _opened(self, value: bytes, where: str, session: str | None) -> _Body | None:
        """What the value says. None where nobody can read it, or nobody of this pool wrote it. Raises BusError, DataError."""
        stored: _Stored = checked(_Stored, "a cached answer", codecs.decode(value, codecs.MSGPACK))
        headers = {**stored.headers, subjects.MESSAGE_ID: where, subjects.SESSION: session or ""}
        message = Message(where, stored.data, headers)
        if self._keys and not is_signed(message, self._keys):
            return None
        if subjects.SEALED in headers:
            whole = await self._bus.sealing.opened(message) if self._bus.sealing is not None else None
        else:
            whole = message if self._bus.sealing is None else None  # in clear text, nobody who seals wrote it
        if whole is None:
            return None
        body: _Body = checked(_Body, "a cached answer", codecs.decode(whole.data, codecs.MSGPACK))
        return body

    async def _there(self) -> Bucket | None:
        """The bucket; None where there is none, because nothing was applied. Raises BusError."""
        now = asyncio.get_running_loop().time()
        if self._bucket is None and now >= self._look_at:
            self._look_at = now + AGAIN
            name = subjects.cache(self._app)
            if self._clock.known and await self._bus.has("bucket", name):
                self._bucket = await self._bus.bucket(name)
        return self._bucket

    def _failed(self, what: str, error: BusError | DataError) -> None:
        self._seldom.warning(what, pool=self._pool, why=error.message)
