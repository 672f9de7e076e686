"""aggregate and reduce without a window: every event gives the new value of its key."""

from __future__ import annotations

from typing import Any

from engine_lab import StageLab

from dspex import Topology


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
