"""Calls of other runs that a fork changes: that were retried, that wait for one another, and that fail now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus.errors import LMUnavailable
from dspex.bus.records import CallRecord, CallRequest
from dspex.engine.again.change import ForkChange
from dspex.engine.again.fork import Forked, forked
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def asking(order: str) -> Topology:
    """A call for every two events of a key, and what is counted of its answers."""
    topology = Topology("asking")
    two = topology.source("in").key_by("k", name="by_k").batch(2, within="1h", name="two")
    joined = two.map(lambda of: {"k": of[0]["k"], "n": sum(one["n"] for one in of)}, name="joined")
    joined.predict("n -> grade", name="grade", pool="p", order=order, retry={"attempts": 3}).sink("grades")
    return topology


def done(lab: MakeLab, order: str) -> tuple[Lab, list[str]]:
    """Eight events of a key; the first call has a second attempt."""
    one, tries = lab(asking(order)), dict[str, int]()

    def graded(inputs: dict[str, Any], request: CallRequest) -> dict[str, Any]:
        tries[request.call] = tries.get(request.call, 0) + 1
        if inputs["n"] == 1 and tries[request.call] == 1:
            raise LMUnavailable("not now")
        return {"grade": f"is {inputs['n']}"}

    one.answers["grade"] = graded
    one.start()
    one.work("p")
    runs = [one.publish("in", {"k": "a", "n": n}) for n in range(8)]
    one.advance(60)
    return one, runs


def fork(of: tuple[Lab, list[str]], order: str, make: Any) -> Forked:
    one, runs = of
    change = ForkChange(inputs={"n": 20})
    made: Forked = one.run(forked(one.client, runs[0], "two", change, [asking(order).graph], make=make))
    return made


@pytest.mark.parametrize(
    "order", ["any", pytest.param("key", marks=pytest.mark.long), pytest.param("serial", marks=pytest.mark.long)]
)
def test_a_call_that_was_retried_is_made_once_and_lands_in_its_turn(lab: MakeLab, order: str) -> None:
    asked = list[int]()

    async def make(pool: str, request: CallRequest) -> CallRecord:
        asked.append(request.inputs["n"])
        return CallRecord(request.call, 1, 1, "", "", outputs={"grade": f"now {request.inputs['n']}"})

    lab_done = done(lab, order)
    assert {d["grade"] for d in lab_done[0].outputs("grades")} == {"is 1", "is 5", "is 9", "is 13"}
    made = fork(lab_done, order, make)
    assert made.later is not None
    assert asked == [21]
    assert [tuple(one[1:]) for one in made.later.diffs] == [
        ("grade", "n", 1, 21),
        ("grades", "n", 1, 21),
        ("grades", "grade", "is 1", "now 21"),
    ]
    assert made.later.open == ()
