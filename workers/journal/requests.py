"""The model and tool requests of one attempt at a call: which are answered from the journal, and which are made.

A request is found by what it asks (its digest) and by how often the same was asked before. Each is stored before the next
thing happens, so a death pays for what was under way, and for nothing else.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import takewhile
from time import monotonic
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

import orjson
import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus.codecs.plain import OPTIONS
from dspex.bus.errors import DspexError, InvalidInput, OutcomeUnknown, ProgramError
from dspex.bus.records import Usage
from dspex.bus.serving.programs.exchanges import Exchanges
from dspex.workers.journal.entries import JournalEntry, RequestPlace
from dspex.workers.journal.replies import exchange
from dspex.workers.journal.within import Journaling, Metering, WithinAttempt

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")
T = TypeVar("T")


class StopCall(BaseException):
    """Ends a call from within its program. Not an Exception: an agent takes one of those for what its tool said, and goes on.

    Attributes:
        error: what the call ends with.
    """

    def __init__(self, error: DspexError) -> None:
        super().__init__(error.message)
        self.error = error


class WhatIsAsked(NamedTuple):
    """What is about to be asked.

    Attributes:
        name: of the tool; "" for a model.
        about: plain data that says what is asked; equal for what is the same request.
        effect: it changes something elsewhere, so that it begins is stored first. once: it is never begun twice.
    """

    kind: Literal["model", "tool"]
    name: str
    about: Mapping[str, Any]
    effect: bool = False
    once: bool = False


@dataclass
class OpenRequest:
    """A request that is being made. `found`: what an earlier attempt left of it. `key`: its idempotency key."""

    asking: WhatIsAsked
    place: RequestPlace
    key: str
    found: JournalEntry | None = None
    kept: bool = True  # what comes of it is stored
    since: float = field(default_factory=monotonic)

    @property
    def answered(self) -> bool:
        """Whether it need not be made."""
        return self.found is not None and not self.found.begun


_inside: ContextVar[str] = ContextVar("dspex_tool", default="")  # the key of the tool that runs now
_requests: ContextVar[Requests | None] = ContextVar("dspex_requests", default=None)


class Requests:
    """The requests of one attempt. Made on the loop of its process; asked in any thread.

    Args:
        call: id of the call.
        journal: None where the call has none: then each request is made.

    Attributes:
        made: how many were made in this attempt, also in a batch.
        lm: the profile that is asked now.
        priced: adds what tokens cost.
        loop: on which the program was begun.
        ending: why the call ends, whatever its program makes of it.
        context: what `dspex.workers.context()` gives, for threads that only DSPy knows.
        meter: of a job of an optimizer; None for other calls.
        exchanges: what was asked and said, for the record.
    """

    def __init__(self, call: str, journal: Journaling | None) -> None:
        self.call, self.journal = call, journal
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0  # of the loop
        self._found: dict[RequestPlace, JournalEntry] | None = None  # None: the journal is not open
        self._unasked: set[RequestPlace] = set()  # of those that earlier attempts left
        self._occurrences: dict[tuple[str, str], int] = {}
        self.made = self._answered = 0
        self.lm = ""
        self.priced: Callable[[Usage], Usage] = lambda used: used
        self.ending: DspexError | None = None
        self.context: object = None
        self.meter: Metering | None = None
        self.exchanges = Exchanges(0)

    def __deepcopy__(self, memo: object) -> Requests:
        return self

    @cached_property
    def _opening(self) -> asyncio.Lock:
        return asyncio.Lock()  # most calls have no journal

    def begin(self, lm: str) -> None:
        """The program begins, with this profile; also where it began before in this attempt, with another one."""
        self.lm = lm
        self.loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._occurrences.clear()
        _requests.set(self)

    def forget_last(self) -> None:
        """Ask models again what they have answered since a tool was used last: something of that did not fit. What came before
        has led to what was done.
        """
        found = self._found or {}
        for place in list(takewhile(lambda place: place[0] == "model", reversed(found))):
            del found[place]

    def counts(self, ended: bool) -> dict[str, int]:
        """How many requests were "made", answered from the "journal", and "missed", which are answered there. {} for none.
        `ended`: the program has come to its end: what it has missed it would have asked by then, unless what it asks
        depends on a clock, or on chance.
        """
        missed = len(self._unasked) if ended and self.made else 0
        if missed:
            why = "what is asked depends on a clock or on chance; take context().now, random and uuid()"
            first = next(entry for place, entry in (self._found or {}).items() if place in self._unasked)
            what = {"kind": first.kind, "name": first.name, "missed": missed}
            log.warning("requests of earlier attempts were not made again", call=self.call, first=what, why=why)
        counts = {"made": self.made, "journal": self._answered, "missed": missed}
        return counts if any(counts.values()) else {}

    # -- one request
    async def before(self, asking: WhatIsAsked) -> OpenRequest:
        """To be awaited before a request is made. Raises StopCall where it must not be."""
        turn = self._turn(asking)
        if self.meter is not None and asking.kind == "model" and (refusal := self.meter.begin()) is not None:
            self.end(refusal)
        if self.journal is None:
            return turn
        found = (await self._open(self.journal)).get(turn.place)
        self._unasked.discard(turn.place)
        if found is not None and not found.begun:
            self.made, self._answered = self.made - 1, self._answered + 1
            if self.meter is not None and asking.kind == "model":
                self.meter.add(found.used)
            self._heard(asking, found.answer, found.used, found.seconds, True)
        elif asking.once and found is not None:
            why = f"{asking.name} was begun, and its worker died: what came of it is not known"
            self.end(OutcomeUnknown(why, node=asking.name))
        elif asking.effect and found is None:
            await self._append(self._entry(turn, begun=True))
        elif asking.kind == "model":
            await self._told(self.journal.room())
        turn.found = found
        return turn

    async def after(self, turn: OpenRequest, answer: object, used: Usage | None = None) -> None:
        """To be awaited when a request has been made, before anything else happens. Raises StopCall."""
        used = None if used is None else self.priced(used)
        if self.meter is not None and turn.asking.kind == "model":
            self.meter.add(used)
        self._heard(turn.asking, answer, used, monotonic() - turn.since)
        if self.journal is None or not turn.kept:
            return
        cost = None if used is None else dict(vars(used))
        try:
            await self._append(self._entry(turn, answer=answer, usage=cost))
        except InvalidInput as error:  # after a death it is asked again
            log.warning("an answer is not journaled", call=self.call, tool=turn.asking.name, why=error.message)

    def blocking(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives, in a thread of the program's, which has begun."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def before_blocking(self, asking: WhatIsAsked) -> OpenRequest:
        """`before` where nothing can be awaited. On the loop, where nothing can be waited for either, a request of a model is
        made without the journal. Raises ProgramError for a tool with effects.
        """
        if threading.get_ident() != self._thread:
            return self.blocking(self.before(asking))
        if not isinstance(self.journal, WithinAttempt | None) and asking.effect:
            fix = "await it (acall), give it a thread (asyncio.to_thread), or mark it: tool(effect=False)"
            raise ProgramError(f"{asking.name} has effects, and was called where it holds up its process", fix=fix)
        turn = self._turn(asking)
        turn.kept = False
        return turn

    def after_blocking(self, turn: OpenRequest, answer: object, used: Usage | None = None) -> None:
        """`after` where nothing can be awaited."""
        if turn.kept:
            self.blocking(self.after(turn, answer, used))
        else:
            self._heard(turn.asking, answer, None if used is None else self.priced(used), monotonic() - turn.since)

    def _heard(self, asking: WhatIsAsked, answer: object, used: Usage | None, seconds: float, journaled: bool = False) -> None:
        self.exchanges.add(exchange(asking.kind, asking.name or self.lm, asking.about, answer, used, seconds, journaled))

    def _turn(self, asking: WhatIsAsked) -> OpenRequest:
        if self.ending is not None:
            raise StopCall(self.ending)
        scope = _inside.get()
        digest = _digest([asking.kind, asking.name, asking.about, scope])
        occurrence = self._occurrences[asking.kind, digest] = self._occurrences.get((asking.kind, digest), 0) + 1
        self.made += 1
        return OpenRequest(asking, (asking.kind, digest, occurrence), _digest([self.call, digest, occurrence]))

    async def _open(self, journal: Journaling) -> dict[RequestPlace, JournalEntry]:
        async with self._opening:
            if self._found is None:
                found = {entry.place: entry for entry in await self._told(journal.open())}
                self._unasked = {place for place, entry in found.items() if not entry.begun and not entry.within}
                self._found = found
            return self._found

    async def _told(self, asked: Awaitable[T]) -> T:
        """What the journal says. Where it says that the call may not go on, that ends."""
        try:
            return await asked
        except InvalidInput:
            raise
        except DspexError as error:
            self.end(error)

    async def _append(self, entry: JournalEntry) -> None:
        assert self.journal is not None
        assert self._found is not None
        await self._told(self.journal.append(entry))
        self._found.pop(entry.place, None)  # what came last stands last
        self._found[entry.place] = entry._replace(asked=None)

    def _entry(
        self, turn: OpenRequest, *, begun: bool = False, answer: object = None, usage: Mapping[str, Any] | None = None
    ) -> JournalEntry:
        _, digest, occurrence = turn.place
        kind, name, about, *_ = turn.asking
        within, took = bool(_inside.get()), monotonic() - turn.since
        return JournalEntry(kind, digest, occurrence, name or self.lm, about, begun, answer, usage, within, took)

    def end(self, error: DspexError, cause: BaseException | None = None) -> NoReturn:
        """End the call, whatever its program makes of it. Raises StopCall. `cause`: what has led to it."""
        self.ending = self.ending or error
        raise StopCall(self.ending) from cause


def _digest(what: object) -> str:
    """Equal for what is equal. Raises TypeError for what is no plain data."""
    return sha256(orjson.dumps(what, bytes.hex, OPTIONS | orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)).hexdigest()[:32]


@contextmanager
def running(turn: OpenRequest) -> Generator[None]:
    """While the tool of this request runs: `context().idempotency_key()` is its key, and what it asks itself is its own."""
    token = _inside.set(turn.key)
    try:
        yield
    finally:
        _inside.reset(token)


def key_now() -> str:
    """The idempotency key of the tool that runs now; "" for none."""
    return _inside.get()


FINDERS: list[Callable[[], Requests | None]] = [_requests.get]
"""Where `current` looks. DSPy adds its own settings: its threads have those, and no context variables."""


def current() -> Requests | None:
    """The requests of the call that this code serves; None where it serves none."""
    return next((found for find in FINDERS if (found := find()) is not None), None)
