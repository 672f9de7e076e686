"""The one place that decides what happens to a failure.

    error                                       what happens
    ------------------------------------------  --------------------------------------------------------------
    RetryLater                                  the event is processed again after `retry_after`, as often as asked
    an outage: LMUnavailable, RateLimited,      the next execution after a growing pause, until the call's deadline: it does
    Saturated, CircuitOpen                      not count as an attempt
    NoBatchAnswer                               the next execution, asked live; it does not count as an attempt
    WorkerLost of a pool that refuses           as an outage: no worker had the call, so none died of it
    WorkerLost                                  the next execution; the third and later ones alone in a process. Only a
                                                death alone counts as an attempt: a neighbour may have ended the process
    InvalidOutput, for the first time           one more attempt, if one is left
    CallError, retryable, attempts left         the next attempt, after back-off with jitter or `retry_after`
    CallError, spent, with a fallback           the fallback's outputs stand in ("spent": no attempt left, or the next
                                                one would begin after the call's deadline)
    any other, on_error="skip"                  nothing: the event ends here
    any other                                   a dead letter: the event, the reason, a bounded traceback, the run

A dead letter is written in the same commit as the position behind the event, so it is neither lost nor written twice.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, TypeVar

from dspex.bus import subjects
from dspex.bus.errors import (
    BusError,
    CallError,
    Cancelled,
    CircuitOpen,
    DataError,
    DspexError,
    InvalidInput,
    InvalidOutput,
    LMUnavailable,
    NoBatchAnswer,
    RateLimited,
    RetryLater,
    Saturated,
    TopologyError,
    WorkerLost,
    from_dict,
    is_seconds,
)
from dspex.bus.message import INHERITED, in_session
from dspex.bus.port import NewMessage
from dspex.bus.records import Letter, NodeEvent, Origin, StoredAt
from dspex.bus.settings.duration import seconds
from dspex.engine.graph.nodes import Call
from dspex.engine.log.rows import OpenCall
from dspex.engine.runtime.walk.request import Address

T = TypeVar("T")
TRACEBACK_LIMIT = 8192  # characters of a traceback that a dead letter keeps: its end, where the cause is
_MEMORY = re.compile(r"\b0x[0-9a-f]{6,16}\b")  # an address differs at every walk, and a letter must not
OUTAGES = (LMUnavailable, RateLimited, Saturated, CircuitOpen)


@dataclass(frozen=True)
class Failure:
    """An error and where it happened. `node` is the operator to blame."""

    error: DspexError
    node: str
    traceback: str = ""


@dataclass(frozen=True)
class Verdict:
    """What happens now. `after`: seconds until the next execution; `row`: of the call, as it is then."""

    what: Literal["retry", "fallback", "dead", "skip"]
    after: float = 0.0
    row: OpenCall | None = None


def refused(e: DspexError, node: str) -> Failure:
    """An error of ours that came out of a walk. What a user's class or function has left out of it, or put into it, may be
    anything: such an error is like any other exception.
    """
    texts = [getattr(e, name, None) for name in ("message", "code", "fix")]
    maybe = [text for name in ("node", "run") if (text := getattr(e, name, "")) is not None]
    after = getattr(e, "retry_after", None)
    if not all(isinstance(text, str) for text in (*texts, *maybe)) or not (after is None or is_seconds(after)):
        return raised(e, node)
    return Failure(e, e.node or node, excerpt(e))


def raised(e: BaseException, node: str) -> Failure:
    """What a user's function raised."""
    fix = "correct the function or the data, then: dspex dlq redrive"
    text = _described(e, traceback.format_exception_only).strip()
    reason = DataError(f"{node} raised {text}", code="DX507", node=node, fix=fix)
    return Failure(reason, node, excerpt(e))


def attempt(run: Callable[[], T], node: Callable[[], str]) -> T | Failure:
    """What user code gives that nothing awaits, or why it failed. `node`: whom it is blamed on."""
    try:
        return run()
    except DspexError as e:
        return refused(e, node())
    except BaseException as e:  # noqa: BLE001  nothing is awaited here: the function raised it
        return raised(e, node())


