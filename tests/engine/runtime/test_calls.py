"""Calls: retries, deadlines, fallbacks, order, and results that nobody asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import APP, Lab, LateRecords, Slow

from dspex.bus import subjects
from dspex.bus.errors import (
    CallError,
    CallTimeout,
    CircuitOpen,
    LMUnavailable,
    ProgramError,
    RateLimited,
    RetryLater,
    Saturated,
)
from dspex.bus.records import CallRequest
from dspex.engine.graph.nodes import Retry
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def asking(**options: Any) -> Topology:
    topology = Topology("asking")
    topology.source("in").predict("text -> answer", name="ask", **options).sink("out")
    return topology


def test_a_call_that_fails_is_made_again_after_its_back_off() -> None:  # N4
    with Driver(asking(retry=Retry(attempts=3, backoff="10s", jitter=0.0))) as d:
        d.answer("ask", {"answer": "yes"})
        d.fail("ask", CallTimeout("down"), times=2)
        d.publish("in", {"text": "a"})
        assert d.outputs("out") == []
        d.advance("9s")
        assert len(d.calls("ask")) == 1
        d.advance("2s")
        d.crash()  # the wait is in the log
        d.advance("20s")
        assert d.outputs("out") == [{"text": "a", "answer": "yes"}]
        assert [s.attempt for s in d.calls("ask")] == [1, 2, 3]
        assert len({s.call for s in d.calls("ask")}) == 1


def test_the_next_attempt_at_a_call_waits_for_retry_after() -> None:
    with Driver(asking()) as d:
        d.answer("ask", {"answer": "yes"})
        d.fail("ask", RateLimited("slow down", retry_after=45.0))
        d.publish("in", {"text": "a"})
        d.advance("44s")
        assert d.outputs("out") == []
        d.advance("2s")
        assert len(d.outputs("out")) == 1


@pytest.mark.parametrize(
    "options", [{"retry": Retry(backoff="50ms", jitter=0.0)}, {"deadline": "300ms"}], ids=["retry", "deadline"]
)
def test_what_is_due_before_the_engine_hears_of_its_own_commit_waits_for_that(lab: MakeLab, options: Any) -> None:
    """The request is stored, answered, and to be asked again or given up, and only its engine does not know where it lies."""
    one = lab(asking(**options))
    one.start(bus=Slow(one.server, 1.0))

    def answer(inputs: dict[str, Any], request: CallRequest) -> dict[str, Any]:
        if request.try_number == 1 or "deadline" in options:
            raise CallTimeout("down")
        return {"answer": "yes"}

    one.answers["ask"] = answer
    one.work()
    one.publish("in", {"text": "a"})
    one.advance(10)
    assert [letter.reason for letter in one.letters()] == (["CallTimeout"] if "deadline" in options else [])
    assert one.outputs("out") == ([] if "deadline" in options else [{"text": "a", "answer": "yes"}])


def test_a_call_whose_attempts_are_spent_takes_its_fallback() -> None:
    with Driver(asking(retry=Retry(attempts=2), fallback={"answer": "perhaps"})) as d:
        d.fail("ask", CallTimeout("down"), times=2)
        d.publish("in", {"text": "a"})
        d.advance("5s")
        assert d.outputs("out") == [{"text": "a", "answer": "perhaps"}]


def test_what_is_made_of_a_fallbacks_outputs_names_the_error_in_a_header_and_nothing_else_does() -> None:
    topology = Topology("fallen")
    first = topology.source("in").predict("text -> answer", name="ask", retry=Retry(attempts=1), fallback={"answer": "perhaps"})
    first.sink("out")
    first.predict("answer -> grade: int", name="grade").sink("graded")
    with Driver(topology) as d:
        d.answer("ask", {"answer": "yes"})
        d.answer("grade", {"grade": 1})
        d.fail("ask", CallTimeout("down"))
        d.publish("in", {"text": "a"})
        d.publish("in", {"text": "b"})
        for sink in ("out", "graded"):
            assert [(e.data["text"], e.headers.get("Dspex-Fallback")) for e in d.events(sink)] == [
                ("a", "CallTimeout"),
                ("b", None),
            ]


def test_spent_attempts_without_a_fallback_are_a_dead_letter_with_the_last_error() -> None:  # P1
    with Driver(asking(retry=Retry(attempts=2))) as d:
        d.fail("ask", CallTimeout("down"), times=2)
        run = d.publish("in", {"text": "a"})
        d.advance("5s")
        (letter,) = d.dead_letters()
        assert (letter.node, letter.reason, letter.message, letter.attempts) == ("ask", "CallTimeout", "down", 2)
        assert (letter.run, letter.event.data) == (run, {"text": "a"})


def test_a_call_that_fails_with_on_error_skip_leaves_no_output_and_no_dead_letter() -> None:
    with Driver(asking(on_error="skip")) as d:
        d.answer("ask", {"answer": "yes"})
        d.fail("ask", ProgramError("no"))
        d.publish("in", {"text": "a"})
        d.publish("in", {"text": "b"})
        assert [o["text"] for o in d.outputs("out")] == ["b"]
        assert d.dead_letters() == []


def test_an_answer_that_does_not_fit_is_asked_once_more_and_then_falls_back() -> None:
    answers = iter([{"answer": 1}, {"answer": "ok"}, {"answer": 2}, {"answer": 3}])
    topology = Topology("fitting")
    strict = "text -> answer: Literal['ok', 'fallback']"
    topology.source("in").predict(strict, name="ask", fallback={"answer": "fallback"}).sink("out")
    with Driver(topology) as d:
        d.answer("ask", lambda data: next(answers))
        d.publish("in", {"text": "a"})
        d.publish("in", {"text": "b"})
        assert [o["answer"] for o in d.outputs("out")] == ["ok", "fallback"]
        assert len(d.calls("ask")) == 4


def test_a_dead_letter_of_an_answer_that_does_not_fit_is_asked_anew_by_a_redrive() -> None:
    topology = Topology("fitting")
    topology.source("in").predict("text -> answer: Literal['ok']", name="ask").sink("out")
    with Driver(topology) as d:
        d.answer("ask", {"answer": "nonsense"})
        d.publish("in", {"text": "a"})
        (letter,) = d.dead_letters()
        assert letter.reason == "InvalidOutput"
        d.answer("ask", {"answer": "ok"})
        assert d.redrive() == 1
        assert [o["answer"] for o in d.outputs("out")] == ["ok"]


def test_a_deadline_passes_without_any_worker(lab: MakeLab) -> None:
    one = lab(asking(deadline="60s"))
    one.start()
    run = one.publish("in", {"text": "a"})
    one.advance(59)
    assert one.letters() == []
    one.advance(2)
    (letter,) = one.letters()
    assert (letter.reason, letter.node, letter.run, letter.event.data) == ("CallTimeout", "ask", run, {"text": "a"})
    one.work()
    assert one.outputs("out") == []  # the work was still there, and its result is late


def test_the_deadline_of_the_first_call_after_a_quiet_time_is_kept_too(lab: MakeLab) -> None:
    """While there is no timer the clock is looked at once a second only."""
    one = lab(asking(deadline="300ms"))
    one.start()
    for n in range(1, 6):
        one.advance(3.17)
        one.publish("in", {"text": str(n)})
        one.advance(0.5)
        assert len(one.letters()) == n


def test_a_deadline_that_passes_falls_back_where_there_is_a_fallback(lab: MakeLab) -> None:
    one = lab(asking(deadline="60s", fallback={"answer": "perhaps"}))
    one.start()
    one.publish("in", {"text": "a"})
    one.kill()
    one.start()
    one.advance(61)
    assert one.outputs("out") == [{"text": "a", "answer": "perhaps"}]


def test_a_result_that_was_stored_in_time_beats_the_deadline_however_long_the_engine_was_away(lab: MakeLab) -> None:  # G6
    topology = Topology("asking")
    texts = topology.source("in").flat_map(lambda data: [{"text": str(n)} for n in range(data["count"])], name="each")
    texts.predict("text -> answer", name="ask", deadline="60s").sink("out")
    one = lab(topology)
    one.start()
    one.publish("in", {"count": 700})  # more than the inbox reads at once
    one.kill()
    one.work()
    one.advance(7200)
    one.start(bus=LateRecords(one.server, 5.0))
    one.advance(60)
    assert len(one.outputs("out")) == 700
    assert one.letters() == []


def test_an_attempt_that_could_not_begin_before_the_deadline_ends_the_call_with_its_own_error() -> None:
    with Driver(asking(deadline="20s")) as d:
        d.fail("ask", RateLimited("come back tomorrow", retry_after=86400.0))
        d.publish("in", {"text": "a"})
        (letter,) = d.dead_letters()
        assert letter.reason == "RateLimited"
        assert letter.message == "come back tomorrow: it asks to wait 86,400 s, and the deadline of the call is in 20 s"
        assert "raise deadline= of ask" in letter.fix
        assert d.events("out") == []


def test_results_come_as_they_finish_where_order_does_not_matter() -> None:
    with Driver(asking()) as d:
        d.answer("ask", {"answer": "slow"}, after="5s")
        d.publish("in", {"text": "1"}, key="k")
        d.answer("ask", {"answer": "quick"})
        d.publish("in", {"text": "2"}, key="k")
        d.advance("6s")
        assert [o["text"] for o in d.outputs("out")] == ["2", "1"]


def delayed(lab: Lab, texts: set[str], error: CallError | None = None) -> None:
    """The first attempt of these fails; it is rate-limited for a minute if no error is given."""

    def answer(inputs: dict[str, Any], work: Any) -> Any:
        if inputs["text"] in texts and work.try_number == 1:
            raise error or RateLimited("wait", retry_after=60.0)
        return {"answer": inputs["text"]}

    lab.answers["ask"] = answer


def test_results_of_a_key_are_released_in_its_order_and_other_keys_do_not_wait(lab: MakeLab) -> None:  # N7
    one = lab(asking(order="key"))
    delayed(one, {"a1", "n2"})
    one.start()
    one.work()
    for text, key in [("a1", "a"), ("b1", "b"), ("a2", "a"), ("n1", None), ("a3", "a"), ("n2", None), ("n3", None)]:
        one.publish("in", {"text": text}, key=key)
    assert [o["text"] for o in one.outputs("out")] == ["b1", "n1"]
    one.advance(70)
    assert [o["text"] for o in one.outputs("out") if o["text"][0] == "a"] == ["a1", "a2", "a3"]
    assert [o["text"] for o in one.outputs("out") if o["text"][0] == "n"] == ["n1", "n2", "n3"]


def test_the_order_of_a_key_outlives_a_crash_and_a_call_that_died(lab: MakeLab) -> None:  # N7
    one = lab(asking(order="key", retry=Retry(attempts=1)))
    one.answers["ask"] = lambda inputs, work: {"answer": inputs["text"]}
    one.start()
    for n in range(6):
        one.publish("in", {"text": str(n)}, key="k")
    works = one.messages(subjects.work(APP, "lightweight", "asking", "ask"))
    for m in reversed(works[2:]):
        one.store(one.result(CallRequest.unpack(m.data)))
    one.kill()
    one.start()
    assert one.outputs("out") == []
    one.store(one.result(CallRequest.unpack(works[0].data)))
    assert [o["text"] for o in one.outputs("out")] == ["0"]
    delayed(one, {"1"}, CallTimeout("too slow"))
    one.kill()
    one.start()
    one.store(one.result(CallRequest.unpack(works[1].data)))  # spent: a dead letter, and the others need not wait
    assert [o["text"] for o in one.outputs("out")] == ["0", "2", "3", "4", "5"]
    assert [letter.event.data["text"] for letter in one.letters()] == ["1"]


def test_a_fallback_waits_for_the_earlier_calls_of_its_key_too(lab: MakeLab) -> None:
    one = lab(asking(order="key", fallback={"answer": "perhaps"}))

    def answer(inputs: dict[str, Any], work: Any) -> Any:
        if inputs["text"] == "1" and work.try_number == 1:
            raise RateLimited("wait", retry_after=60.0)
        if inputs["text"] == "2":
            raise ProgramError("no")
        return {"answer": "yes"}

    one.answers["ask"] = answer
    one.start()
    one.work()
    for n in "123":
        one.publish("in", {"text": n}, key="k")
    assert one.outputs("out") == []
    one.advance(70)
    assert [(o["text"], o["answer"]) for o in one.outputs("out")] == [("1", "yes"), ("2", "perhaps"), ("3", "yes")]


def test_an_answer_that_does_not_fit_when_its_turn_comes_is_asked_again_and_the_key_goes_on(lab: MakeLab) -> None:
    topology = Topology("asking")
    topology.source("in").predict("text -> answer: int", name="ask", order="key").sink("out")
    one = lab(topology)
    delayed(one, {"1"})
    limited = one.answers["ask"]

    def answer(inputs: dict[str, Any], work: Any) -> Any:
        if inputs["text"] == "2" and work.try_number == 1:
            return {"answer": "no number"}
        return limited(inputs, work)

    one.answers["ask"] = answer
    one.start()
    one.work()
    for n in "123":
        one.publish("in", {"text": n}, key="k")
    one.advance(70)
    assert [o["text"] for o in one.outputs("out")] == ["1", "2", "3"]


def test_late_repeated_and_unknown_results_are_counted_and_change_nothing(lab: MakeLab) -> None:
    one = lab(asking())
    host = one.start()
    one.work()
    one.publish("in", {"text": "a"})
    assert len(one.outputs("out")) == 1
    work = one.asked[0]
    again = one.result(work)
    for message in (
        again,  # a repeat that the window does not catch, as it has no message id here
        one.result(work, number=77, call="unknown"),
        one.result(work, try_number=2),
        again._replace(data=b"\xff garbage"),
    ):
        one.store(message._replace(headers={}))
    assert len(one.outputs("out")) == 1
    assert host.runners[0].counters["dropped"] == 4
    assert host.runners[0].stopped is None


def test_a_function_behind_a_call_may_ask_for_later_without_another_call() -> None:
    topology = Topology("behind")
    times: list[int] = []

    def patient(data: Any) -> Any:
        times.append(1)
        if len(times) == 1:
            raise RetryLater(after=30.0)
        return data

    topology.source("in").predict("text -> answer", name="ask").map(patient, name="patient").sink("out")
    with Driver(topology) as d:
        d.answer("ask", {"answer": "yes"})
        d.publish("in", {"text": "a"})
        d.advance("31s")
        assert len(d.outputs("out")) == 1
        assert len(d.calls("ask")) == 1


def test_a_fallback_whose_followers_fail_is_a_dead_letter_of_the_one_that_failed() -> None:
    topology = Topology("fallen")
    asked = topology.source("in").predict("text -> answer", name="ask", fallback={"answer": "perhaps"})
    asked.map(lambda d: {}[d["answer"]], name="broken").sink("out")
    with Driver(topology) as d:
        d.fail("ask", ProgramError("no"))
        d.publish("in", {"text": "a"})
        (letter,) = d.dead_letters()
        assert (letter.node, letter.code) == ("broken", "DX507")


def test_open_calls_are_bounded_and_the_source_waits(lab: MakeLab) -> None:
    one = lab(asking())
    host = one.start(most_open_calls=5)
    for n in range(12):
        one.publish("in", {"text": str(n)})
    (p,) = host.runners[0].partitions.values()
    assert len(p.tables.calls.rows) == 5
    one.work()
    one.advance(1)
    assert len(one.outputs("out")) == 12


@pytest.mark.parametrize("error", [LMUnavailable, RateLimited, Saturated, CircuitOpen])
def test_an_outage_of_minutes_costs_no_event_as_long_as_the_deadline_is_not_over(lab: MakeLab, error: type[CallError]) -> None:
    one = lab(asking(deadline="10m"))
    down = True

    def answer(inputs: dict[str, Any], work: Any) -> Any:
        if down:
            raise error("down")
        return {"answer": "yes"}

    one.answers["ask"] = answer
    one.start()
    one.work()
    one.publish("in", {"text": "a"})
    one.advance(300)
    assert (one.outputs("out"), one.letters()) == ([], [])
    down = False
    one.advance(90)
    assert [o["answer"] for o in one.outputs("out")] == ["yes"]
    assert one.asked[-1].attempt == 1
    assert len(one.asked) < 20  # the pauses grow
