"""Every error that dspex raises on purpose, in one tree.

    DspexError                       code, message, fix, node, run, retryable, retry_after
    ├── ConfigError                  before anything starts; exit 2
    ├── TopologyError                .problems; exit 3
    ├── BusError                     the wire
    │   ├── Unreachable              no server, no stream leader, no answer in time           (retryable)
    │   ├── UnsupportedServer        older than 2.12
    │   ├── NotAllowed               wrong password, missing permission
    │   ├── PayloadTooLarge          headers and data exceed max_payload
    │   ├── Fenced                   another owner committed first
    │   ├── Unsettled                a write may or may not have landed: claim, then look      (retryable)
    │   ├── StreamFull               JetStream limit reached: backpressure                     (retryable)
    │   ├── SubjectTaken             another stream captures the subject
    │   ├── NotStored                no stream captures the subject
    │   └── SourceGap                events were lost before dspex read them
    ├── DataError                    → dead letter, never retried
    │   └── DecodeError · InvalidInput · ExpressionError · LateEvent · Reject · OutputTooLarge
    ├── CallError                    → retried if .retryable, then fallback, then dead letter
    │   ├── Saturated · RateLimited · CallTimeout · LMUnavailable · CircuitOpen · WorkerLost    (retryable)
    │   ├── InvalidOutput            retried once
    │   ├── NoBatchAnswer            asked live
    │   └── ProgramError · LMRefused · BudgetExceeded · Cancelled · OutcomeUnknown             not retried
    ├── RunError                     RunFailed, RunNotFound
    ├── SessionError                 SessionConflict, SessionEnded, SessionBusy, AffinityLost
    ├── ReplayError                  Divergence, RecordingIncomplete
    ├── NoAnswer                     a test reached a node that it gave no answer
    └── RetryLater                   raised by a user's function: run this event again later   (retryable)

A class says when you get it, and what the engine does. The shape of the tree is also the policy: `engine/runtime/failure.py`
reads `retryable`, `retry_after` and the class, and nothing else decides what happens to a failed event.

Codes: DX1xx configuration, 2xx build, 3xx lint, 4xx bus, 5xx data, 6xx call, 7xx session, 8xx replay, 9xx dspex itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from typing_extensions import TypeIs

__all__ = [
    "AffinityLost",
    "BudgetExceeded",
    "BusError",
    "CallError",
    "CallTimeout",
    "Cancelled",
    "CircuitOpen",
    "ConfigError",
    "DataError",
    "DecodeError",
    "Divergence",
    "DspexError",
    "ExpressionError",
    "Fenced",
    "InvalidInput",
    "InvalidOutput",
    "LMRefused",
    "LMUnavailable",
    "LateEvent",
    "NoAnswer",
    "NoBatchAnswer",
    "NotAllowed",
    "NotStored",
    "OutputTooLarge",
    "PayloadTooLarge",
    "Problem",
    "ProgramError",
    "RateLimited",
    "RecordingIncomplete",
    "Reject",
    "ReplayError",
    "RetryLater",
    "RunError",
    "RunFailed",
    "RunNotFound",
    "Saturated",
    "SessionBusy",
    "SessionConflict",
    "SessionEnded",
    "SessionError",
    "SourceGap",
    "StreamFull",
    "SubjectTaken",
    "TopologyError",
    "Unreachable",
    "Unsettled",
    "UnsupportedServer",
    "WorkerLost",
]  # what `dspex.errors` has


class DspexError(Exception):
    """Base of all: `except DspexError` catches what dspex raises on purpose, and nothing else.

    Args:
        message: what is wrong, in the user's words.
        code: `DXnnn`; the class's own when left out.
        fix: one thing to do; the class's own when left out.
        node: the operator (or stage, pool, profile) it is about.
        run: the run it belongs to.
        retry_after: seconds after which another try may work.
    """

    code: str = "DX900"
    fix: str = "this is a bug in dspex: please report it with the output of -v"
    fix_of_call: ClassVar[str]  # see `of_call`; beside a class's own `fix`, where that one is about events
    retryable: bool = False
    _exit: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        fix: str | None = None,
        node: str | None = None,
        run: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.fix = fix or type(self).fix
        self.node = node
        self.run = run
        self.retry_after = retry_after

    @property
    def exit_code(self) -> int:
        """Exit code of the CLI for this error (API.md, section 3)."""
        return self._exit

    def of_call(self) -> Self:
        """This error, with advice for who made a call: there is no event to be published or run again."""
        said = next(vars(c) for c in type(self).__mro__ if "fix" in vars(c))
        if self.fix == said["fix"]:
            self.fix = said.get("fix_of_call", self.fix)
        return self

    def as_dict(self) -> dict[str, Any]:
        """The error as plain data: the `--json` object and the wire form.

        `type` is the class in this tree: a user's own `class TooShort(Reject)` is a Reject to those who do not have it.
        """
        known = next(c for c in type(self).__mro__ if c.__module__ == __name__)
        return {
            "type": known.__name__,
            "code": self.code,
            "message": self.message,
            "fix": self.fix,
            "node": self.node,
            "run": self.run,
            "retryable": self.retryable,
            "retry_after": self.retry_after,
        }


class ConfigError(DspexError):
    """A setting is wrong or missing. You get it before anything starts; `.problems` has all of them at once."""

    code, _exit = "DX100", 2
    fix = "correct the setting; dspex config show says where each value came from"

    def __init__(self, message: str, *, problems: Sequence[Problem] = (), **kw: Any) -> None:
        super().__init__(message, **kw)
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a topology: what, where, and what to do about it. A note tells of what is right."""

    code: str
    level: Literal["error", "warning", "note"]
    topology: str
    node: str | None
    file: str | None
    line: int | None
    message: str
    fix: str

    @property
    def place(self) -> str:
        """`node (file:line)`, as far as known."""
        where = f"{self.file}:{self.line}" if self.file and self.line else (self.file or "")
        name = self.node or self.topology
        return f"{name} ({where})" if where else name