def excerpt(e: BaseException) -> str:
    """The end of a traceback."""
    return _described(e, traceback.format_exception)[-TRACEBACK_LIMIT:]


def _described(e: BaseException, how: Callable[[BaseException], list[str]]) -> str:
    """An exception as text. It is the user's own, so that asking it may raise another one."""
    try:
        return "".join(how(e))
    except Exception as other:  # noqa: BLE001  somebody else's class
        return f"{type(e).__name__}, which cannot be described: that raises {type(other).__name__}"


def refusal(why: str, node: str) -> BusError:
    """The reason of a dead letter for an event of which the bus takes no commit."""
    return BusError(
        f"the server refuses what {node} emits: {why}",
        node=node,
        fix="look at what follows from the event, then: dspex dlq redrive",
    )


def operator_gone(node: str) -> TopologyError:
    """The error of an event that would go on at an operator that the topology no longer has."""
    return TopologyError(f"operator {node} is gone", code="DX232", fix="bring it back, or drop its letters")


def decide(error: DspexError, row: OpenCall, call: Call, left: float) -> Verdict:
    """What happens to a call whose latest execution failed. `left`: seconds until its deadline."""
    if isinstance(error, Cancelled):
        return Verdict("dead")  # nobody wants what would come of it
    again = _again(error, row, call)
    if again is not None and again.after < left:
        return again
    if isinstance(error, CallError) and call.fallback is not None:
        return Verdict("fallback")
    return Verdict("skip" if call.on_error == "skip" else "dead")


def told_to_wait(failure: Failure, left: float) -> Failure:
    """The failure of a call that ends here because its server asks to wait beyond the call's deadline: that says so.

    `left`: seconds until the deadline.
    """
    error, wait = failure.error, failure.error.retry_after or 0.0
    if not error.retryable or left <= 0 or wait < left:
        return failure
    why = f"it asks to wait {wait:,.0f} s, and the deadline of the call is in {left:,.0f} s"
    fix = f"raise deadline= of {failure.node} above the wait, or redrive later: dspex dlq redrive"
    told = from_dict({**error.as_dict(), "message": f"{error.message}: {why}", "fix": fix})
    return Failure(told, failure.node, failure.traceback)


def _again(error: DspexError, row: OpenCall, call: Call) -> Verdict | None:
    """The next execution; None for no more."""
    row = row._replace(try_number=row.try_number + 1)
    if isinstance(error, RetryLater):
        return Verdict("retry", error.retry_after or 1.0, row)
    if isinstance(error, OUTAGES) or (isinstance(error, WorkerLost) and error.retry_after):  # a pool refuses for a while
        return Verdict("retry", _pause(error, row.try_number - 1, call, row.id), row)
    if isinstance(error, NoBatchAnswer) and not row.live:
        return Verdict("retry", 0.0, row._replace(live=True))
    if isinstance(error, WorkerLost):
        alone, row = row.alone, row._replace(deaths=row.deaths + 1)
        if not alone:
            return Verdict("retry", 0.0, row)
    if not error.retryable or row.attempts >= call.retry.attempts or (isinstance(error, InvalidOutput) and row.invalid):
        return None
    after = _pause(error, row.attempts, call, row.id)
    return Verdict(
        "retry", after, row._replace(attempts=row.attempts + 1, invalid=row.invalid + isinstance(error, InvalidOutput))
    )


def _pause(error: DspexError, number: int, call: Call, id: str) -> float:
    """Seconds until the next execution, after `number` of them."""
    r = call.retry
    if isinstance(error, InvalidOutput) or (isinstance(error, WorkerLost) and error.retry_after == 0.0):
        return 0.0  # the call itself ended its worker, as its pool says, and would do so later too
    wait = min(seconds(r.backoff) * r.factor ** (min(number, 64) - 1), seconds(r.cap))
    spread = Random(f"{id}:{number}").uniform(-r.jitter, r.jitter)  # seeded by the call: a replay waits as long
    return max(error.retry_after or 0.0, wait * (1 + spread))


