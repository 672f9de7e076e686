"""What makes the state of a new key is tried when the topology is built, and may fail later."""

from __future__ import annotations

from typing import Any

import pytest

from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology


def broken() -> int:
    raise ZeroDivisionError("no")


def fold(state: Any, data: Any) -> Any:
    return data


def test_a_state_that_no_key_could_begin_with_is_a_problem_of_each_operator_that_keeps_it() -> None:
    topology = Topology("t")
    keyed = topology.source("in").key_by("k")
    for n, init in enumerate((broken, object)):
        keyed.stateful(lambda s, d, ctx: (s, [d]), init=init, name=f"s{n}").sink(f"a{n}")
        keyed.aggregate(init, fold, name=f"r{n}").sink(f"b{n}")
        keyed.window("1m").aggregate(init, fold, name=f"w{n}").sink(f"c{n}")
        keyed.session_window("1m").aggregate(init, fold, name=f"e{n}").sink(f"d{n}")
    raised = "broken, which makes the state of a new key, raised ZeroDivisionError: no"
    lost = "object makes the state of a new key, and state cannot be kept: it holds a object"
    expected = {**dict.fromkeys(("s0", "r0", "w0", "e0"), raised), **dict.fromkeys(("s1", "r1", "w1"), lost)}
    assert {p.node: p.message for p in topology.check()} == expected  # a session keeps its events, and no state
    assert {p.code for p in topology.check()} == {"DX205"}


@pytest.mark.parametrize("raises", [True, False])
def test_a_new_key_whose_state_cannot_be_made_now_is_a_letter_and_the_others_go_on(raises: bool) -> None:
    fails: list[bool] = []

    def begin() -> Any:
        if fails and raises:
            raise OSError("not now")
        return object() if fails else 0

    def add(state: Any, data: Any) -> Any:
        return state + 1 if isinstance(state, int) else state

    topology = Topology("t")
    topology.source("in").key_by("k").aggregate(begin, add, name="count").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"k": "a"})
        fails.append(True)
        d.publish("in", {"k": "b"})
        d.publish("in", {"k": "a"})
        assert d.outputs("out") == [1, 2]
        (letter,) = d.dead_letters()
        why = ("DX507", "count raised OSError: not now") if raises else ("DX502", "state cannot be kept: it holds a object")
        assert (letter.node, letter.code, letter.message) == ("count", *why)
        fails.clear()
        d.redrive()
        assert d.outputs("out") == [1, 2, 1]
