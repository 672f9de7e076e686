"""The answers to submitted calls, as who submitted them hears and finds them.

A worker tells the client that waits, and stores its answer where only the user who submitted the call reads it; the dead letter
of a call that failed lies where that user reads it, too. So nobody needs the right to read the application's stream.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from dspex.bus import subjects
from dspex.bus.errors import (
    CallError,
    CallTimeout,
    DecodeError,
    DspexError,
    NotStored,
    RunFailed,
    RunNotFound,
    Unreachable,
    from_dict,
    is_seconds,
)
from dspex.bus.message import Message, new_id
from dspex.bus.port import Bus, Subscription
from dspex.bus.records import CallRecord, Letter, Usage
from dspex.bus.serving import payloads
from dspex.bus.settings.duration import Duration, human, seconds
from dspex.engine.client.call import Result

Stored = TypeVar("Stored", CallRecord, Letter)
LOOK: Final = 1.0  # seconds after which who waits looks for what is stored, in case nobody told it; then twice as long
MOST_LOOK: Final = 2.0
SOON: Final = 0.005  # the same where there will be something in a moment, and where nobody is told


class HeardAnswer:
    """What a client hears of a call that it has submitted. `answer`: a worker's record with outputs, once it is there."""

    def __init__(self) -> None:
        self.answer: CallRecord | None = None
        self._news = asyncio.Event()

    def take(self, message: Message) -> None:
        """What a worker says: its record; nothing where something is to be looked for."""
        if message.data:
            with suppress(DecodeError):  # no worker wrote it
                self.answer = _with_outputs(CallRecord.unpack(message.data)) or self.answer
        self._news.set()

    async def wait(self, timeout: float) -> bool:
        """Wait for news, for so many seconds; whether there are some."""
        if not self._news.is_set() and timeout > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._news.wait()
        heard = self._news.is_set()
        self._news.clear()
        return heard


class Submission(NamedTuple):
    """A submitted call, as its run is named: `pool/call`. `told`: what the client hears that submitted it."""

    pool: str
    call: str
    told: HeardAnswer | None = None

    @classmethod
    def of(cls, id: str) -> Submission | None:
        """That of a run's id; None for another kind of id."""
        pool, slash, call = id.partition("/")
        return cls(pool, call) if slash else None


class SubmittedCalls:
    """What the runs of a client hear that it has submitted and still holds: one subscription for each pool.

    `client`: how workers name it.
    """

    def __init__(self, app: str) -> None:
        self._app = app
        self.client = new_id().replace("-", "")
        self._user = ""
        self._told = WeakValueDictionary[tuple[str, str], HeardAnswer]()
        self._subscriptions: dict[str, Subscription] = {}
        self._one = asyncio.Lock()

    def user(self, bus: Bus) -> str:
        """In whose name the client submits."""
        self._user = self._user or user_of(bus)
        return self._user

    async def told(self, bus: Bus, pool: str, call: str) -> HeardAnswer:
        """What will be heard of a call that is about to be submitted to a pool. Raises BusError."""
        if pool not in self._subscriptions:
            async with self._one:
                if pool not in self._subscriptions:
                    subject = subjects.notice(self._app, pool, self.user(bus), self.client, "*")
                    self._subscriptions[pool] = await bus.subscribe(subject, self._hear)
        found = self._told.get((pool, call)) or HeardAnswer()
        self._told[pool, call] = found
        return found

    async def _hear(self, message: Message) -> None:
        _, _, _, pool, _, _, call = message.subject.split(".")
        if (told := self._told.get((pool, call))) is not None:
            told.take(message)


def user_of(bus: Bus) -> str:
    """Who this connection is, as its inboxes say: in whose name it submits."""
    inbox = bus.inbox(lambda message: None)
    inbox.close()
    return subjects.inbox_user(inbox.subject)


