"""A run is forked at what keeps something: what goes in is changed, or what comes out, with the state as it was then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus.errors import ConfigError, RunNotFound
from dspex.engine.again.change import ForkChange
from dspex.engine.again.fork import Forked, forked
from dspex.engine.again.replays import of_file
from dspex.engine.client.runs.export import RunFile
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


@dataclass
class Amount:
    k: str
    n: int
    at: int


def added(state: int, data: dict[str, Any], ctx: object) -> tuple[int, list[dict[str, Any]]]:
    return state + data["n"], [{**data, "sum": state + data["n"]}]


def amount(d: dict[str, Any]) -> Amount:
    return Amount(**d)


def nudge(state: int, data: dict[str, Any], ctx: Any) -> tuple[int, list[dict[str, Any]]]:
    ctx.wake("1s")
    return state + 1, [{"n": data["n"]}]


def nudged(state: int, ctx: object) -> tuple[int, list[dict[str, Any]]]:
    return 0, [{"nudge": state}]


def summing() -> Topology:
    """A sum, a window, a join, a debounce of each key, a gather, one that wakes, and a batch of what has a type."""
    topology = Topology("summing")
    by_k = topology.source("in", time="at").key_by("k", name="by_k")
    by_k.stateful(added, init=int, name="total").sink("sums")
    by_k.window("10s").count(name="window").sink("windows")
    by_k.debounce("2s", name="calm").sink("calmed")
    right = topology.source("right", time="at").key_by("k", name="right_by_k")
    by_k.join(right, within="7s", name="both").map(lambda pair: pair, name="paired").sink("pairs")
    by_k.stateful(nudge, init=int, on_wake=nudged, name="nudged").sink("nudges")
    double = by_k.map(lambda d: {"double": 2 * d["n"]}, name="double")
    by_k.gather(double, within="5s", name="whole").sink("wholes")
    typed = by_k.map(amount, name="typed")
    typed.batch(9, within="7s", name="some").sink("batches")
    typed.join(right, within="7s", name="typed_both").sink("typed_pairs")
    return topology


@pytest.fixture
def past(lab: MakeLab) -> tuple[Lab, list[str]]:
    one, runs = lab(summing()), list[str]()
    one.start()
    for n in range(5):
        one.publish("right", {"k": "a", "r": n, "at": 1_767_225_600 + n})
        runs.append(one.publish("in", {"k": "a", "n": n, "at": 1_767_225_600 + n}))
        one.advance(3)
    one.advance(60)
    return one, runs


def fork(one: Lab, run: str, at: str, **change: Any) -> tuple[Forked, RunFile]:
    made: Forked = one.run(forked(one.client, run, at, ForkChange(**change), [summing().graph]))
    file: RunFile = one.run(one.client.run(made.run).file())
    assert asyncio.run(of_file(None, file, [summing().graph], "strict")).same
    return made, file


def sink(file: RunFile, name: str) -> list[Any]:
    return [one.data for one in file.root if one.kind == "output" and one.node == name]


def test_what_goes_into_an_operator_with_state_is_changed_and_it_goes_on_from_what_it_kept(
    past: tuple[Lab, list[str]],
) -> None:
    one, runs = past
    made, file = fork(one, runs[3], "total", inputs={"n": 100})
    assert [d["sum"] for d in sink(file, "sums")] == [103]  # 0 + 1 + 2 were before
    assert {step.step for step in made.diff.steps} == {"sums#0"}
    assert made.keeps == (6, 103)
    assert [d["n"] for d in sink(fork(one, runs[3], "calm", inputs={"n": 100})[1], "calmed")] == [100]
    assert [d["n"] for d, _ in sink(fork(one, runs[3], "both#0", inputs={"n": 100})[1], "pairs")] == [100] * 4
    assert [d["double"] for d in sink(fork(one, runs[3], "double", inputs={"n": 5})[1], "wholes")] == [10]


@pytest.mark.long
def test_what_comes_out_of_an_operator_with_state_is_changed_at_once_or_when_it_is_woken(past: tuple[Lab, list[str]]) -> None:
    one, runs = past
    assert [d["sum"] for d in sink(fork(one, runs[3], "total", outputs={"sum": 7})[1], "sums")] == [7]
    assert [d["sum"] for d in sink(fork(one, runs[3], "total#0", outputs={"sum": 7})[1], "sums")] == [7]
    assert [d["n"] for d in sink(fork(one, runs[3], "calm", outputs={"n": 7})[1], "calmed")] == [7]
    assert [d["double"] for d in sink(fork(one, runs[3], "whole", outputs={"double": 7})[1], "wholes")] == [7]


@pytest.mark.long
def test_of_what_many_events_fill_it_is_told_what_it_keeps_then(past: tuple[Lab, list[str]]) -> None:
    one, runs = past
    made, file = fork(one, runs[2], "some", inputs={"n": 100})
    assert made.changed
    assert made.diff.same
    then, now = made.keeps or ((), ())
    assert (then[-1]["n"], now[-1]["n"]) == (2, 100)
    assert [d["n"] for d in then[:-1]] == [d["n"] for d in now[:-1]] == [0, 1]
    same, _ = fork(one, runs[3], "window", inputs={"n": 100})
    assert same.keeps is not None
    assert (same.keeps[0] == same.keeps[1], same.changed) == (True, False)
    assert fork(one, file.info.id, "total", outputs={"sum": 1})[0].parent == file.info.id


def test_of_the_pairs_of_a_join_the_fields_of_either_side_are_changed_before_it_or_behind_it(
    past: tuple[Lab, list[str]],
) -> None:
    one, runs = past
    made, file = fork(one, runs[3], "both", outputs={"left.n": 7, "right.r": 8})
    assert [(d["n"], r["r"]) for d, r in sink(file, "pairs")] == [(7, 8)] * 4
    assert made.changed
    assert [r["r"] for _, r in sink(fork(one, runs[3], "paired#0", inputs={"1.r": 8})[1], "pairs")] == [8, 1, 2, 3]


@pytest.mark.long
def test_a_step_is_named_by_its_number_also_where_a_timer_has_woken_it(past: tuple[Lab, list[str]]) -> None:
    one, runs = past
    file = fork(one, runs[4], "nudged#1", outputs={"nudge": 7})[1]
    assert sink(file, "nudges") == [{"n": 4}, {"nudge": 7}]
    assert sink(fork(one, runs[4], "nudged#0", outputs={"n": 7})[1], "nudges") == [{"n": 7}, {"nudge": 1}]
    assert sink(fork(one, runs[4], "nudged/a#1", outputs={"nudge": 7})[1], "nudges") == [{"n": 4}, {"nudge": 7}]
    with pytest.raises(RunNotFound, match="nudged#1 was woken by a timer") as refused:
        fork(one, runs[4], "nudged#1", inputs={"n": 7})
    assert "--set" in str(refused.value.fix)


@pytest.mark.parametrize(
    ("at", "change", "error", "said"),
    [
        ("some", {"outputs": {"n": 9}}, ConfigError, r"some: its data is a list of \d, and has no 'n'"),
        ("both", {"outputs": {"n": 9}}, ConfigError, "its data is a list of 2, and has no 'n'"),
        ("both", {"outputs": {"middle.n": 9}}, ConfigError, "a list of 2, and has no 'middle.n'"),
        ("typed_both", {"outputs": {"left.n": "five"}}, ConfigError, 'typed_both: left.n: int, and "five" is none'),
        ("some", {"inputs": {"m": 9}}, ConfigError, "it does not fit Amount: .*'m'"),
        ("total", {"lm": "big"}, ConfigError, "total asks no model"),
        ("total#3", {"inputs": {"n": 1}}, RunNotFound, "did not come to total#3"),
        ("totl", {"inputs": {"n": 1}}, RunNotFound, "no step or operator 'totl'"),
    ],
)
def test_what_is_not_there_to_be_changed_is_refused_and_no_fork_is_kept(
    past: tuple[Lab, list[str]], at: str, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    one, runs = past
    with pytest.raises(error, match=said):
        fork(one, runs[3], at, **change)

    async def listed() -> list[str]:
        return [info.id async for info in one.client.runs("summing") if info.parent]

    assert one.run(listed()) == []
