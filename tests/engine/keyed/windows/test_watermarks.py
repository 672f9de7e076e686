"""Watermarks at their edges: times ahead of the clock, before the year 1, of events that wait, and of several sources."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dspex import Stream
from dspex.bus.errors import ProgramError, RetryLater
from dspex.engine.graph.context import StateContext
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_a_call_for_an_event_ahead_of_the_clock_holds_windows_also_where_its_source_has_no_other_event() -> None:
    topology = Topology("t")
    planned = topology.source("planned", idle="5s").predict("k -> answer", name="ask", timeout="1h", deadline="1h")
    topology.source("live").merge(planned).key_by("k").window("1m").count(name="w").sink("out")
    with Driver(topology) as d:
        d.answer("ask", {"answer": "yes"}, after="7m")
        d.advance("5s")  # both sources are known to have had no event
        d.publish("planned", {"k": "a"}, at=at(345))
        for seconds in (10, 310, 370):
            d.publish("live", {"k": "b"}, at=at(seconds))
            d.advance("5m" if seconds == 10 else "30s")
        assert [w["start"][14:16] for w in d.outputs("out")] == ["00"]
        d.advance("2m")
        assert d.dead_letters() == []
        assert sorted((w["key"], w["start"][14:16]) for w in d.outputs("out")[1:]) == [("a", "05"), ("b", "05"), ("b", "06")]


def test_windows_end_behind_a_source_whose_events_are_all_ahead_of_the_clock() -> None:
    topology = Topology("t")
    topology.source("live").merge(topology.source("planned")).key_by("k").window("1m").count(name="w").sink("out")
    with Driver(topology) as d:
        for minute in range(2):
            d.publish("live", {"k": "a"}, at=at(60 * minute + 10))
            d.publish("planned", {"k": "b"}, at=at(86_400 + 60 * minute))
            d.advance("1m")
        d.advance("1m")
        assert [w["key"] for w in d.outputs("out")] == ["a"] * 2


def test_events_ahead_of_the_clock_keep_no_window_open_also_where_they_never_end() -> None:
    topology = Topology("t")
    topology.source("in", idle="10s").key_by("k").window("1m").count(name="w").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"k": "a"}, at=at(10))
        for n in range(20):  # never silent for as long as a source has to be
            d.publish("in", {"k": "b"}, at=at(86_400 + n))
            d.advance("5s")
        assert [w["key"] for w in d.outputs("out")] == ["a"]
        d.publish("in", {"k": "a"}, at=at(101))  # and it is not ahead of what is still to come
        d.advance("3m")
        assert ([w["key"] for w in d.outputs("out")], d.dead_letters()) == (["a", "a"], [])


def unready(waits: list[type[Exception]]) -> Callable[[Any], Any]:
    """Fails with the only error in the list for bad data; with none in it, it gives back its argument."""

    def check(data: Any) -> Any:
        for error in waits if data.get("bad") else ():
            raise RetryLater(after=60) if error is RetryLater else ProgramError("no")
        return data

    return check


def behind_a_call(stream: Stream[Any, str], check: Callable[[Any], Any]) -> Stream[Any, str]:
    return stream.predict("k -> answer", name="ask").map(check, name="check")


def behind_a_state(stream: Stream[Any, str], check: Callable[[Any], Any]) -> Stream[Any, str]:
    return stream.stateful(lambda n, data, ctx: (n + 1, [data]), init=int, name="s").map(check, name="check")


def where_it_is_woken(stream: Stream[Any, str], check: Callable[[Any], Any]) -> Stream[Any, str]:
    def take(n: int, data: Any, ctx: StateContext) -> tuple[int, list[Any]]:
        if data.get("bad"):
            ctx.wake("1s")
        return n + 1, [] if data.get("bad") else [data]

    return stream.stateful(take, init=int, name="s", on_wake=lambda n, ctx: (n, [check({"k": "a", "bad": True})]))


@pytest.mark.parametrize("way", [behind_a_call, behind_a_state, where_it_is_woken])
def test_an_event_that_was_redriven_and_waits_holds_the_windows_behind_it(way: Callable[..., Stream[Any, str]]) -> None:
    waits: list[type[Exception]] = [ProgramError]
    topology = Topology("t")
    way(topology.source("in", idle="1s").key_by("k"), unready(waits)).window("1m").count(name="w").sink("out")
    with Driver(topology) as d:
        d.answer("ask", {"answer": "yes"}) if way is behind_a_call else None
        d.publish("in", {"k": "a", "bad": True}, at=at(5))
        d.advance("2s")
        assert len(d.dead_letters()) == 1
        waits[:] = [RetryLater]
        d.redrive()
        d.publish("in", {"k": "a"}, at=at(100))
        d.advance("40s")
        assert d.outputs("out") == []
        waits.clear()
        d.advance("80s")
        assert sum(w["value"] for w in d.outputs("out")) == 2
        assert d.dead_letters() == []


def test_an_event_that_waits_behind_a_hop_holds_for_as_long_as_the_sources_say_that_lead_there() -> None:
    def stubborn(data: Any) -> Any:
        if data.get("bad"):
            raise RetryLater(after=86400)
        return data

    topology = Topology("t")
    for name, hold in (("short", "2s"), ("long", "1m")):
        keyed = topology.source(name, hold=hold, idle="1s").key_by("k", name=f"by_{name}")
        keyed = keyed.map(stubborn, name=f"stubborn_{name}")
        keyed.window("10s").count(name=f"w_{name}").sink(f"out.{name}")
    with Driver(topology) as d:
        for name in ("short", "long"):
            d.publish(name, {"k": "a", "bad": True}, at=at(1))
            d.publish(name, {"k": "a"}, at=at(2))
        for time, ended in (("30s", ["short"]), ("1m", ["short", "long"])):
            d.advance(time)
            assert [name for name in ("short", "long") if d.outputs(f"out.{name}")] == ended


def test_a_watermark_may_lie_before_the_year_1_by_a_lateness(capsys: pytest.CaptureFixture[str]) -> None:
    topology = Topology("t")
    short = topology.source("in", idle="1s").key_by("k").window("10s", lateness="5s").count(name="short")
    behind = short.key_by("'all'", name="again").window("1m")
    behind.aggregate(int, lambda total, w: total + w.value, name="long").sink("out")
    first = datetime.min.replace(tzinfo=UTC)
    with Driver(topology) as d:
        for seconds in (0, 3, 20):
            d.publish("in", {"k": "a"}, at=first + timedelta(seconds=seconds))
        d.advance("80s")
        assert [(w["start"], w["value"]) for w in d.outputs("out")] == [("0001-01-01T00:00:00+00:00", 3)]
    assert "no statement" not in capsys.readouterr().out