class TopologyError(DspexError):
    """A topology cannot be built, or does not fit the one applied. `.problems` has all of them at once."""

    code, _exit = "DX200", 3
    fix = "correct the topology; dspex check shows every problem"

    def __init__(self, message: str, *, problems: Sequence[Problem] = (), **kw: Any) -> None:
        super().__init__(message, **kw)
        self.problems = tuple(problems)


class BusError(DspexError):
    """The wire failed. The engine waits, recovers by a claim, and goes on; a client gets the error."""

    code, _exit = "DX400", 4
    fix = "look at the NATS server; dspex doctor shows what it sees"


class Unreachable(BusError):
    """No server, no leader, or no answer in time. Nothing is known to be lost; the same request may be sent again."""

    code, retryable = "DX401", True
    fix = "start the server (dspex server start), or say where it is with --server"


class UnsupportedServer(BusError):
    """The server is older than 2.12 and has no atomic batch, so a commit cannot be kept whole."""

    code = "DX402"
    fix = "upgrade the server, or leave out --server and dspex starts its own"


class NotAllowed(BusError):
    """Wrong credentials, or a permission is missing. Trying again does not help."""

    code = "DX403"
    fix = "check user, password or creds, and the permissions of that user"


class NotStored(BusError):
    """No stream captures the subject, so an event published there would be lost. Nothing was published."""

    code, _exit = "DX404", 4
    fix = "apply a topology that reads the subject (dspex run), or correct the subject"


class PayloadTooLarge(BusError):
    """An event has over 64 MB, or a message that is not stored exceeds max_payload, at which the server hangs up."""

    code = "DX405"
    fix = "send less data in one event, or raise max_payload of the server"


class SubjectTaken(BusError):
    """Another stream captures the subject; a subject has one stream."""

    code, _exit = "DX406", 4
    fix = "use another subject, or take it from the other stream"


class Fenced(BusError):
    """Another owner wrote the log first. The engine that gets it commits nothing more under its claim."""

    code = "DX407"
    fix = "nothing to do: the other owner goes on from the same position"


class Unsettled(BusError):
    """No answer to a write: it may have landed, or may yet land. Only a claim settles it; a read does not."""

    code, retryable = "DX408", True
    fix = "the engine claims its log again and goes on from what is really there"


class StreamFull(BusError):
    """A JetStream limit (bytes, messages, disk) is reached. The engine waits and says so; nothing is dropped."""

    code, retryable = "DX409", True
    fix = "raise the limit or free disk space; the engine goes on by itself"


class SourceGap(BusError):
    """Events were lost before dspex read them: the source's stream was trimmed, rolled back, made anew, or is gone."""

    code = "DX410"
    fix = 'find out who purged the stream; to go on without the missing events: source(..., on_gap="skip")'


