"""Operators that are linked to one function give what they give each by itself, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from engine_lab import StageLab
from hypothesis import given, settings
from hypothesis import strategies as st

from dspex import Stream, Topology
from dspex.bus.subjects import KEY

Keyed = Stream[Any, str]


def doubled(data: dict[str, Any]) -> dict[str, Any]:
    data["n"] *= 2  # a function may do so: what it was given is its own
    return data


def tally(state: list[int], data: dict[str, Any], ctx: Any) -> tuple[list[int], list[dict[str, Any]]]:
    state.append(data["n"])
    return state[-3:], [data, data, {"n": sum(state)}]


def apart(stream: Keyed) -> Keyed:
    even, odd = stream.branch("n % 2 == 0")
    return even.map(doubled).merge(odd)


OPERATORS: dict[str, Callable[[Keyed], Keyed]] = {
    "map": lambda s: s.map(lambda d: {"n": d["n"] + 1}),
    "in place": lambda s: s.map(doubled),
    "filter": lambda s: s.filter("n % 3 > 0"),
    "flat_map": lambda s: s.flat_map(lambda d: [d, d, {"n": -d["n"]}][: d["n"] % 4]),
    "set": lambda s: s.set({"n": "n - 1", "was": "n"}),
    "branch": apart,
    "both ways": lambda s: s.map(doubled).merge(s),
    "stateful": lambda s: s.stateful(tally, init=list, name="stateful"),
    "aggregate": lambda s: s.aggregate(int, lambda sum, d: sum + d["n"], name="sum").map(lambda n: {"n": n}),
    "reduce": lambda s: s.reduce(lambda a, b: {"n": a["n"] - b["n"]}, name="reduce"),
    "dedupe": lambda s: s.dedupe("str(n)", within="1h", name="once"),
}


def topology(names: Sequence[str]) -> Topology:
    """These operators, one behind the other."""
    made = Topology("t")
    stream: Keyed = made.source("in").key_by("k")
    for n, name in enumerate(names):
        stream = stream.through(OPERATORS[name], name=f"part{n}")
    stream.sink("out")
    return made.freeze()


ALONE = {name: topology([name]) for name in OPERATORS}


def outputs(one: StageLab, begin: int) -> list[tuple[str, Any]]:
    """The keys and the data of what went to the sink, from one on."""
    keys = [(m.headers or {})[KEY] for m in one.written[begin:]]
    return list(zip(keys, one.outputs()[begin:]))


def check(names: Sequence[str], events: Sequence[tuple[str, int]]) -> None:
    fused, alone = StageLab(topology(names)), [StageLab(ALONE[name]) for name in names]
    for key, n in events:
        fused.event({"n": n}, 0, key=key)
        moving: list[tuple[str, Any]] = [(key, {"n": n})]
        for one in alone:
            begin = len(one.written)
            for of, data in moving:
                one.event(data, 0, key=of)
            moving = outputs(one, begin)
    assert not [letter.error for one in (fused, *alone) for letter in one.letters]
    assert outputs(fused, 0) == outputs(alone[-1], 0)


@pytest.mark.parametrize("first", OPERATORS)
def test_two_operators_that_are_fused_give_what_they_give_each_by_itself(first: str) -> None:
    for second in OPERATORS:
        check([first, second], [("a", 3), ("b", 2), ("a", 7), ("a", 3)])


@settings(max_examples=settings().max_examples // 5)
@given(
    st.lists(st.sampled_from(list(OPERATORS)), min_size=3, max_size=5),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(-9, 9)), min_size=1, max_size=8),
)
def test_operators_that_are_fused_give_what_they_give_each_by_itself(names: list[str], events: list[tuple[str, int]]) -> None:
    check(names, events)
