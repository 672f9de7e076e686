"""Spans of operators with state: what windows give is linked to their events, and every parent is told, once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from engine_lab import Lab
from structlog.testing import capture_logs
from told import ToldSpans, linked, span_id, told_spans

import dspex
from dspex.bus.errors import ProgramError
from dspex.engine.again.change import ForkChange
from dspex.engine.again.fork import forked
from dspex.engine.telemetry.links import MOST_LINKS
from dspex.engine.testing.driver import Driver
from dspex.operators.stream import AnyStream
from dspex.operators.topology import Topology

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def said(data: object) -> dict[str, str]:
    return {"text": "it"}


def dearer(data: dict[str, int]) -> dict[str, int]:
    return {**data, "price": data["price"] + 1}


def kept(shape: Callable[[AnyStream], Any]) -> Topology:
    """Events of a key, what `shape` keeps of them, and a call behind it."""
    topology = Topology("kept")
    stream = shape(topology.source("in").key_by("k", name="by"))
    stream.map(said, name="said").predict("text -> answer", name="ask").sink("out")
    return topology


def spans_by_time(told: ToldSpans, driver: Driver, seconds: list[int], key: str = "a") -> dict[int, int]:
    """Publish events at these times; the spans with which they came to the operator, by time."""
    found: dict[int, int] = {}
    for one in seconds:
        before = {span_id(span) for span in told.named("process in")}
        driver.publish("in", {"k": key, "n": one}, at=at(one))
        driver.advance("1s")
        behind = [span for span in told.named("process in") if span_id(span) not in before]
        (hop,) = [span for span in behind if span.parent is not None]
        found[one] = span_id(hop)
    return found


WINDOWS = {
    "fixed": (lambda s: s.window("10s").count(name="w"), [1, 9, 8, 12, 30, 60], [{1, 8, 9}, {12}, {30}]),
    "sliding": (lambda s: s.window("10s", every="5s").count(name="w"), [1, 6, 40, 80], [{1}, {1, 6}, {6}, {40}, {40}]),
    "session": (lambda s: s.session_window("10s").count(name="w"), [1, 9, 25, 60, 90], [{1, 9}, {25}, {60}]),
    "items": (lambda s: s.window("10s").collect(name="w"), [1, 9, 12, 40], [{1, 9}, {12}]),
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_what_a_window_gives_is_a_trace_of_its_own_linked_to_its_events_alone(kind: str) -> None:
    shape, seconds, windows = WINDOWS[kind]
    with told_spans() as told, Driver(kept(shape)) as driver:
        driver.answer("ask", {"answer": "yes"})
        events = spans_by_time(told, driver, seconds)
        driver.advance("5s")
        given = told.named("process w")
        assert [set(linked(span)) for span in given] == [{events[one] for one in window} for window in windows]
        assert {span.parent for span in given} == {None}
        assert len(told.traces()) == len(seconds) + len(windows)
        calls = told.named("call ask")
        assert {span.parent.span_id for span in calls if span.parent} == {span_id(span) for span in given}
        assert (told.lost(), told.twice()) == ([], [])


def test_a_window_of_many_events_is_linked_to_the_latest_of_them() -> None:
    with told_spans() as told, Driver(kept(lambda s: s.window("200s").count(name="w"))) as driver:
        driver.answer("ask", {"answer": "yes"})
        events = spans_by_time(told, driver, list(range(MOST_LINKS + 3)))
        driver.advance("300s")
        (given,) = told.named("process w")
        assert linked(given) == [events[one] for one in range(3, MOST_LINKS + 3)]


def test_a_batch_is_linked_to_the_events_that_it_has() -> None:
    with told_spans() as told, Driver(kept(lambda s: s.batch(2, within="1h", name="w"))) as driver:
        driver.answer("ask", {"answer": "yes"})
        events = spans_by_time(told, driver, [1, 2, 3, 4, 5])
        assert [linked(span) for span in told.named("process w")] == [[events[1], events[2]], [events[3], events[4]]]
        assert (told.lost(), told.twice()) == ([], [])


def woken(state: Any, ctx: Any) -> Any:
    return state, [{"k": "a"}]


def counted(state: int, data: Any, ctx: Any) -> Any:
    ctx.wake("5s")
    return state + 1, []


LATER: dict[str, Callable[[AnyStream], Any]] = {
    "debounce": lambda s: s.debounce("5s", name="later"),
    "throttle": lambda s: s.throttle("1/s", name="later"),
    "stateful": lambda s: s.stateful(counted, init=int, name="later", on_wake=woken),
    "join": lambda s: s.join(s.filter("n > 100", name="few"), within="5s", how="left", name="later"),
    "gather": lambda s: dspex.gather(s.set({"a": "1"}, name="x"), s.set({"b": "2"}, name="y"), within="5s", name="later"),
    "serial": lambda s: s.predict("k -> said", name="later", order="serial"),
    "window": lambda s: s.window("5s").count(name="inner").key_by("key", name="again").window("10s").count(name="later"),
}


@pytest.mark.parametrize("kind", LATER)
def test_what_goes_on_later_is_below_what_it_was_and_no_parent_is_missing(kind: str) -> None:
    with told_spans() as told, Driver(kept(LATER[kind])) as driver:
        driver.answer("ask", {"answer": "yes"})
        if kind == "serial":
            driver.answer("later", {"said": "so"}, after="3s")
        for seconds in (1, 1, 2, 60):
            driver.publish("in", {"k": "a", "n": seconds}, at=at(seconds))
        driver.advance("90s")
        driver.publish("in", {"k": "a", "n": 1}, at=at(200))
        driver.advance("90s")
        assert told.named("process later")
        assert told.named("call ask")
        assert (told.lost(), told.twice()) == ([], [])


def test_a_crash_makes_no_second_span_of_a_window_and_its_events_from_then_on_are_linked() -> None:
    with told_spans() as told, Driver(kept(lambda s: s.window("10s").count(name="w"))) as driver:
        driver.answer("ask", {"answer": "yes"})
        spans_by_time(told, driver, [1])
        driver.crash("all")
        events = spans_by_time(told, driver, [2, 60])
        driver.crash("all")
        driver.advance("30s")
        (given,) = told.named("process w")
        assert events[2] in linked(given)
        assert (told.lost(), told.twice()) == ([], [])


@pytest.mark.parametrize("at_window", [False, True])
def test_what_is_redriven_has_one_span_more_below_its_first(at_window: bool) -> None:
    failing = [True]

    def fails(data: Any) -> Any:
        if failing[0]:
            raise ProgramError("not yet")
        return data

    def shape(stream: AnyStream) -> Any:
        return stream.window("10s").count(name="w").map(fails) if at_window else stream.map(fails)

    with told_spans() as told, Driver(kept(shape)) as driver:
        driver.answer("ask", {"answer": "yes"})
        driver.publish("in", {"k": "a"}, at=at(1))
        driver.advance("60s")
        assert driver.redrive() == 1
        failing[0] = False
        assert [letter.attempts for letter in driver.dead_letters()] == [2]
        driver.redrive()
        driver.advance("60s")
        assert len(driver.outputs("out")) == 1
        failed = {span_id(span) for span in told.all() if not span.status.is_ok}
        below = [span for span in told.named("process ") if span.parent is not None and span.parent.span_id in failed]
        assert [span.status.is_ok for span in below] == [False, True]
        assert (told.lost(), told.twice()) == ([], [])


def test_a_fork_that_is_done_beside_what_is_traced_tells_no_step_of_it_again(lab: Callable[..., Lab]) -> None:
    topology = Topology("forked")
    topology.source("in").predict("text -> price: int", name="ask").map(dearer, name="dearer").sink("out")
    one = lab(topology)
    one.answers["ask"] = lambda inputs, work: {"price": 7}
    with told_spans() as told:
        one.start()
        one.work()
        run = one.publish("in", {"text": "a"})
        one.advance(2)
        before = len(told.all())
        made = one.run(forked(one.client, run, "ask", ForkChange(outputs={"price": 8}), [topology.graph]))
        assert [output.data for output in one.run(one.client.run(made.run).file()).outputs] == [{"text": "a", "price": 9}]
        assert before == len(told.all()) == len(told.named("process in")) + len(told.named("call ask"))


@pytest.mark.parametrize("listens", [True, False])
def test_the_line_of_a_dead_letter_says_its_run_and_its_span_where_spans_are_told(listens: bool) -> None:
    def fails(data: Any) -> Any:
        raise ProgramError("no")

    topology = Topology("failing")
    topology.source("in").predict("k -> answer", name="ask").sink("out")
    topology.source("other").map(fails, name="check").sink("failed")
    with told_spans() if listens else nullcontext() as told, Driver(topology) as driver, capture_logs() as logs:
        driver.fail("ask", ProgramError("no"), times=9)
        runs = [driver.publish(subject, {"k": "a"}) for subject in ("in", "other")]
        driver.advance("10m")
        assert len(driver.dead_letters()) == 2
        driver.redrive()
    lines = [line for line in logs if line["event"] == "dead letter"]
    assert [line["run"] for line in lines[:2]] == runs
    spans = {f"{span_id(span):016x}" for span in told.all() if not span.status.is_ok} if told is not None else {None}
    assert {line.get("span_id") for line in lines} == spans
    assert [line.get("trace_id") for line in lines[:2]] == [run.replace("-", "") if listens else None for run in runs]
