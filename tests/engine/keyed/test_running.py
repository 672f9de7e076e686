"""aggregate and reduce without a window: every event gives the new value of its key; and how long values live."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from engine_lab import StageLab

from dspex import Topology
from dspex.engine.testing.driver import Driver


def test_aggregate_gives_the_new_state_of_the_key_with_each_event() -> None:
    topology = Topology("t")
    topology.source("in").key_by("k").aggregate(int, lambda state, d: state + d["n"], name="sum").sink("out")
    one = StageLab(topology)
    for n, key in enumerate("abab"):
        one.event({"n": n}, n, key=key)
    assert one.outputs() == [0, 1, 2, 4]


def test_reduce_begins_with_the_first_event_of_the_key() -> None:
    topology = Topology("t")
    reduced = topology.source("in").key_by("k").reduce(lambda a, b: {"n": max(a["n"], b["n"])}, name="max", ttl="1m")
    reduced.sink("out")
    one = StageLab(topology)
    for n in (2, 1, 3):
        one.event({"n": n}, n)
    assert one.outputs() == [{"n": 2}, {"n": 2}, {"n": 3}]
    one.mark(100)
    assert one.kept == (0, 0)


def test_what_is_changed_behind_does_not_change_what_is_kept() -> None:  # I6
    def spoil(state: list[int]) -> list[int]:
        state.append(-1)
        return state

    topology = Topology("t")
    kept = topology.source("in").key_by("k").aggregate(list, lambda state, d: [*state, d["n"]], name="all")
    kept.map(spoil).sink("out")
    one = StageLab(topology)
    for n in (1, 2):
        one.event({"n": n}, n)
    assert one.outputs() == [[1, -1], [1, 2, -1]]


def test_a_function_that_returns_nothing_is_told_so_and_forgets_nothing() -> None:
    def add(state: list[Any], data: Any) -> Any:
        return None if data["n"] < 0 else [*state, data["n"]]

    topology = Topology("t")
    topology.source("in").key_by("k").aggregate(list, add, name="all").sink("out")
    one = StageLab(topology)
    for n in (1, -1, 2):
        one.event({"n": n}, n)
    assert one.outputs() == [[1], [1, 2]]
    assert "add returned no state" in one.letters[0].error["message"]


@pytest.mark.parametrize("pause", [0, 1])
def test_what_has_had_its_time_is_forgotten_by_event_time_however_fast_the_events_come(pause: int) -> None:
    """The watermark says it as well, sooner or later; results may not depend on when."""

    def counted(state: int, data: Any, ctx: Any) -> tuple[int, list[int]]:
        if not state:
            ctx.wake("1h")  # for a state that is forgotten
        return state + 1, [state + 1]

    topology = Topology("t")
    s = topology.source("in").key_by("k")
    woken = s.filter("n != 3", name="few").stateful(
        counted, init=int, on_wake=lambda state, ctx: (state, ["woken"]), ttl="10s", name="count"
    )
    woken.sink("out.count")
    s.aggregate(int, lambda state, d: state + 1, ttl="10s", name="sum").sink("out.sum")
    s.reduce(lambda a, b: {**b, "n": a["n"] + b["n"]}, ttl="10s", name="all").map(lambda d: d["n"], name="n").sink("out.all")
    s.lookup(s.filter("n == 1", name="first"), ttl="10s", name="known").map(lambda p: p[1] is not None, name="is").sink(
        "out.known"
    )
    with Driver(topology) as d:
        for key, n, seconds in (("x", 1, 0), ("x", 2, 9), ("y", 3, 18), ("x", 4, 20), ("x", 5, 21)):
            d.publish("in", {"k": key, "n": n}, at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds))
            d.advance(pause)
        found = {sink: [e.data for e in d.events(f"out.{sink}") if e.key == "x"] for sink in ("count", "sum", "all", "known")}
    assert found == {"count": [1, 2, 1, 2], "sum": [1, 2, 1, 2], "all": [1, 3, 4, 9], "known": [True, True, False, False]}


def test_the_timer_of_a_ttl_is_written_when_it_fires_and_not_for_each_event() -> None:
    topology = Topology("t")
    topology.source("in").key_by("k").aggregate(int, lambda state, d: state + 1, name="n", ttl="1m").sink("out")
    one = StageLab(topology)
    one.event({}, 1)
    before = dict(one.tables.timers.rows)
    one.event({}, 30)
    assert dict(one.tables.timers.rows) == before
    one.mark(70)
    assert one.kept == (1, 1)  # it was used at 30
    one.mark(91)
    assert one.kept == (0, 0)
