"""The policy: every class of error and what happens to a call that failed with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dspex.bus import errors as e
from dspex.bus.records import CallSpec
from dspex.engine.graph.nodes import Call, Retry
from dspex.engine.runtime.failure import decide

SPEC = CallSpec("predict", "a -> b", "a -> b")
FOREVER = 1e9


def call(*, fallback: bool = False, skip: bool = False, **retry: object) -> Call:
    return Call(
        SPEC,
        "lightweight",
        lambda data: data,
        lambda data, outputs: outputs,
        retry=Retry(**{"attempts": 3, "jitter": 0.0, **retry}),  # type: ignore[arg-type]
        fallback=(lambda data: {}) if fallback else None,
        on_error="skip" if skip else "dead_letter",
    )


def tree(cls: type[e.DspexError]) -> Iterator[type[e.DspexError]]:
    yield cls
    for sub in cls.__subclasses__():
        if sub.__module__ == e.__name__:
            yield from tree(sub)


RETRIED = {e.Saturated, e.RateLimited, e.CallTimeout, e.LMUnavailable, e.CircuitOpen, e.WorkerLost, e.InvalidOutput}
AT_ONCE = {e.ProgramError, e.LMRefused, e.BudgetExceeded, e.Cancelled, e.CallError}


@pytest.mark.parametrize("cls", sorted(RETRIED, key=lambda c: c.__name__))
def test_a_passing_error_is_retried_until_attempts_are_spent_then_it_falls_back_or_dies(
    cls: type[e.CallError],
) -> None:
    for attempt in (1, 2):
        assert decide(cls("x"), attempt, call(fallback=True), "id", left=FOREVER).what == "retry"
    assert decide(cls("x"), 3, call(fallback=True), "id", left=FOREVER).what == "fallback"
    assert decide(cls("x"), 3, call(skip=True), "id", left=FOREVER).what == "skip"
    assert decide(cls("x"), 3, call(), "id", left=FOREVER).what == "dead"


def test_an_answer_that_does_not_fit_is_asked_for_once_more_whatever_else_failed_before() -> None:
    assert decide(e.InvalidOutput("x"), 2, call(), "id", left=FOREVER).what == "retry"  # the first one: a worker died before
    assert decide(e.InvalidOutput("x"), 2, call(), "id", left=FOREVER, invalid=1).what == "dead"
    assert decide(e.WorkerLost("x"), 2, call(), "id", left=FOREVER, invalid=1).what == "retry"


@pytest.mark.parametrize("cls", sorted(AT_ONCE, key=lambda c: c.__name__))
def test_a_lasting_error_of_a_call_falls_back_at_once(cls: type[e.CallError]) -> None:
    assert decide(cls("x"), 1, call(fallback=True), "id", left=FOREVER).what == "fallback"
    assert decide(cls("x"), 1, call(), "id", left=FOREVER).what == "dead"


@pytest.mark.parametrize("cls", sorted(tree(e.DataError), key=lambda c: c.__name__))
def test_bad_data_is_neither_retried_nor_covered_by_a_fallback(cls: type[e.DataError]) -> None:
    assert decide(cls("x"), 1, call(fallback=True), "id", left=FOREVER).what == "dead"
    assert decide(cls("x"), 1, call(skip=True), "id", left=FOREVER).what == "skip"


def test_the_policy_tests_cover_every_class_of_call_error() -> None:
    assert set(tree(e.CallError)) == RETRIED | AT_ONCE


def test_waits_grow_to_their_cap_and_are_spread_by_the_calls_id() -> None:
    plain = [decide(e.CallTimeout("x"), n, call(attempts=9, cap="5s"), "id", left=FOREVER).after for n in range(1, 6)]
    assert plain == [1.0, 2.0, 4.0, 5.0, 5.0]
    spread = [decide(e.CallTimeout("x"), 1, call(jitter=0.5), id, left=FOREVER).after for id in "abcdefgh"]
    assert len(set(spread)) == 8
    assert all(0.5 <= s <= 1.5 for s in spread)
    assert decide(e.CallTimeout("x"), 1, call(jitter=0.5), "a", left=FOREVER).after == spread[0]


def test_the_pause_before_an_attempt_is_at_least_retry_after() -> None:
    assert decide(e.RateLimited("x", retry_after=30.0), 1, call(), "id", left=FOREVER).after == 30.0
    assert decide(e.RateLimited("x", retry_after=0.1), 1, call(), "id", left=FOREVER).after == 1.0


def test_an_answer_that_does_not_fit_is_asked_again_at_once() -> None:
    assert decide(e.InvalidOutput("x"), 1, call(), "id", left=FOREVER).after == 0.0


def test_an_attempt_that_would_begin_after_the_deadline_is_not_made() -> None:
    assert decide(e.RateLimited("x", retry_after=30.0), 1, call(fallback=True), "id", left=29.0).what == "fallback"
    assert decide(e.RetryLater(after=5.0), 1, call(), "id", left=5.0).what == "dead"


def test_a_program_that_raises_retry_later_is_run_again_any_number_of_times() -> None:
    assert decide(e.RetryLater(after=7.0), 99, call(), "id", left=FOREVER) == decide(
        e.RetryLater(after=7.0), 1, call(), "id", left=FOREVER
    )
