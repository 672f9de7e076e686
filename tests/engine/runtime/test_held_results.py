"""Results that wait for an earlier call of their key (`order="key"`)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_lab import APP, Lab

import dspex
from dspex import testing
from dspex.bus.errors import LMUnavailable
from dspex.engine.hosting.host import Host

MANY = 1200  # more than Python's stack would hold, if each one released the next


@pytest.mark.no_cover
def test_any_number_of_results_may_wait_for_one_slow_call() -> None:
    topology = dspex.Topology("many")
    topology.source("in.many").predict("text -> label: str", name="label", order="key").sink("out.many")
    with testing.Driver(topology) as d:
        d.fail("label", LMUnavailable("busy"), times=1)  # the first call is tried again later, all others are answered
        d.answer("label", lambda inputs: {"label": inputs["text"]})
        for number in range(MANY):
            d.publish("in.many", {"text": str(number)}, key="k")
        assert d.outputs("out.many") == []
        d.advance("5s")
        assert [o["label"] for o in d.outputs("out.many")] == [str(number) for number in range(MANY)]


def skewed(lab: Lab, name: str, by: float) -> None:
    """Start an engine on a machine whose clock is `by` seconds ahead."""
    bus = lab.server.connect()
    host = Host(bus, APP, lab.graphs, engine=name, clock=lambda: lab.server.now + by)
    lab.hosts[name] = (host, bus)
    lab.run(host.start())
    lab.advance(0.5)


def test_a_fallback_waits_for_earlier_calls_of_its_key_though_its_deadline_passed_first(lab: Callable[..., Lab]) -> None:
    topology = dspex.Topology("late")
    calls = topology.source("in").predict(
        "n: int -> label: str", name="label", order="key", deadline="60s", fallback={"label": "none"}
    )
    calls.sink("out")
    one = lab(topology)
    skewed(one, "a", 30.0)
    one.publish("in", {"n": 1}, key="k")
    one.advance(1)
    one.kill("a")
    skewed(one, "b", 0.0)
    one.publish("in", {"n": 2}, key="k")  # opened after the first, and due 30 seconds before it
    one.advance(70)
    assert one.outputs("out") == []
    one.advance(40)
    assert [o["n"] for o in one.outputs("out")] == [1, 2]
