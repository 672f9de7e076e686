"""The same tests in memory and on a real nats-server: the clock of the driver is virtual on both."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import pytest

from dspex.bus.errors import ConfigError, NoAnswer, ProgramError, RateLimited
from dspex.engine.graph.nodes import Retry
from dspex.engine.testing.driver import Driver, Faults
from dspex.operators.topology import Topology

Bus = Literal["memory", "nats"]


@pytest.fixture(params=["memory", "nats"])
def bus(request: pytest.FixtureRequest) -> Bus:
    name: Bus = request.param
    return name


def graph() -> Topology:
    """Events that are asked about, and then counted by a key: a stage with 64 partitions behind one that calls."""
    topology = Topology("both")
    asked = topology.source("in").predict("text -> label", name="ask", retry=Retry(attempts=3, backoff="2s"))
    asked.sink("asked")
    asked.key_by("label").set({"length": "len(text)"}).sink("out.{label}")
    return topology


def test_what_takes_time_happens_when_the_test_lets_it_pass_and_not_before(bus: Bus) -> None:
    with Driver(graph(), bus=bus) as d:
        d.answer("ask", lambda inputs: {"label": inputs["text"][0]}, after="3s")
        d.fail("ask", RateLimited("slow down"))
        d.advance("10s")
        run = d.publish("in", {"text": "abc"}, key="k")
        d.publish("in", {"text": "bc"})
        d.publish("in", {"text": "later"}, after="5s")
        d.advance("2900ms")
        assert (d.outputs("asked"), d.outputs("out.*")) == ([], [])
        d.advance("100ms")
        assert (len(d.outputs("asked")), len(d.outputs("out.*"))) == (1, 1)  # one failed, and one has to wait
        d.advance("4800ms")
        assert d.outputs("out.l") == []
        d.advance("300ms")
        assert len(d.outputs("out.l")) == 1
        d.advance("100s")  # more than a test may take: all this passes on its own clock
        assert [o["length"] for o in d.outputs("out.a")] == [3]
        (event,) = d.events("out.a")
        assert (event.run, event.key) == (run, "a")
        assert sorted(str(c.error) for c in d.calls("ask")) == ["None", "None", "None", "slow down"]
        assert d.events("in")[0].time == datetime(
            2026, 1, 1, 0, 0, 10, 500_000, UTC
        )  # half a second passes while the driver starts


@pytest.mark.parametrize(("bus", "what"), [("memory", "engine"), ("memory", "workers"), ("memory", "all"), ("nats", "all")])
def test_a_crash_in_the_middle_of_a_call_loses_and_doubles_nothing(bus: Bus, what: Any) -> None:
    with Driver(graph(), bus=bus) as d:
        d.answer("ask", {"label": "a"}, after="3s")
        d.publish("in", {"text": "abc"})
        d.crash(what)
        d.advance("3s")
        assert len(d.outputs("out.a")) == (what == "engine")  # the work of a dead worker comes again later
        d.advance("15s")
        d.crash()
        assert (len(d.outputs("out.a")), len(d.calls("ask"))) == (1, 1)


def test_dead_letters_are_seen_and_run_again(bus: Bus) -> None:
    with Driver(graph(), bus=bus) as d:
        d.fail("ask", ProgramError("a bug"))
        d.publish("in", {"text": "x" * 600_000})  # is stored beside its message
        (letter,) = d.dead_letters()
        assert (letter.node, letter.reason) == ("ask", "ProgramError")
        d.answer("ask", {"label": "a"})
        assert d.redrive() == 1
        assert [o["length"] for o in d.outputs("out.a")] == [600_000]


def test_a_call_without_an_answer_ends_the_test_though_a_server_is_running() -> None:
    with pytest.raises(NoAnswer, match="ask was called with"), Driver(graph(), bus="nats") as d:
        d.publish("in", {"text": "a"})


def test_faults_change_nothing_of_what_comes_out(bus: Bus) -> None:
    topology = Topology("small")
    topology.source("in").predict("text -> label", name="ask").sink("out")
    faults = Faults(crash=0.02, freeze=0.005, duplicate=0.2, disconnect=0.01, unsettled=0.1, delay="50ms")
    with Driver(topology, bus=bus, seed=5, faults=faults) as d:
        d.answer("ask", lambda inputs: {"label": inputs["text"]}, after="1s")
        for n in range(6):
            d.publish("in", {"text": f"{n}"}, id=f"m{n}")
        d.advance("30s")
        assert sorted(o["label"] for o in d.outputs("out")) == [f"{n}" for n in range(6)]
        assert d._engines.lives > 3


def test_a_bus_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no such bus") as caught:
        Driver(graph(), bus="kafka")  # type: ignore[arg-type]
    assert caught.value.fix == '"memory" or "nats"'