class DataError(DspexError):
    """An event cannot be processed and never will be as it is: it goes to the dead letters, not to a retry."""

    code = "DX500"
    fix = "look at the event (dspex dlq show), then redrive or drop it"
    fix_of_call = "call with other data"


class DecodeError(DataError):
    """The bytes are not what the content type says."""

    code = "DX501"
    fix = "publish valid data, or name the right content type"
    fix_of_call = "give valid data"


class InvalidInput(DataError):
    """Data does not fit the type, the schema or the signature. The message lists every field."""

    code = "DX502"
    fix = "correct the fields that the message names"


class ExpressionError(DataError):
    """An expression could not be evaluated on this event: a missing field, a wrong type."""

    code = "DX503"
    fix = "guard the field with has(...) or coalesce(...), or publish the field"
    fix_of_call = "give the field, or guard it with has(...) or coalesce(...)"


class LateEvent(DataError):
    """The event came after its window had closed."""

    code = "DX504"
    fix = "allow more lateness, or read the late events from the dead letters"


class Reject(DataError):
    """Raised by a user's function: this event is bad, for the reason given. Or a person rejected it (`approve`)."""

    code = "DX505"
    fix = "look at the event (dspex dlq show), then redrive or drop it"
    fix_of_call = "call with other data"


class OutputTooLarge(DataError):
    """An operator emitted over 64 MB, or a call's inputs or outputs have more. A dead letter; the rest goes on."""

    code = "DX506"
    fix = "emit smaller events, and store what is larger elsewhere"
    fix_of_call = "give less, or ask for less"


class CallError(DspexError):
    """A call failed. Retried where `retryable`, then the fallback, then a dead letter."""

    code = "DX600"
    fix = "look at the call (dspex dlq show), then redrive it"
    fix_of_call = "call again"


class Saturated(CallError):
    """Every slot of the pool is busy, or there is no worker; the message says which."""

    code, retryable, _exit = "DX601", True, 5
    fix = "wait, raise --timeout, or start more workers: dspex worker POOL"


class RateLimited(CallError):
    """The model's provider asked for fewer requests, or a limit of its profile (`lm.*.limits`) or a budget has no room now."""

    code, retryable, _exit = "DX602", True, 5
    fix = "wait as long as the message says, or give the pool fewer slots"


class CallTimeout(CallError):
    """One attempt, or all of them together, took longer than allowed."""

    code, retryable, _exit = "DX603", True, 5
    fix = "raise timeout= or deadline=, or look at why the model is slow"
    fix_of_call = "raise the timeout (dspex call --timeout), or look at why the model is slow"


class LMUnavailable(CallError):
    """The model's server cannot be reached or failed."""

    code, retryable, _exit = "DX604", True, 5
    fix = "check that the model's server answers: dspex doctor"


class CircuitOpen(CallError):
    """Too many failures in a row: the profile, or the program, is not asked for a while."""

    code, retryable, _exit = "DX605", True, 5
    fix = "wait until the breaker closes, or name another profile: lm=[...]"


class WorkerLost(CallError):
    """The process that ran the call died before it answered."""

    code, retryable = "DX606", True
    fix = "look at the worker's log; a program that kills its process fails after the last attempt"


class InvalidOutput(CallError):
    """The model's answer does not fit the signature or `into`. Retried once."""

    code, retryable = "DX607", True
    fix = "loosen the signature, or use a model or adapter that follows it"


class ProgramError(CallError):
    """The program raised, or could not be imported. Not retried: it would raise again."""

    code = "DX608"
    fix = "correct the program, then redrive: dspex dlq redrive"
    fix_of_call = "correct the program, restart its pool, and call again"


class LMRefused(CallError):
    """The model's provider refused: wrong key, bad request, content policy."""

    code = "DX609"
    fix = "check the profile's model and key, and the request"


class BudgetExceeded(CallError):
    """A budget (`budgets.*`) is reached; the message names it. Not tried again by itself."""

    code, _exit = "DX610", 5
    fix = "wait until the budget is counted anew, or raise it; then: dspex dlq redrive"
    fix_of_call = "wait until the budget is counted anew, or raise it"


class Cancelled(CallError):
    """The call was cancelled by its caller."""

    code = "DX611"
    fix = "nothing to do"


class OutcomeUnknown(CallError):
    """A tool that may run once only was begun, and its worker died: nobody knows what came of it. Not retried."""

    code = "DX613"
    fix = "find out where the tool acts what it did, then redrive or drop the letter"
    fix_of_call = "find out where the tool acts what it did, and call again where it did nothing"


