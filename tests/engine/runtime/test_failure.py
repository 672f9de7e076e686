"""The policy: every class of error and what happens to a call that failed with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from dspex.bus import errors as e
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.graph.nodes import Call, Retry
from dspex.engine.log.rows import OpenCall
from dspex.engine.runtime.failure import decide, raised

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


OUTAGES = {e.Saturated, e.RateLimited, e.LMUnavailable, e.CircuitOpen}
RETRIED = {e.CallTimeout, e.InvalidOutput}
AT_ONCE = {e.ProgramError, e.LMRefused, e.BudgetExceeded, e.OutcomeUnknown, e.CallError}


def row(attempts: int = 1, *, id: str = "id", try_number: int | None = None, invalid: int = 0, deaths: int = 0) -> OpenCall:
    tried = attempts if try_number is None else try_number
    return OpenCall("n", id, "run", "lightweight", FOREVER, b"", tried, attempts, invalid, deaths)


@pytest.mark.parametrize("cls", sorted(RETRIED, key=lambda c: c.__name__))
def test_a_passing_error_is_retried_until_attempts_are_spent_then_it_falls_back_or_dies(
    cls: type[e.CallError],
) -> None:
    for attempt in (1, 2):
        verdict = decide(cls("x"), row(attempt), call(fallback=True), FOREVER)
        assert verdict.what == "retry"
        assert verdict.row is not None
        assert (verdict.row.attempts, verdict.row.try_number) == (attempt + 1, attempt + 1)
    assert decide(cls("x"), row(3), call(fallback=True), FOREVER).what == "fallback"
    assert decide(cls("x"), row(3), call(skip=True), FOREVER).what == "skip"
    assert decide(cls("x"), row(3), call(), FOREVER).what == "dead"


def test_what_no_batch_has_answered_is_asked_live_at_once_and_that_is_no_attempt() -> None:
    verdict = decide(e.NoBatchAnswer("x"), row(3), call(), FOREVER)
    assert (verdict.what, verdict.after) == ("retry", 0.0)
    assert verdict.row is not None
    assert (verdict.row.live, verdict.row.attempts, verdict.row.try_number) == (True, 3, 4)


@pytest.mark.parametrize("cls", sorted(OUTAGES, key=lambda c: c.__name__))
def test_an_outage_counts_no_attempt_and_is_tried_with_growing_pauses_until_the_deadline(cls: type[e.CallError]) -> None:
    asked, waits = row(), []
    for _ in range(50):
        verdict = decide(cls("x"), asked, call(), FOREVER)
        assert verdict.what == "retry"
        assert verdict.row is not None
        waits.append(verdict.after)
        asked = verdict.row
    assert asked.attempts == 1  # all are left for when the model is back
    assert asked.try_number == 51  # the ids of records are made from it
    assert waits == sorted(waits)
    assert waits[0] < waits[-1]
    assert decide(cls("x"), asked, call(fallback=True), waits[-1] / 2).what == "fallback"
    assert decide(cls("x"), asked, call(), waits[-1] / 2).what == "dead"


def test_only_a_death_alone_counts_as_an_attempt() -> None:
    asked, lost = row(), e.WorkerLost("x")
    for death in (1, 2):
        verdict = decide(lost, asked, call(), FOREVER)
        assert verdict.what == "retry"
        assert verdict.row is not None
        asked = verdict.row
        assert (asked.deaths, asked.attempts, asked.alone) == (death, 1, death == 2)
    for attempt in (2, 3):
        verdict = decide(lost, asked, call(), FOREVER)
        assert verdict.row is not None
        asked = verdict.row
        assert asked.attempts == attempt
    assert decide(lost, asked, call(), FOREVER).what == "dead"


def test_a_call_that_a_failed_pool_refuses_waits_as_for_an_outage_since_no_worker_died_of_it() -> None:
    asked, refusal = row(), e.WorkerLost("pool lightweight failed", retry_after=10.0)
    for _ in range(50):
        verdict = decide(refusal, asked, call(), FOREVER)
        assert verdict.what == "retry"
        assert verdict.row is not None
        assert verdict.after >= 10.0
        asked = verdict.row
    assert (asked.attempts, asked.deaths, asked.alone, asked.try_number) == (1, 0, False, 51)
    assert decide(refusal, asked, call(fallback=True), 5.0).what == "fallback"


def test_an_answer_that_does_not_fit_is_asked_for_once_more_whatever_else_failed_before() -> None:
    assert decide(e.InvalidOutput("x"), row(2), call(), FOREVER).what == "retry"  # the first one: something else failed before
    assert decide(e.InvalidOutput("x"), row(2, invalid=1), call(), FOREVER).what == "dead"
    assert decide(e.CallTimeout("x"), row(2, invalid=1), call(), FOREVER).what == "retry"


@pytest.mark.parametrize("cls", sorted(AT_ONCE, key=lambda c: c.__name__))
def test_a_lasting_error_of_a_call_falls_back_at_once(cls: type[e.CallError]) -> None:
    assert decide(cls("x"), row(), call(fallback=True), FOREVER).what == "fallback"
    assert decide(cls("x"), row(), call(), FOREVER).what == "dead"


def test_what_somebody_cancelled_is_neither_tried_again_nor_covered_by_a_fallback_nor_skipped() -> None:
    assert decide(e.Cancelled("x"), row(), call(fallback=True), FOREVER).what == "dead"
    assert decide(e.Cancelled("x"), row(), replace(call(), on_error="skip"), FOREVER).what == "dead"


@pytest.mark.parametrize("cls", sorted(tree(e.DataError), key=lambda c: c.__name__))
def test_bad_data_is_neither_retried_nor_covered_by_a_fallback(cls: type[e.DataError]) -> None:
    assert decide(cls("x"), row(), call(fallback=True), FOREVER).what == "dead"
    assert decide(cls("x"), row(), call(skip=True), FOREVER).what == "skip"


def test_the_policy_tests_cover_every_class_of_call_error() -> None:
    assert set(tree(e.CallError)) == RETRIED | AT_ONCE | OUTAGES | {e.WorkerLost, e.NoBatchAnswer, e.Cancelled}


def test_waits_grow_to_their_cap_and_are_spread_by_the_calls_id() -> None:
    plain = [decide(e.CallTimeout("x"), row(n), call(attempts=9, cap="5s"), FOREVER).after for n in range(1, 6)]
    assert plain == [1.0, 2.0, 4.0, 5.0, 5.0]
    spread = [decide(e.CallTimeout("x"), row(id=id), call(jitter=0.5), FOREVER).after for id in "abcdefgh"]
    assert len(set(spread)) == 8
    assert all(0.5 <= s <= 1.5 for s in spread)
    assert decide(e.CallTimeout("x"), row(id="a"), call(jitter=0.5), FOREVER).after == spread[0]


def test_the_pause_before_an_attempt_is_at_least_retry_after() -> None:
    assert decide(e.RateLimited("x", retry_after=30.0), row(), call(), FOREVER).after == 30.0
    assert decide(e.RateLimited("x", retry_after=0.1), row(), call(), FOREVER).after == 1.0


def test_a_call_that_is_known_to_have_ended_its_worker_is_run_again_at_once_and_one_whose_worker_was_killed_later() -> None:
    alone = row(1, deaths=2)
    known, killed = (decide(e.WorkerLost("x", retry_after=after), alone, call(), FOREVER) for after in (0.0, None))
    assert (known.what, known.after) == (killed.what, 0.0)
    assert killed.after > 0
    assert known.row == killed.row


def test_an_answer_that_does_not_fit_is_asked_again_at_once() -> None:
    assert decide(e.InvalidOutput("x"), row(), call(), FOREVER).after == 0.0


def test_an_attempt_that_would_begin_after_the_deadline_is_not_made() -> None:
    assert decide(e.RateLimited("x", retry_after=30.0), row(), call(fallback=True), 29.0).what == "fallback"
    assert decide(e.RetryLater(after=5.0), row(), call(), 5.0).what == "dead"


def test_a_program_that_raises_retry_later_is_run_again_any_number_of_times() -> None:
    verdict = decide(e.RetryLater(after=7.0), row(1, try_number=99), call(), FOREVER)
    assert (verdict.what, verdict.after, verdict.row) == ("retry", 7.0, row(1, try_number=100))


class Noted(Exception):
    @property
    def __notes__(self) -> list[str]:
        raise RuntimeError("no notes")


def test_an_exception_that_cannot_even_be_described_is_a_failure_like_any_other() -> None:
    failure = raised(Noted("x"), "f")
    assert failure.node == "f"
    assert failure.error.message == "f raised Noted, which cannot be described: that raises RuntimeError"
    assert "Noted" in failure.traceback
