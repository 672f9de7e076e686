"""A function that changes its argument changes nothing that another operator or event gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dspex.bus.errors import ProgramError
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology


def spoil(data: Any) -> Any:
    """What no function should do."""
    data["spoilt"] = True
    data["tags"].append("spoilt")
    data["deep"]["list"][0]["n"] = -1
    return data


def fresh() -> dict[str, Any]:
    return {"tags": ["a"], "deep": {"list": [{"n": 1}]}}


def behind_a_source() -> Topology:
    topology = Topology("shared")
    events = topology.source("in")
    events.map(spoil, name="spoil").sink("spoilt")
    events.sink("out")
    return topology


def behind_a_map() -> Topology:
    topology = Topology("shared")
    events = topology.source("in").map(lambda d: d, name="same")
    events.filter(lambda d: bool(spoil(d)), name="spoil").sink("spoilt")
    events.map(lambda d: d, name="more").sink("out")
    return topology


def behind_a_call() -> Topology:
    topology = Topology("shared")
    events = topology.source("in").predict("text -> answer", name="ask", inputs={"text": "tags[0]"})
    events.map(spoil, name="spoil").sink("spoilt")
    events.map(lambda d: {k: v for k, v in d.items() if k != "answer"}, name="plain").sink("out")
    return topology


def in_front_of_a_call() -> Topology:
    topology = Topology("shared")
    events = topology.source("in")
    events.map(spoil, name="spoil").sink("spoilt")
    asked = events.predict("text -> answer", name="ask", inputs={"text": "tags[0]"})
    asked.map(lambda d: {k: v for k, v in d.items() if k != "answer"}, name="plain").sink("out")
    return topology


@pytest.mark.parametrize(
    ("make", "asks"), [(behind_a_source, False), (behind_a_map, False), (behind_a_call, True), (in_front_of_a_call, True)]
)
def test_no_branch_sees_what_a_function_in_another_one_changed(make: Callable[[], Topology], asks: bool) -> None:
    with Driver(make()) as d:
        if asks:
            d.answer("ask", {"answer": "yes"})
        d.publish("in", fresh())
        assert d.outputs("out") == [fresh()]
        assert [o["tags"] for o in d.outputs("spoilt")] == [["a", "spoilt"]]


def test_no_item_of_a_flat_map_sees_what_a_function_behind_it_changed_in_another() -> None:
    topology = Topology("shared")
    items = topology.source("in").flat_map(lambda d: [{**d, "i": i} for i in range(3)], name="thrice")
    items.filter(lambda d: d["i"] != 0 or bool(spoil(d)), name="spoil-first").sink("out")
    with Driver(topology) as d:
        d.publish("in", fresh())
        first, *others = d.outputs("out")
        assert first["tags"] == ["a", "spoilt"]
        assert others == [{**fresh(), "i": 1}, {**fresh(), "i": 2}]


@pytest.mark.parametrize("type", ["list[str]", "Any"])
def test_no_event_sees_what_a_function_changed_in_the_fallback_of_another(type: str) -> None:
    topology = Topology("shared")
    asked = topology.source("in").predict(f"text -> tags: {type}", name="ask", fallback={"tags": ["none"]})
    asked.map(lambda d: {"tags": [*d["tags"]], "grown": d["tags"].append("spoilt")}, name="spoil").sink("out")
    with Driver(topology) as d:
        d.fail("ask", ProgramError("never"), times=2)
        d.publish("in", {"text": "a"})
        d.publish("in", {"text": "b"})
        d.advance("5s")
        assert [o["tags"] for o in d.outputs("out")] == [["none"], ["none"]]
