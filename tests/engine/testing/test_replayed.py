"""At its end a driver processes again what its engine took: a function that gives something else then fails the test."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from dspex.bus.errors import RetryLater
from dspex.engine.testing.driver import Driver, Faults
from dspex.operators.topology import Topology

_seen: set[str] = set()
_numbers = itertools.count()


def unseen(data: Any) -> list[Any]:
    new = data["k"] not in _seen
    _seen.add(data["k"])
    return [data] if new else []


def mapped(fn: Callable[..., Any]) -> Topology:
    topology = Topology("t")
    topology.source("in").flat_map(fn, name="fn").key_by("k").aggregate(int, lambda n, d: n + 1, name="n").sink("out")
    return topology


def run(topology: Topology, **options: Any) -> None:
    with Driver(topology, **options) as d:
        d.publish("in", {"k": "a"})
        d.publish("in", {"k": "a"})
        d.advance("10s")
        assert d.outputs("out")[0] == 1


@pytest.mark.parametrize(
    "fn",
    [
        lambda d: [{**d, "chance": random.random()}],
        lambda d: [{**d, "clock": time.monotonic_ns()}],
        lambda d: [{**d, "count": next(_numbers)}],
        unseen,
    ],
    ids=["chance", "clock", "a counter", "memory of its own"],
)
def test_a_function_that_gives_something_else_for_the_same_event_fails_its_test(fn: Callable[..., Any]) -> None:
    _seen.clear()
    with pytest.raises(AssertionError, match="what in took gives something else when it is processed again") as caught:
        run(mapped(fn))
    assert ("fix: take ctx.now, ctx.random" in str(caught.value), "to dspex.test.edge.t" in str(caught.value)) == (True, True)


def test_a_state_that_is_not_made_of_its_events_alone_fails_its_test() -> None:
    topology = Topology("t")
    drawn = topology.source("in").key_by("k").aggregate(lambda: random.random(), lambda n, d: n, name="n")
    drawn.map(lambda n: 1).sink("out")
    with pytest.raises(AssertionError, match="other changes: keyed"):
        run(topology)


@pytest.mark.parametrize("faults", [None, Faults(crash=0.02, disconnect=0.02, unsettled=0.1)])
def test_what_the_context_gives_is_the_same_again(faults: Faults | None) -> None:
    run(mapped(lambda d, ctx: [{**d, "all": [ctx.now.isoformat(), ctx.random.random(), str(ctx.uuid())]}]), faults=faults)


@pytest.mark.parametrize("error", [ValueError("not yet"), RetryLater(after=2)])
def test_a_function_that_a_test_lets_fail_for_a_while_is_not_blamed(error: Exception) -> None:
    broken = [error]

    def fn(data: Any) -> list[Any]:
        for one in broken:
            raise one
        return [data]

    with Driver(mapped(fn)) as d:
        d.publish("in", {"k": "a"})
        broken.clear()
        d.advance("3s")
        assert len(d.dead_letters()) == (1 if isinstance(error, ValueError) else 0)
        d.redrive()
        assert d.outputs("out") == [1]


def test_a_test_that_fails_says_why_it_failed_and_nothing_else() -> None:
    topology = mapped(lambda d: [{**d, "chance": random.random()}])
    with pytest.raises(KeyError), Driver(topology) as d:
        fails(d)


def fails(d: Driver) -> None:
    d.publish("in", {"k": "a"})
    raise KeyError
