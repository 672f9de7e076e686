"""What a worker says to who asked.

To who waits for an interactive call: that it has it, what it says meanwhile, the result. To who submitted a call: its answer,
which is stored where only that user reads it, and said at once to the client that waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import codecs, subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import BusError, DataError, DecodeError, DspexError, Unreachable, Unsettled
from dspex.bus.message import in_session
from dspex.bus.port import WINDOW, WINDOW_BYTES, Ack, Bus, NewMessage
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.seldom import Seldom
from dspex.bus.serving import payloads
from dspex.bus.tasks import Tasks

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

# What a reply to an interactive call is, in its header subjects.KIND
ACCEPTED = "accepted"  # first frame of an answer: {"kind", "call", "worker", "free", "waiting"}; slots, and calls for one
BUSY = "busy"  # the worker's last slot was taken meanwhile: ask again
SAID = "said"  # meanwhile, where the request asks for it: a packed Saying
RESULT = "result"  # last frame: a packed CallRecord


class Said(NamedTuple):
    """The text of the output `field` that begins at its character `at`; what a program itself says has no field."""

    field: str
    at: int
    text: str


@dataclass(frozen=True)
class Saying:
    """One message of it, which may be lost. `number`: from 1, of all messages that the worker sends of the call."""

    number: int
    said: list[Said]

    def pack(self) -> bytes:
        """As `unpack` takes it."""
        return codecs.msgpack_bytes({"number": self.number, "said": [one._asdict() for one in self.said]})

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The message that `pack` wrote. Raises DecodeError."""
        known = checked(cls, "what a worker says", codecs.decode(data, codecs.MSGPACK))
        try:
            return cls(**known)
        except TypeError as e:
            raise DecodeError(f"not what a worker says: {e}") from None


LATER: Final = 0.05  # seconds that an answer may wait for others before it is stored, once who waits for it is told
HURRY: Final = 1.0
AGAIN: Final = 0.1  # seconds before an answer is stored again that was not; then twice as long, up to 5
_PASSING: Final = (Unreachable, Unsettled)  # errors after which it is


class AnswerStore:
    """The answers of a pool to submitted calls.

    A record with outputs is the answer, for whatever comes of it in an engine, that ends the call. One with an error is not:
    the engine may try again, and its dead letter says that it does not. Who waits is told to look then.
    """

    def __init__(self, bus: Bus, app: str, pool: str) -> None:
        self.bus, self.app, self.pool = bus, app, pool
        self._waiting: list[tuple[NewMessage, asyncio.Future[None]]] = []
        self._tasks = Tasks(f"answers of {pool}", lambda name, error: log.error("answers were not stored", exc_info=error))
        self._storing = False
        self._hurry = asyncio.Event()
        self._seldom = Seldom(log)

    async def give(self, record: CallRecord, request: CallRequest) -> None:
        """Tell who submitted the call, if somebody did, and store the answer.

        Returns once it is stored, or cannot be: the record is stored in any case. Who waits has been told, so it waits for
        others: to store one answer after the other, and ack its work, takes the processor from the next calls.
        """
        if (to := request.answer) is None:
            return
        told = vars(record) | {"number": None, "event": b"", "exchanges": b""}
        body = b"" if record.error is not None else codecs.msgpack_bytes(told)
        answered = 0 < len(body) <= payloads.most(self.bus)  # a larger one is no answer to the engine, either
        headers = {subjects.RUN: request.run, **in_session(request.session)}
        if to.client:
            subject = subjects.notice(self.app, self.pool, to.user, to.client, to.call)
            fits = answered and len(body) <= payloads.inline(self.bus, self.bus.max_payload)
            with suppress(BusError):  # who is not told looks
                self.bus.tell(subject, body if fits else b"", headers=headers)
        if not answered:
            return
        message = NewMessage(subjects.answer(self.app, self.pool, to.user, to.call), body, headers)
        if payloads.must_be_stored(self.bus, message):  # by itself: nothing small waits until there is room for it
            await self._store([message])
            return
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((message, stored))
        if not self._storing:
            self._storing = True
            self._tasks.start(self._store_waiting(), "answers")
        await stored

    async def _store_waiting(self) -> None:
        """Store what waits, and what has come meanwhile, until nothing is left: together, as the records are."""
        try:
            while self._waiting:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LATER):
                        await self._hurry.wait()
                batch, size = list[tuple[NewMessage, asyncio.Future[None]]](), 0
                while self._waiting and len(batch) < WINDOW and (not batch or size < WINDOW_BYTES):
                    batch.append(self._waiting.pop(0))
                    size += len(batch[-1][0].data)
                await self._store([message for message, _ in batch])
                for _, stored in batch:
                    if not stored.done():  # else who waited was stopped
                        stored.set_result(None)
        finally:
            self._storing = False

    async def _store(self, messages: Sequence[NewMessage]) -> None:
        pause = AGAIN
        while True:
            outcomes = await self._tried(messages)
            left = [m for m, outcome in zip(messages, outcomes) if isinstance(outcome, _PASSING)]
            for why in {o.message for o in outcomes if isinstance(o, DspexError) and not isinstance(o, _PASSING)}:
                self._seldom.warning("answers are not stored, their records are", pool=self.pool, why=why)
            if not left:
                return
            messages = left
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def _tried(self, messages: Sequence[NewMessage]) -> list[Ack | DspexError]:
        """What came of each. Where they cannot be sent together, one of them may be at fault: then each is sent alone."""
        try:
            # inline as far as it goes: who asked may not be allowed to read objects
            ready = [await payloads.checked_in(self.bus, self.app, m, self.bus.max_payload) for m in messages]
            return [*await self.bus.publish_all(ready)]
        except (BusError, DataError) as error:
            if len(messages) == 1 or isinstance(error, _PASSING):
                return [error] * len(messages)
        return [outcome for message in messages for outcome in await self._tried([message])]

    async def hurry(self) -> None:
        """Store what waits for others now, because the process ends; until it is stored, for `HURRY` seconds."""
        self._hurry.set()
        await self._tasks.finish(HURRY)
        self._hurry.clear()

    async def stop(self) -> None:
        """Store nothing more."""
        await self._tasks.stop()
