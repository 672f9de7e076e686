"""Results that wait for an earlier call of their key (`order="key"`)."""

from __future__ import annotations

import dspex
from dspex import testing
from dspex.bus.errors import LMUnavailable

MANY = 1200  # more than Python's stack would hold, if each one released the next


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
