"""Results that wait for an earlier call of their key (`order="key"`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from engine_lab import Lab

import dspex
from dspex import testing
from dspex.bus.errors import LMUnavailable
from dspex.bus.memory.server import MemoryBus
from dspex.bus.port import BusEvents, StreamInfo

MANY = 1200  # more than Python's stack would hold, if each one released the next


@pytest.mark.long
@pytest.mark.no_cover
def test_any_number_of_results_may_wait_for_one_slow_call() -> None:
    topology = dspex.Topology("many")
    texts = topology.source("in.many").flat_map(
        lambda data: [{"text": str(n)} for n in range(data["from"], data["to"])], name="each"
    )
    texts.predict("text -> label: str", name="label", order="key").sink("out.many")
    with testing.Driver(topology) as d:
        d.fail("label", LMUnavailable("busy"), times=1)  # the first call is tried again later, all others are answered
        d.answer("label", lambda inputs: {"label": inputs["text"]})
        for first in range(0, MANY, 300):
            d.publish("in.many", {"from": first, "to": first + 300}, key="k")
        assert d.outputs("out.many") == []
        d.advance("5s")
        assert [o["label"] for o in d.outputs("out.many")] == [str(number) for number in range(MANY)]


class Skewed(MemoryBus):
    """A connection to a leader whose clock is `by` seconds ahead."""

    by = 30.0

    async def stream(self, name: str) -> StreamInfo | None:
        info = await super().stream(name)
        return info and replace(info, now=info.now + self.by)


def test_a_fallback_waits_for_earlier_calls_of_its_key_though_its_deadline_passed_first(lab: Callable[..., Lab]) -> None:
    topology = dspex.Topology("late")
    calls = topology.source("in").predict(
        "n: int -> label: str", name="label", order="key", deadline="60s", fallback={"label": "none"}
    )
    calls.sink("out")
    one = lab(topology)
    one.start("a", bus=Skewed(one.server, BusEvents()))
    one.publish("in", {"n": 1}, key="k")
    one.advance(1)
    one.kill("a")
    one.start("b")
    one.publish("in", {"n": 2}, key="k")  # opened after the first, and due 30 seconds before it
    one.advance(70)
    assert one.outputs("out") == []
    one.advance(40)
    assert [o["n"] for o in one.outputs("out")] == [1, 2]