async def answer_to(bus: Bus, app: str, of: Submission, timeout: Duration | None) -> Result[Any]:
    """The result of a submitted call, when it is there.

    Raises the call's error; CallTimeout after `timeout`; RunFailed where its own time is over; RunNotFound where the
    application takes no submitted calls, or where there is no timeout and this user can see that none of that name is stored.
    """
    clock, limit = asyncio.get_running_loop().time, math.inf if timeout is None else seconds(timeout)
    end, told, pause = clock() + limit, of.told or HeardAnswer(), LOOK if of.told is not None else 0.0
    stored = of.told is not None or limit < math.inf  # it is, or who waits for it ends by itself
    while True:
        if await told.wait(min(pause, end - clock())):
            pause = 0.0
        if (found := told.answer) is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(LOOK, end - clock())):
                    found = await _look(bus, app, of)
        if found is not None:
            return result_of(found)
        if clock() >= end:
            why = f"the call {of.pool}/{of.call} has no answer after {human(limit)}"
            raise CallTimeout(why, run=of.call, fix="wait longer, or see what it waits for: dspex status")
        if not stored and pause > LOOK:
            if not (stored := await _is_stored(bus, app, of)) and (found := await _look(bus, app, of)) is None:
                raise RunNotFound(f"no submitted call {of.pool}/{of.call} is stored", run=of.call)
            continue
        pause = min(max(SOON, 2 * pause), MOST_LOOK)


async def _is_stored(bus: Bus, app: str, of: Submission) -> bool:
    """Whether the event is there that submitted a call; so, too, where this user may not look for it."""
    stream = subjects.sources(app)
    try:
        if await bus.stream(stream) is None:
            return False
        return await bus.last(stream, subjects.submit(app, of.pool, "*", user_of(bus), of.call)) is not None
    except DspexError:
        return True


async def _look(bus: Bus, app: str, of: Submission) -> CallRecord | None:
    """The answer that is stored; None where there is none yet. Raises what became of the call where that is no answer."""
    user, failed = user_of(bus), None
    try:
        stored = await _last(bus, app, subjects.answers(app), subjects.answer(app, of.pool, user, of.call))
        record = _read(CallRecord, stored)
        if record is not None and (record.error is not None or record.outputs is not None):
            failed = record.error
        else:
            letter = _read(Letter, await _last(bus, app, subjects.stream(app), subjects.dead_submitted(app, user, of.call)))
            failed, record = letter.error if letter is not None else None, None
    except NotStored as error:
        raise RunNotFound("the application takes no submitted calls", run=of.call) from error
    except Unreachable:
        return None  # it is looked for again
    if failed is not None:
        raise _error_of(failed, of)
    return record


def _read(kind: type[Stored], message: Message | None) -> Stored | None:
    """What is stored; None for what no worker and no engine wrote."""
    with suppress(DecodeError):
        return kind.unpack(message.data) if message is not None else None
    return None


async def _last(bus: Bus, app: str, stream: str, subject: str) -> Message | None:
    found = (await bus.multi_last(stream, [subject])).get(subject)
    return None if found is None else await payloads.required(bus, app, found)


def _with_outputs(record: CallRecord) -> CallRecord | None:
    return record if record.outputs is not None and record.error is None else None


def _error_of(failed: Mapping[str, Any], of: Submission) -> DspexError:
    error = from_dict(failed)
    if isinstance(error, CallTimeout):  # else it would look as if one had to wait longer
        return RunFailed(
            error.message, run=of.call, fix="raise its timeout or its deadline, or see why nobody answers: dspex status"
        )
    return error.of_call() if isinstance(error, CallError) else error


def result_of(record: CallRecord) -> Result[Any]:
    """What a record with outputs says to who asked."""
    return Result(
        data=dict(record.outputs or {}),
        id=record.call,
        route=record.route,
        usage=Usage.read(record.usage),
        lm=record.lm,
        worker=record.worker,
        attempts=record.attempt,
        elapsed=timedelta(seconds=record.elapsed if is_seconds(record.elapsed) else 0.0),  # anybody may have written it
        dspy_version=record.dspy_version,
        state=record.state,
        warning=record.warning,
    )