# -- dead letters as messages ---------------------------------------------------------------------------------------------
def letter(
    failure: Failure,
    event: NodeEvent,
    address: Address,
    clock: float,
    stored: StoredAt | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    gone: bool = False,
) -> NewMessage:
    """The dead letter of an event, as a message. Data too large even for an object is referred to by `stored`.

    `gone`: its data is stored nowhere any more; the letter says where the message is that names it.
    """
    a = address
    if gone:
        event = event._replace(data=b"")
    whole = Letter(
        topology=a.topology,
        node=_text(failure.node or event.node),
        event=event._replace(attempts=event.attempts + 1),
        redrive=subjects.edge(a.app, a.topology, a.stage, a.partition),
        error={k: _text(v[:TRACEBACK_LIMIT]) if isinstance(v, str) else v for k, v in failure.error.as_dict().items()},
        traceback=_text(failure.traceback[-TRACEBACK_LIMIT:]),
        time=clock,
        headers=dict(headers or {}),
        stored=stored if gone else None,
    )
    whole, body = _fitting(whole, 3 * a.limit, stored)
    own = {subjects.EVENT_ID: event.origin.id, subjects.RUN: event.origin.run}
    own = {name: value[:INHERITED] for name, value in own.items() if value.isprintable()}  # who published may have chosen it
    own |= in_session(event.origin.session)
    if isinstance(failure.error, Cancelled):
        own[subjects.CANCELLED] = "1"  # so that who lists runs need not read letters
    if whole.stored is not None:
        own[subjects.STORED] = f"{whole.stored.stream}:{whole.stored.sequence}"
    to = subjects.dead(a.app, a.topology, whole.node)
    if a.topology == subjects.SUBMITTED:  # who submitted the call reads there what became of it
        to = subjects.dead_submitted(a.app, *subjects.submitted_by(event.origin.subject))
    return NewMessage(to, body, own)


def _text(text: str) -> str:
    """`text` as it can be written, and the same at every walk.

    Lone surrogates are replaced, which UTF-8 cannot hold: it must always be possible to write a letter.
    """
    return _MEMORY.sub("0x…", text.encode(errors="replace").decode())


def _fitting(letter: Letter, limit: int, stored: StoredAt | None) -> tuple[Letter, bytes]:
    """The letter, and its bytes, as one object can hold them.

    Where it is too large, it leaves out first what is stored elsewhere, then what a redrive can do without: a letter that
    the server refuses would stop its partition for good.
    """
    body = letter.pack()
    if len(body) > limit and stored:
        letter = replace(letter, event=letter.event._replace(data=b""), stored=stored)
        body = letter.pack()
    if len(body) > limit:
        short = {k: v[:500] if isinstance(v, str) else v for k, v in letter.error.items()}
        letter = replace(letter, error=short, traceback=letter.traceback[-500:], headers={})
        body = letter.pack()
    if len(body) > limit:  # of a call: its data fits, and a redrive makes the call again
        letter = replace(letter, event=letter.event._replace(outputs=None))
        body = letter.pack()
    if len(body) > limit:  # the data came with a redrive, whose letter still holds it
        letter = replace(letter, event=letter.event._replace(data=b""))
        body = letter.pack()
    return letter, body


def headers_too_long(o: Origin) -> InvalidInput:
    """The error for an event whose headers leave no room in those of what follows from it."""
    texts = {"id": o.id, "run": o.run, "key": o.key, "session": o.session, "trace": o.trace}
    sizes = {name: len(text or "") for name, text in texts.items()}
    longest = max(sizes, key=lambda name: sizes[name])
    why = (
        f"its headers are too long to be handed on: the {longest} has {sizes[longest]:,} characters, all together {INHERITED:,}"
    )
    return InvalidInput(why, fix="publish it with shorter ones")
