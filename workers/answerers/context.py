"""What a program may ask about the call that it serves: `dspex.workers.context()`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from random import Random
from typing import Any
from uuid import UUID

import structlog
from structlog.typing import EventDict, Processor

from dspex.bus.codecs import tracing
from dspex.bus.errors import DecodeError
from dspex.bus.records import CallRequest, Origin, unpack_event
from dspex.workers.answerers.kept import SessionData
from dspex.workers.journal.requests import Requests, current, key_now


@dataclass(frozen=True)
class CallContext:
    """The call that is running here.

    Attributes:
        call: id of the call; the same in every attempt, so it can serve as an idempotency key of the whole call.
        run: id of the run that caused it; "" where there is none.
        session: id of its session; None where it has none.
        attempt: from 1.
        node: the operator; "" for a call of no topology.
    """

    call: str
    run: str
    session: str | None
    attempt: int
    until: float
    node: str
    report: Callable[[str], None]
    opened: float
    requests: Requests
    kept: SessionData | None = None
    work: CallRequest | None = None

    @property
    def deadline(self) -> datetime:
        """When this attempt is stopped (UTC)."""
        return datetime.fromtimestamp(self.until, tz=UTC)

    @property
    def now(self) -> datetime:
        """When the call was opened (UTC): the same in every attempt, so that a prompt with it is."""
        return datetime.fromtimestamp(self.opened, tz=UTC)

    @cached_property
    def random(self) -> Random:
        """Random numbers: the same ones in every attempt, in this order."""
        return Random(sha256(self.call.encode()).digest())

    def uuid(self) -> UUID:
        """The next one of the call's: the same ones in every attempt, in this order."""
        return UUID(int=self._ids.getrandbits(128), version=4)

    @cached_property
    def _ids(self) -> Random:
        return Random(sha256(f"{self.call} ids".encode()).digest())

    def idempotency_key(self) -> str:
        """What stands for the use of a tool that runs now, in every attempt: give it to the system that the tool changes.

        Raises LookupError where no tool runs that is journaled, and no function that enriches.
        """
        if not (key := key_now()):
            raise LookupError("no tool runs here that is journaled; `context().call` stands for the whole call")
        return key

    @cached_property
    def log(self) -> Any:
        """A structlog logger bound to the call; it writes to the pool's log."""
        return structlog.get_logger("program").bind(call=self.call, run=self.run, node=self.node, attempt=self.attempt)

    def load(self) -> dict[str, Any]:
        """What the session of the call keeps: `{}` where nothing was saved; what this call has saved, once it has.

        Can be called from any thread, and asks nobody. Raises LookupError where the call is no turn of a session.
        """
        return self._kept().load()

    def save(self, data: Mapping[str, Any]) -> None:
        """Have the session keep this, with the turn that the answer is: it is stored in one write with that, or not at all.

        So what a call saves that fails, or whose worker dies, is not kept. Raises LookupError as `load`; InvalidInput,
        OutputTooLarge: see `dspex.Session.save`.
        """
        self._kept().save(data)

    def _kept(self) -> SessionData:
        if self.kept is None:
            raise LookupError("the call is no turn of a session: no answer of it is stored there, and no data")
        return self.kept

    def status(self, text: str) -> None:
        """Tell in a few words how the call goes: who streams the answer gets it, and it stands in the pool's log.

        Can be called from any thread.
        """
        self.report(text)


_current: ContextVar[CallContext | None] = ContextVar("dspex_call", default=None)


def context() -> CallContext:
    """The context of the call that this code serves. Raises LookupError outside of a worker's call."""
    found: object = _current.get()
    if found is None and (requests := current()) is not None:  # in a thread of DSPy's
        found = requests.context
    if not isinstance(found, CallContext):
        raise LookupError("no call is served here: its program runs in another task or thread, or this is no worker")
    return found


def enter(call: CallContext) -> None:
    """Make `call` the context of the current task and of what it starts."""
    _current.set(call)
    call.requests.context = call


def with_trace(app: str) -> Processor:
    """What adds to a line of a log in which span it was written: that of the call which is served there."""

    def add(_logger: object, _name: str, entry: EventDict) -> EventDict:
        call = _current.get()
        if call is not None and (work := call.work) is not None:
            entry.update(in_logs(app, work))
        return entry

    return add


def in_logs(app: str, work: CallRequest) -> dict[str, str]:
    """The trace and the span of a call, for lines about it."""
    try:
        origin = (
            Origin(work.run, "", work.run, trace=work.trace) if work.record is None else unpack_event(work.record.event).origin
        )
    except DecodeError:
        return {}
    of = tracing.trace_of(origin.trace, origin.run)
    return tracing.in_logs(of, tracing.span_of(app, work.call, work.topology))


def enter_again() -> None:
    """The program of the call begins anew: what is drawn in its context is drawn from the begin."""
    if (kept := context().kept) is not None:
        kept.forget()
    if not {"random", "_ids"}.isdisjoint(vars(found := context())):
        enter(replace(found))
