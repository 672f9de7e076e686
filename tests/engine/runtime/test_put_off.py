"""Events that an operator has put off: they lie in their source until their time has come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine_lab import Lab

from dspex.bus.errors import RetryLater
from dspex.bus.port import StreamConfig
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def putting_off(seconds: float) -> Topology:
    """Its operator lets every event wait until it is so old."""
    topology = Topology("reading")

    def wait(data: Any, ctx: Any) -> Any:
        if (ctx.now - ctx.event.time).total_seconds() < seconds:
            raise RetryLater(after=1.0)
        return data

    topology.source("in").map(wait, name="wait").sink("out")
    return topology


def test_an_event_that_was_put_off_waits_for_a_stream_that_is_missing(lab: MakeLab) -> None:
    one = lab(putting_off(1.0))
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    one.start()
    one.publish("in", {"n": 1})
    one.advance(0.5)
    missing = one.server.streams.pop("EVENTS")
    one.advance(2.0)  # its time has come, and nobody has noticed yet that the stream is missing
    one.server.streams["EVENTS"] = missing
    one.advance(10.0)
    assert one.outputs("out") == [{"n": 1}]


def test_an_event_that_was_put_off_survives_that_the_servers_clock_is_set_back(lab: MakeLab) -> None:
    one = lab(putting_off(33.0))  # the engine's clock is not set back at once
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    one.start()
    one.server._epoch -= 30.0  # as if another machine had become the leader; what comes now is older than the stream
    one.publish("in", {"n": 1})
    one.advance(60.0)
    assert one.outputs("out") == [{"n": 1}]
