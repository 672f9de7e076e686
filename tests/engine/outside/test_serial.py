"""order="serial": the next call of a key is made when the one before has landed, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import Lab

import dspex
from dspex.bus.errors import ProgramError, RateLimited
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology


def counted(state: int, data: Any, ctx: Any) -> tuple[int, list[Any]]:
    return state + 1, [{**data, "landed": state + 1}]


def chat(**options: Any) -> Topology:
    """What is answered is counted behind the call: `landed`."""
    topology = Topology("chat")
    asked = topology.source("in").key_by("who").predict("n: int -> answer: int", name="ask", order="serial", **options)
    asked.stateful(counted, init=int, name="count").sink("out")
    return topology


def answers(d: Driver, key: str = "a") -> list[int]:
    return [one["answer"] for one in d.outputs("out") if one["who"] == key]


def asked(d: Driver) -> list[int]:
    """What the model was asked, by the inputs of what was answered."""
    return [call.inputs["n"] for call in d.calls("ask")]


def twice(inputs: Any) -> dict[str, int]:
    return {"answer": inputs["n"] * 2}


def test_a_call_is_made_when_the_one_before_of_its_key_has_landed_and_others_wait_for_nobody() -> None:
    with Driver(chat()) as d:
        d.answer("ask", twice, after="10s")
        for n in range(3):
            d.publish("in", {"who": "a", "n": n})
        d.publish("in", {"who": "b", "n": 7})
        d.advance("11s")
        assert (sorted(asked(d)), answers(d), answers(d, "b")) == ([0, 7], [0], [14])
        assert d.state("count", "a") == 1
        d.advance("10s")
        assert asked(d)[2:] == [1]
        d.advance("10s")
        assert (answers(d), [one["landed"] for one in d.outputs("out") if one["who"] == "a"]) == ([0, 2, 4], [1, 2, 3])
        d.publish("in", {"who": "a", "n": 9})
        d.advance("11s")
        assert asked(d)[-1] == 9


def test_nothing_is_kept_of_a_key_that_waits_for_nothing(lab: Callable[..., Lab]) -> None:
    one: Lab = lab(chat())
    one.answers["ask"] = lambda inputs, work: twice(inputs)
    one.start()
    one.work()
    for n in range(3):
        one.publish("in", {"who": "a", "n": n})
    one.advance(60)
    assert [o["answer"] for o in one.outputs("out")] == [0, 2, 4]
    assert [node for (node, _, _), _ in one.left()] == ["count"]


@pytest.mark.parametrize("who", ["engine", "workers", "all"])
def test_what_waits_outlives_whoever_dies(who: Any) -> None:
    with Driver(chat()) as d:
        d.answer("ask", twice, after="10s")
        for n in range(4):
            d.publish("in", {"who": "a", "n": n})
        for _ in range(4):
            d.advance("5s")
            d.crash(who)
            d.advance("40s")
        assert answers(d) == [0, 2, 4, 6]


def test_a_call_that_fails_for_good_or_must_wait_lets_nobody_pass_meanwhile_and_then_the_next() -> None:
    with Driver(chat(retry={"attempts": 1})) as d:
        d.answer("ask", twice, after="1s")
        d.fail("ask", RateLimited("slow down"), times=1)
        for n in range(3):
            d.publish("in", {"who": "a", "n": n})
        d.fail("ask", ProgramError("a bug"), times=1)
        d.advance("5m")
        (letter,) = d.dead_letters()
        assert letter.event.data["n"] == 0
        assert answers(d) == [2, 4]
        assert d.redrive() == 1
        d.advance("2s")
        assert answers(d) == [2, 4, 0]


def three(data: Any) -> list[Any]:
    return [{**data, "n": data["n"] + i} for i in range(3)]


def test_events_that_one_event_is_made_into_wait_for_each_other_too() -> None:
    topology = Topology("many")
    many = topology.source("in").key_by("who").flat_map(three, name="many")
    many.predict("n: int -> answer: int", name="ask", order="serial").sink("out")
    with Driver(topology) as d:
        d.answer("ask", twice, after="10s")
        d.publish("in", {"who": "a", "n": 1})
        d.advance("11s")
        assert asked(d) == [1]
        d.advance("1m")
        assert answers(d) == [2, 4, 6]
        assert len({call.id for call in d.calls("ask")}) == 3


def test_an_event_whose_inputs_cannot_be_made_is_a_letter_and_the_next_has_its_turn_at_once() -> None:
    topology = Topology("chat")
    topology.source("in").key_by("who").predict(
        "n: int -> answer: int", name="ask", order="serial", inputs={"n": "10 / n"}
    ).sink("out")
    with Driver(topology) as d:
        d.answer("ask", twice, after="10s")
        for n in (1, 0, 2):
            d.publish("in", {"who": "a", "n": n})
        d.advance("25s")
        assert len(answers(d)) == 2
        assert [letter.event.data["n"] for letter in d.dead_letters()] == [0]


def test_serial_is_for_topologies() -> None:
    assert dspex.predict("text -> answer", order="serial").options == {"order": "serial"}


def test_what_waits_for_a_call_that_the_topology_drops_becomes_letters(lab: Callable[..., Lab]) -> None:
    one: Lab = lab(chat())
    one.start()
    for n in range(3):
        one.publish("in", {"who": "a", "n": n})
    one.advance(1)
    one.drain()
    without = Topology("chat", drop=["ask"])
    without.source("in").key_by("who").stateful(counted, init=int, name="count").sink("out")
    one.start("b", without)
    one.work()
    one.advance(120)
    assert sorted((letter.node, letter.event.data["n"]) for letter in one.letters()) == [("ask", n) for n in range(3)]
    assert one.left() == []
