"""The one place that decides what happens to a failure.

    error                                       what happens
    ------------------------------------------  --------------------------------------------------------------
    RetryLater                                  the event is processed again after `retry_after`, as often as asked
    an outage: LMUnavailable, RateLimited,      the next execution after a growing pause, until the call's deadline: it does
    Saturated, CircuitOpen                      not count as an attempt
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

from dataclasses import dataclass
from random import Random
from typing import Literal

from dspex.bus.duration import seconds
from dspex.bus.errors import (
    BusError,
    CallError,
    CircuitOpen,
    DspexError,
    InvalidOutput,
    LMUnavailable,
    RateLimited,
    RetryLater,
    Saturated,
    TopologyError,
    WorkerLost,
)
from dspex.engine.graph.nodes import Call
from dspex.engine.log.tables import OpenCall

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
    again = _again(error, row, call)
    if again is not None and again.after < left:
        return again
    if isinstance(error, CallError) and call.fallback is not None:
        return Verdict("fallback")
    return Verdict("skip" if call.on_error == "skip" else "dead")


def _again(error: DspexError, row: OpenCall, call: Call) -> Verdict | None:
    """The next execution; None for no more."""
    row = row._replace(try_number=row.try_number + 1)
    if isinstance(error, RetryLater):
        return Verdict("retry", error.retry_after or 1.0, row)
    if isinstance(error, OUTAGES):
        return Verdict("retry", _pause(error, row.try_number - 1, call, row.id), row)
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
    if isinstance(error, InvalidOutput):
        return 0.0
    wait = min(seconds(r.backoff) * r.factor ** (min(number, 64) - 1), seconds(r.cap))
    spread = Random(f"{id}:{number}").uniform(-r.jitter, r.jitter)  # seeded by the call: a replay waits as long
    return max(error.retry_after or 0.0, wait * (1 + spread))