class NoBatchAnswer(CallError):
    """The provider's batch has no answer for a call with `lane="batch"`, or none in time. The call is asked live."""

    code, retryable = "DX615", True
    fix = "nothing to do: it is asked live; raise deadline= to give batches more time"
    fix_of_call = "nothing to do: it is asked live"


class RunError(DspexError):
    """About a run."""

    code = "DX620"
    fix = "dspex status shows what is running"


class RunFailed(RunError):
    """The run has dead letters."""

    code = "DX621"
    fix = "dspex dlq ls shows them; dspex dlq redrive runs them again"


class RunNotFound(RunError):
    """No run has this id, or more than one ends like it."""

    code = "DX622"
    fix = "give more digits of the id"


class SessionError(DspexError):
    """About a session."""

    code = "DX700"
    fix = "load the session again"


class SessionConflict(SessionError):
    """The session moved on since it was loaded."""

    code = "DX701"
    fix = "load the session again, apply the change, and save"


class SessionEnded(SessionError):
    """The session was ended or its time to live ran out."""

    code = "DX702"
    fix = "start a new session"


class SessionBusy(SessionError):
    """Another call has the session, and `policy="reject"` does not wait for it; with other policies, 1,000 calls wait."""

    code, retryable, _exit = "DX704", True, 5
    fix = 'call again when the other one has ended; or let it wait: policy="queue"'


class AffinityLost(SessionError):
    """The worker that a key or session requires is gone, and what it had in memory with it. Another one has its calls from now
    on.
    """

    code = "DX703"
    fix = 'call again; use affinity="prefer" where another worker will do'


class ReplayError(DspexError):
    """About a replay."""

    code, _exit = "DX800", 6
    fix = "look at what differs between the recording and what runs now"


class Divergence(ReplayError):
    """A replay gives something else than what was stored, or reaches a call that the recording does not have."""

    code = "DX801"
    fix = "undo the change since the recording"


class RecordingIncomplete(ReplayError):
    """A record that the replay needs is missing."""

    code = "DX802"
    fix = "replay a run whose calls were all recorded"


class NoAnswer(DspexError):
    """A test reached a recorded node that it gave no answer (`Driver.answer`)."""

    code = "DX901"
    fix = "give the node an answer: d.answer(node, {...})"


class RetryLater(DspexError):
    """Raised by a user's function: run this event again after `after` seconds. The event is kept, not lost.

    Raises ValueError where `after` is no number of seconds: negative, infinite, or of another type.
    """

    code, retryable = "DX510", True
    fix = "nothing to do: the event is run again by itself"
    fix_of_call = "call again later: nobody does it by itself"

    def __init__(self, message: str = "asked to be run again later", *, after: float = 1.0, **kw: Any) -> None:
        if not is_seconds(after):
            raise ValueError(f"RetryLater(after={after!r}): after is seconds, 0 or more")
        super().__init__(message, retry_after=after, **kw)


def is_seconds(value: object) -> TypeIs[float]:
    """Whether `value` is a number of seconds: not NaN, not infinite, not negative."""
    return isinstance(value, (int, float)) and 0 <= value < 1e10


def _walk(cls: type[DspexError]) -> list[type[DspexError]]:
    return [cls, *(c for s in cls.__subclasses__() if s.__module__ == __name__ for c in _walk(s))]


def by_name(name: str) -> type[DspexError]:
    """The class called `name` in this tree; `CallError` for a name from a newer version.

    A user's own class is not found, or one called Saturated would take the place of ours and its policy with it.
    """
    return {c.__name__: c for c in _walk(DspexError)}.get(name, CallError)


def from_dict(data: Mapping[str, Any]) -> DspexError:
    """The error that `as_dict` described, rebuilt on this side of the wire. What is not of the right type is left out."""
    kw: dict[str, Any] = {k: v for k in ("code", "fix", "node", "run") if isinstance(v := data.get(k), str)}
    cls, message = by_name(str(data.get("type", ""))), str(data.get("message", ""))
    after = data.get("retry_after")  # whatever somebody wrote there: only seconds count
    after = float(after) if is_seconds(after) else None
    if cls is RetryLater:  # the delay is its argument
        return RetryLater(message, after=1.0 if after is None else after, **kw)
    error = cls(message, retry_after=after, **kw)
    error.retryable = bool(data.get("retryable", cls.retryable))  # a class that we do not know may be
    return error
