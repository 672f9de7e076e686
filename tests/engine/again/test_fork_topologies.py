"""What a fork leads to in other topologies of the application, which read what is sent otherwise by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from engine_lab import Lab

from dspex.engine.again.change import ForkChange
from dspex.engine.again.fork import Forked, forked
from dspex.engine.graph.graph import HasGraph
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def summed(state: int, data: dict[str, Any], ctx: object) -> tuple[int, list[dict[str, Any]]]:
    return state + data["n"], [{"k": data["k"], "n": state + data["n"]}]


def highest(state: int, data: dict[str, Any], ctx: object) -> tuple[int, list[dict[str, Any]]]:
    return max(state, data["n"]), [{"k": data["k"], "most": max(state, data["n"])}]


def chain() -> list[Topology]:
    """Sums of keys; what reads these, over a hop; and what reads that."""
    first, second, third = Topology("first"), Topology("second"), Topology("third")
    first.source("in").key_by("k", name="by_k").stateful(summed, init=int, name="total").sink("sums")
    second.source("sums").key_by("k", name="again").stateful(highest, init=int, name="most").sink("highest")
    third.source("highest").map(lambda of: {"shown": of["most"]}, name="show").sink("shown")
    return [first, second, third]


@pytest.fixture
def done(lab: MakeLab) -> tuple[Lab, list[str]]:
    """Six events of two keys."""
    one = lab(*chain())
    one.start()
    runs = [one.publish("in", {"k": "ab"[n % 2], "n": n}) for n in range(6)]
    one.advance(30)
    return one, runs


def fork(done: tuple[Lab, list[str]], code: Sequence[HasGraph], **change: Any) -> Forked:
    one, runs = done
    made: Forked = one.run(forked(one.client, runs[2], "total", ForkChange(**change), [of.graph for of in code]))
    return made


def of(found: Forked, step: str) -> list[tuple[str | None, Any, Any]]:
    assert found.later is not None
    return [(one.field, one.a, one.b) for one in found.later.diffs if one.step == step]


def test_topologies_that_read_what_is_sent_otherwise_are_followed_one_behind_the_other(done: tuple[Lab, list[str]]) -> None:
    made = fork(done, chain(), inputs={"n": 20})
    assert of(made, "sums") == [("n", 6, 24)]
    assert of(made, "highest") == [("most", 6, 24)]
    assert of(made, "shown") == [("shown", 6, 24)]
    assert made.later is not None
    assert made.later.open == ("at the end of the log total is not as it was", "at the end of the log most is not as it was")


def test_what_only_another_topology_keeps_is_found_by_its_later_events(done: tuple[Lab, list[str]]) -> None:
    made = fork(done, chain(), outputs={"n": 100})
    assert of(made, "sums") == []
    assert of(made, "highest") == [("most", 6, 100)]
    assert of(made, "shown") == [("shown", 6, 100)]


def test_a_topology_whose_code_is_not_here_is_named(done: tuple[Lab, list[str]]) -> None:
    made = fork(done, chain()[:2], inputs={"n": 20})
    assert made.later is not None
    assert of(made, "highest") == [("most", 6, 24)]
    assert "what third makes of it is not known: its code is not here" in made.later.open
