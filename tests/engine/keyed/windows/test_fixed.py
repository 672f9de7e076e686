"""window: each event counts in the windows of its time, and each window gives one result when nothing can come into it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from engine_lab import StageLab

from dspex import Stream, Topology, Windowed
from dspex.engine.testing.driver import Driver

KEYED = Callable[[Stream[Any, str]], Stream[Any, str]]
START = datetime(2026, 1, 1, tzinfo=UTC)


def made(windows: KEYED) -> StageLab:
    topology = Topology("t")
    windows(topology.source("in").key_by("k")).sink("out")
    return StageLab(topology)


def both(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {"n": a["n"] + b["n"]}


def test_events_are_counted_in_the_window_of_their_time_whose_end_is_no_part_of_it() -> None:
    one = made(lambda s: s.window("10s").count(name="w"))
    for time in (0, 9.999, 10, 25):
        one.event({}, time)
    one.mark(19.999)
    assert one.windows() == [("a", 0, 10, 2)]
    one.mark(30)
    assert one.windows()[1:] == [("a", 10, 20, 1), ("a", 20, 30, 1)]
    assert one.kept == (0, 0)


def test_windows_lie_at_multiples_of_their_length_also_before_1970_and_of_parts_of_a_second() -> None:
    one = made(lambda s: s.window("100ms").count(name="w"))
    before = -2_000_000_000.0
    for time in (before + 0.05, 0.1, 0.2, 0.25, 0.3):
        one.event({}, time)
    one.mark()
    assert [(start, end, n) for _, start, end, n in one.windows()] == [
        (before, before + 0.1, 1), (0.1, 0.2, 1), (0.2, 0.3, 2), (0.3, 0.4, 1),
    ]  # fmt: skip


def test_overlapping_windows_have_each_event_several_times_and_share_what_they_keep() -> None:  # E18
    one = made(lambda s: s.window("30s", every="10s").count(name="w"))
    for time in (1, 11, 12, 41):
        one.event({}, time)
    assert one.kept[0] == 3  # a row for each pane
    one.mark()
    assert [(start, n) for _, start, _, n in one.windows()] == [(-20, 1), (-10, 3), (0, 3), (10, 2), (20, 1), (30, 1), (40, 1)]
    assert one.kept == (0, 0)


def test_a_window_need_not_be_a_multiple_of_its_step() -> None:
    one = made(lambda s: s.window("10s", every="4s").count(name="w"))
    one.event({}, 9)
    one.mark()
    assert [(start, end) for _, start, end, _ in one.windows()] == [(0, 10), (4, 14), (8, 18)]
    assert one.kept == (0, 0)


@pytest.mark.parametrize("every", [None, "5s"])
def test_lists_are_in_the_order_of_their_times_and_folds_see_each_event(every: str | None) -> None:
    def all_of(s: Stream[Any, str]) -> Stream[Any, str]:
        w = s.window("10s", every=every)
        collected, reduced = w.collect(name="c"), w.reduce(both, name="r")
        return collected.merge(reduced, w.aggregate(list, lambda state, d: [*state, d["n"]], name="f"))

    one = made(all_of)
    for n, time in enumerate((7, 3, 8)):
        one.event({"n": n}, time)
    one.mark()
    found = {start: [v for _, s, _, v in one.windows() if s == start] for start in (0, 5)}
    assert found[0] == [[{"n": 1}, {"n": 0}, {"n": 2}], [0, 1, 2], {"n": 3}]
    assert found[5] == ([] if every is None else [[{"n": 0}, {"n": 2}], [0, 2], {"n": 2}])
    assert one.kept == (0, 0)


def test_results_come_in_the_order_of_end_node_and_key() -> None:  # I4
    def two(s: Stream[Any, str]) -> Stream[Any, str]:
        return s.window("10s").count(name="short").merge(s.window("20s").count(name="long"))

    one = made(two)
    for time in (15, 5):
        for key in "ba":
            one.event({}, time, key=key)
    one.mark()
    assert [(key, end - start) for key, start, end, _ in one.windows()] == [
        ("a", 10), ("b", 10), ("a", 20), ("b", 20), ("a", 10), ("b", 10),
    ]  # fmt: skip


def test_a_result_has_the_last_millisecond_of_its_window_as_its_time_and_a_run_of_its_own() -> None:
    topology = Topology("t")
    topology.source("in").key_by("k").window("1m").count(name="w").map(lambda w: [w.start, w.value]).sink("out")
    with Driver(topology) as d:
        run = d.publish("in", {"k": "a"})
        d.advance("2m")
        (event,) = d.events("out")
        assert event.data == ["2026-01-01T00:00:00+00:00", 1]
        assert (event.key, event.run != run) == ("a", True)


@pytest.mark.parametrize("every", [None, "2s"])
def test_an_event_whose_last_window_has_ended_is_a_letter_and_one_within_the_lateness_counts(every: str | None) -> None:  # E15
    one = made(lambda s: s.window("10s", every=every, lateness="5s").count(name="w"))
    one.event({}, 9)
    one.mark(14.999)
    one.event({}, 8)
    one.mark(15)
    assert [n for _, start, _, n in one.windows() if start == 0] == [2]
    one.mark(24)
    one.event({}, 1)
    (letter,) = one.letters
    assert (letter.error["type"], letter.error["code"], letter.node) == ("LateEvent", "DX504", "w")
    assert "2026-01-01T00:00:10+00:00 and 5 s for late events" in letter.error["message"]
    one.mark()
    assert one.kept == (0, 0)


def test_late_events_are_skipped_where_that_is_asked_for_and_leave_nothing() -> None:
    one = made(lambda s: s.window("10s", late="skip").count(name="w"))
    one.event({}, 5)
    one.mark(10)
    one.event({}, 5)
    assert (one.letters, one.kept, len(one.windows())) == ([], (0, 0), 1)


def test_an_event_that_is_late_for_some_windows_counts_in_the_others() -> None:
    one = made(lambda s: s.window("30s", every="10s").count(name="w"))
    one.event({}, 5)
    one.mark(10)
    one.event({}, 6)
    one.mark()
    assert [(start, n) for _, start, _, n in one.windows()] == [(-20, 1), (-10, 2), (0, 2)]


@pytest.mark.parametrize("every", [None, "5s"])
def test_more_events_than_a_list_may_have_are_letters_and_the_list_stays(every: str | None) -> None:
    one = made(lambda s: s.window("10s", every=every).collect(name="w", limit=2))
    for n, time in enumerate((1, 2, 3, 12)):
        one.event({"n": n}, time)
    assert [letter.error["code"] for letter in one.letters] == ["DX514"]
    one.mark()
    assert [v for _, start, _, v in one.windows() if start == 0] == [[{"n": 0}, {"n": 1}]]
    assert one.kept == (0, 0)


def test_a_function_that_fails_leaves_the_window_as_it_was() -> None:
    def strict(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        if b["n"] < 0:
            raise ValueError("no")
        return both(a, b)

    one = made(lambda s: s.window("10s").reduce(strict, name="w"))
    for n in (1, -1, 2):
        one.event({"n": n}, 1)
    one.mark()
    assert [v for *_, v in one.windows()] == [{"n": 3}]
    assert len(one.letters) == 1


def test_a_fold_that_returns_nothing_is_told_so() -> None:
    one = made(lambda s: s.window("10s").aggregate(list, lambda state, d: state.append(d), name="w"))
    one.event({}, 1)
    assert "returned no state" in one.letters[0].error["message"]


def test_what_fails_behind_a_window_is_redriven_there_as_what_the_window_gave() -> None:  # I12
    broken = [True]

    def behind(w: Windowed[int]) -> dict[str, Any]:
        if broken[0]:
            raise ValueError("no")
        return {"k": w.key, "seconds": (w.end - w.start).total_seconds(), "n": w.value}

    topology = Topology("t")
    topology.source("in").key_by("k").window("1m").count(name="w").map(behind, name="behind").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"k": "a"})
        d.advance("2m")
        assert [letter.node for letter in d.dead_letters()] == ["behind"]
        broken[0] = False
        d.redrive()
        assert d.outputs("out") == [{"k": "a", "seconds": 60.0, "n": 1}]


def test_a_window_outlives_its_engine() -> None:
    topology = Topology("t")
    topology.source("in").key_by("k").window("1m").count(name="w").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"k": "a"})
        d.crash()
        d.publish("in", {"k": "a"}, at=START + timedelta(seconds=30))
        d.advance("2m")
        d.crash()
        assert [w["value"] for w in d.outputs("out")] == [2]


@pytest.mark.parametrize("session", [False, True])
def test_a_function_that_fails_when_its_window_ends_leaves_a_letter_that_makes_the_same_result(session: bool) -> None:
    broken = [True]

    def strict(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        if broken[0]:
            raise ValueError("no")
        return both(a, b)

    topology = Topology("t")
    s = topology.source("in").key_by("k")
    if session:
        made = s.session_window("10s").aggregate(lambda: {"n": 0}, strict, name="w")
    else:
        made = s.window("20s", every="10s").reduce(strict, name="w")
    made.sink("out")
    with Driver(topology) as d:
        for n, seconds in enumerate((1, 5, 9) if session else (1, 12, 23)):  # one in each pane: they are joined at the end
            d.publish("in", {"k": "a", "n": n}, at=START + timedelta(seconds=seconds))
        d.advance("2m")
        assert {(letter.node, letter.code) for letter in d.dead_letters()} == {("w", "DX507")}
        broken[0] = False
        d.redrive()
        found = {w["start"][11:19]: w["value"]["n"] for w in d.outputs("out")}
        assert found == ({"00:00:01": 3} if session else {"23:59:50": 0, "00:00:00": 1, "00:00:10": 3, "00:00:20": 2})
        assert len(d.outputs("out")) == len(found)
