"""The one place that decides what happens to a failure, and the only one in the engine that catches `Exception`.

    error                                       what happens
    ------------------------------------------  --------------------------------------------------------------
    RetryLater                                  the event is run again after `retry_after`, as often as asked
    CallError, retryable, attempts left         the next attempt, after back-off with jitter or `retry_after`
    InvalidOutput, for the first time           one more attempt, if one is left
    CallError, spent, with a fallback           the fallback's outputs stand in ("spent": no attempt left, or the next
                                                one would begin after the call's deadline)
    any other, on_error="skip"                  nothing: the event ends here
    any other                                   a dead letter: the event, the reason, a bounded traceback, the run

A dead letter is written in the same commit as the position behind the event, so it is neither lost nor written twice.
"""

from __future__ import annotations

import traceback
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, TypeVar

from dspex.bus import subjects
from dspex.bus.duration import seconds
from dspex.bus.errors import BusError, CallError, DataError, DspexError, InvalidOutput, RetryLater
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRecord, Letter, Origin, Work
from dspex.engine.graph.nodes import Call
from dspex.engine.runtime.walk import Walk

TRACEBACK_LIMIT = 8192  # characters of a traceback that a dead letter keeps: its end, where the cause is

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """An error and where it happened. `node` is the operator to blame."""

    error: DspexError
    node: str
    traceback: str = ""


@dataclass(frozen=True)
class Verdict:
    """What happens now. `after`: seconds until the next attempt."""

    what: Literal["retry", "fallback", "dead", "skip"]
    after: float = 0.0


def guard(step: Callable[[T, Walk], None], data: T, walk: Walk) -> Failure | None:
    """Run a walk. Whatever a user's function raises becomes a Failure: one poison event must not stop its partition."""
    try:
        step(data, walk)
    except DspexError as e:
        return Failure(e, e.node or walk.node, _excerpt(e))
    except (Exception, SystemExit, CancelledError) as e:  # noqa: BLE001  nothing is awaited here: the function raised it
        reason = DataError(
            f"{walk.node} raised {''.join(traceback.format_exception_only(e)).strip()}",
            code="DX507",
            node=walk.node,
            fix="correct the function or the data, then: dspex dlq redrive",
        )
        return Failure(reason, walk.node, _excerpt(e))
    return None


def _excerpt(e: BaseException) -> str:
    return "".join(traceback.format_exception(e))[-TRACEBACK_LIMIT:]


def refusal(why: str, node: str) -> BusError:
    """The reason of a dead letter for an event of which the bus takes no commit."""
    return BusError(
        f"the server refuses what {node} emits: {why}",
        node=node,
        fix="look at what follows from the event, then: dspex dlq redrive",
    )


def decide(error: DspexError, attempt: int, call: Call, id: str, *, left: float, invalid: int = 0) -> Verdict:
    """What happens to a call whose attempt number `attempt` failed.

    `left`: seconds until its deadline. `invalid`: earlier attempts that ended in InvalidOutput. Those that were lost with
    a worker do not count: a killed process must not change how an event ends.
    """
    after = _next_attempt(error, attempt, call, id, invalid)
    if after is not None and after < left:
        return Verdict("retry", after)
    if isinstance(error, CallError) and call.fallback is not None:
        return Verdict("fallback")
    return Verdict("skip" if call.on_error == "skip" else "dead")


def _next_attempt(error: DspexError, attempt: int, call: Call, id: str, invalid: int) -> float | None:
    """Seconds until the next attempt; None for no more."""
    if isinstance(error, RetryLater):
        return error.retry_after or 1.0
    if not error.retryable or attempt >= call.retry.attempts or (isinstance(error, InvalidOutput) and invalid):
        return None
    return _back_off(error, attempt, call, id)


def _back_off(error: DspexError, attempt: int, call: Call, id: str) -> float:
    r = call.retry
    if isinstance(error, InvalidOutput):
        return 0.0
    wait = min(seconds(r.backoff) * r.factor ** (attempt - 1), seconds(r.cap))
    spread = Random(f"{id}:{attempt}").uniform(-r.jitter, r.jitter)  # seeded by the call: a replay waits as long
    return max(error.retry_after or 0.0, wait * (1 + spread))


def letter(
    failure: Failure,
    *,
    app: str,
    topology: str,
    work: Work,
    entry: str,
    reply: str,
    clock: float,
    limit: int,
    outputs: Mapping[str, object] | None = None,
    stored: tuple[str, int] | None = None,
    headers: Mapping[str, str] | None = None,
) -> NewMessage:
    """The dead letter of an event, as a message. Data too large to be kept twice is referred to by `stored`."""
    whole = Letter(
        topology=topology,
        node=failure.node or entry,
        origin=dict(work.origin),
        data=work.data,
        content_type=work.content_type,
        error={k: _text(v[:TRACEBACK_LIMIT]) if isinstance(v, str) else v for k, v in failure.error.as_dict().items()},
        traceback=_text(failure.traceback[-TRACEBACK_LIMIT:]),
        attempts=max(1, work.attempt),
        time=clock,
        reply=reply,
        call=work.call,
        entry=entry,
        outputs=outputs,
        headers=dict(headers or {}),
    )
    origin = whole.origin
    own = {subjects.EVENT_ID: str(origin.get("id", "")), subjects.RUN: str(origin.get("run", ""))}
    return NewMessage(subjects.dead(app, topology, whole.node), _fitting(whole, limit - 1024, stored), own)


def _text(text: str) -> str:
    """`text` with lone surrogates replaced, which UTF-8 cannot hold: it must always be possible to write a letter."""
    return text.encode(errors="replace").decode()


def _fitting(letter: Letter, limit: int, stored: tuple[str, int] | None) -> bytes:
    """The letter as bytes that one message can hold.

    Where it is too large, it leaves out first what is stored elsewhere, then what a redrive can do without: a letter that
    the server refuses would stop its partition for good.
    """
    body = letter.pack()
    if len(body) > limit and stored:
        letter = replace(letter, data=b"", stored=stored)
        body = letter.pack()
    if len(body) > limit:
        short = {k: v[:500] if isinstance(v, str) else v for k, v in letter.error.items()}
        letter = replace(letter, error=short, traceback=letter.traceback[-500:], headers={})
        body = letter.pack()
    if len(body) > limit:  # of a call: its data fits, and a redrive makes the call again
        letter = replace(letter, outputs=None)
        body = letter.pack()
    return (
        body if len(body) <= limit else replace(letter, data=b"").pack()
    )  # the data came with a redrive, whose letter still holds it


def run_again(
    work: Work, entry: str, after: float, reply: str, clock: float, outputs: Mapping[str, object] | None = None
) -> NewMessage:
    """The message that brings an event back to its partition's inbox, where it waits until it is due.

    `outputs`: of the call that it comes from; with them the event goes on behind the call, without asking again.
    """
    due = clock + after
    body = CallRecord(work.call, -1, work.attempt, entry, work=work.pack(), kind="resume", due=due, outputs=outputs)
    return NewMessage(reply, body.pack(), {subjects.RUN: str(work.origin.get("run", ""))})


def source_work(origin: Origin, topology: str, source: str, data: bytes, content_type: str, attempt: int = 1) -> Work:
    """A source event in the form that dead letters and `run_again` carry."""
    return Work("", -1, attempt, topology, source, "", {}, {}, data, content_type, origin._asdict())
