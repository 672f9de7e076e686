"""Event time through whole topologies: what holds a watermark, what moves it, and what is late (core-attack.md, section 1)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

import pytest
from engine_lab import APP, Cut, Lab, StageLab

from dspex.bus import codecs, subjects
from dspex.bus.errors import ProgramError, RetryLater
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.message import Message
from dspex.bus.port import BusEvents
from dspex.engine.client.client import Client
from dspex.engine.graph.nodes import Retry
from dspex.engine.hosting.host import Host
from dspex.engine.runtime.watermarks import stater
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def now_of(one: Lab) -> datetime:
    """The time on the server, to ten seconds."""

    async def now() -> float:
        return one.server.now

    return datetime.fromtimestamp(one.run(now()) // 10 * 10, tz=UTC)


def values(d: Driver, subject: str = "out") -> dict[str, Any]:
    """The value of each window by its start, as a time of day; no window gives two results."""
    found = {w["start"][11:19]: w["value"] for w in d.outputs(subject)}
    assert len(found) == len(d.outputs(subject))
    return found


def test_windows_behind_a_model_wait_for_its_answers_whatever_their_order() -> None:  # E0, E1
    topology = Topology("t")
    asked = topology.source("in").key_by("k").predict("n: int -> answer", name="ask")
    asked.window("10s").count(name="w").sink("out")
    with Driver(topology) as d:
        for n in range(12):
            d.answer("ask", {"answer": "yes"}, after=8 if n % 3 else 25)
            d.publish("in", {"k": "a", "n": n}, at=at(2.5 * n))
            d.advance(2.5)
        d.advance("2m")
        assert values(d) == {"00:00:00": 4, "00:00:10": 4, "00:00:20": 4}
        assert d.dead_letters() == []


def test_a_window_behind_a_window_gets_its_results_in_time_in_one_stage_and_behind_a_hop() -> None:  # E5
    topology = Topology("t")
    short = topology.source("in").key_by("k").window("10s", lateness="5s").count(name="short")
    short.window("1m").aggregate(int, lambda total, w: total + w.value, name="w1").sink("here")
    behind = short.key_by("'all'", name="again").window("1m").aggregate(int, lambda total, w: total + w.value, name="w2")
    behind.sink("there")
    with Driver(topology) as d:
        for n in range(30):
            d.publish("in", {"k": "ab"[n % 2]}, at=at(4 * n))
            d.advance(0.3)
        d.advance("50s")
        assert sorted((w["key"], w["start"][11:19], w["value"]) for w in d.outputs("here")) == [
            ("a", "00:00:00", 8), ("a", "00:01:00", 7), ("b", "00:00:00", 7), ("b", "00:01:00", 8),
        ]  # fmt: skip
        assert values(d, "there") == {"00:00:00": 15, "00:01:00": 15}
        assert d.dead_letters() == []


def test_a_window_behind_one_waits_for_what_that_may_still_take() -> None:  # E5
    topology = Topology("t")
    short = topology.source("in").key_by("k").window("10s", lateness="5s").count(name="short")
    behind = short.key_by("'all'", name="again").window("1m").aggregate(int, lambda total, w: total + w.value, name="long")
    behind.sink("out")
    with Driver(topology) as d:
        for seconds, key in ((5, "a"), (62, "a"), (59, "c"), (130, "a")):
            d.publish("in", {"k": key}, at=at(seconds))
            d.advance(1)
        assert values(d) == {"00:00:00": 2, "00:01:00": 1}
        assert d.dead_letters() == []


def test_silence_moves_event_time_by_the_time_that_passes_and_not_to_today() -> None:  # P7, E2, and windows of idle streams end
    topology = Topology("t")
    topology.source("in").key_by("k").window("1m").count(name="w").sink("out")
    then = datetime(2024, 2, 1, tzinfo=UTC)
    with Driver(topology) as d:
        d.publish("in", {"k": "a"}, at=then)
        d.advance("2m")
        assert values(d) == {"00:00:00": 1}
        for seconds in (100, 110, 200):
            d.publish("in", {"k": "a"}, at=then + timedelta(seconds=seconds))
        d.advance("3m")
        assert values(d) == {"00:00:00": 1, "00:01:00": 2, "00:03:00": 1}
        assert d.dead_letters() == []


def test_an_event_from_the_future_ends_no_window_but_its_own() -> None:  # E3
    topology = Topology("t")
    topology.source("in").key_by("k").window("1m").count(name="w").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"k": "a"}, at=at(86400 * 365 * 1000))  # milliseconds taken for seconds
        for n in range(4):
            d.publish("in", {"k": "a"}, at=at(20 * n))
            d.advance(20)
        d.advance("2m")
        assert values(d) == {"00:00:00": 3, "00:01:00": 1}
        assert d.dead_letters() == []


def test_a_watermark_never_goes_back_and_what_is_late_stays_late_for_the_next_engine() -> None:  # E4
    topology = Topology("t")
    topology.source("in").key_by("k").window("1m").count(name="w").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"k": "a"}, at=at(10))
        d.publish("in", {"k": "a"}, at=at(70))
        d.advance("1s")
        d.crash("all")
        d.publish("in", {"k": "a"}, at=at(15))
        d.publish("in", {"k": "a"}, at=at(75))
        d.advance("3m")
        assert values(d) == {"00:00:00": 1, "00:01:00": 2}
        assert [(letter.reason, letter.node) for letter in d.dead_letters()] == [("LateEvent", "w")]


def test_a_source_says_how_long_it_is_silent_before_the_clock_ends_its_windows() -> None:
    topology = Topology("t")
    options: dict[str, Any] = {"quick": {"idle": "2s"}, "usual": {}, "slow": {"idle": "1m"}}
    keyed = [topology.source(name, **given).key_by("k", name=f"by_{name}") for name, given in options.items()]
    for name, stream in zip(options, keyed):
        stream.window("5s").count(name=f"w_{name}").sink(f"out.{name}")
    with Driver(topology) as d:
        for name in options:
            d.publish(name, {"k": "a"})
        for seconds, ended in ((15, ["quick"]), (30, ["quick", "usual"]), (30, ["quick", "usual", "slow"])):
            d.advance(seconds)
            assert [name for name in options if d.outputs(f"out.{name}")] == ended


@pytest.mark.parametrize(("options", "hold"), [({"hold": "10s"}, 10), ({}, 3600)])
def test_an_event_that_waits_holds_up_windows_for_so_long_and_no_longer(options: dict[str, Any], hold: float) -> None:  # E13
    def stubborn(data: Any) -> Any:
        if data.get("stuck"):
            raise RetryLater(after=86400)
        return data

    topology = Topology("t")
    topology.source("in", **options).key_by("k").map(stubborn).window("10s").count(name="w").sink("out")
    one = StageLab(topology)
    one.event({"stuck": True}, 1)
    one.event({}, 2)
    one.clock += hold
    one.mark(30)
    assert one.windows() == []
    one.clock += 1
    one.mark(30)
    assert one.windows() == [("a", 0, 10, 1)]


def test_partitions_of_a_source_that_never_had_an_event_and_sources_that_never_had_one_hold_nothing_up() -> None:  # E8
    topology = Topology("t")
    never = topology.source("never").map(lambda d: d, name="nothing")
    topology.source("in", partitions=4).merge(never).key_by("k").window("10s").count(name="w").sink("out")
    with Driver(topology) as d:
        for n in range(3):
            d.publish("in", {"k": "a"}, key="always", at=at(6 * n))
        d.advance("1m")
        assert values(d) == {"00:00:00": 2, "00:00:10": 1}


def counting(*sources: str) -> Topology:
    topology = Topology("t")
    first, *others = [topology.source(name) for name in sources]
    (first.merge(*others) if others else first).key_by("k").window("10s").count(name="w").sink("out")
    return topology


def all_kinds() -> Topology:
    topology = Topology("t")
    keyed = topology.source("in").key_by("k")
    keyed.window("10s").count(name="w").sink("out")
    keyed.window("20s", every="10s").reduce(lambda a, b: {"n": a["n"] + b["n"]}, name="sliding").sink("overlapping")
    keyed.session_window("9s", lateness="1s").collect(name="visit").sink("sessions")
    return topology


@pytest.mark.parametrize("landed", [False, True])
def test_windows_are_the_same_whichever_commit_the_engine_dies_in_and_replay_gives_them_again(  # E6, E10
    lab: MakeLab, landed: bool
) -> None:
    for cut in (2, 6, 11):
        one = lab(all_kinds())
        bus = Cut(one.server, cut, landed)
        one.start("a", bus=bus)
        base = now_of(one)
        for n in range(8):
            one.publish("in", {"k": "ab"[n % 2], "n": n}, time=base + timedelta(seconds=4 * n))
            one.advance(0.6)
        one.kill("a")
        one.start("b")
        one.advance(60)

        def found(subject: str, one: Lab = one) -> list[Any]:
            return [w["value"] for w in sorted(one.outputs(subject), key=lambda w: (w["key"], w["start"]))]

        assert found("out") == [2, 1, 1, 1, 1, 2]
        assert [value["n"] for value in found("overlapping")] == [2, 6, 10, 6, 1, 4, 15, 12]
        assert [[d["n"] for d in value] for value in found("sessions")] == [[0, 2, 4, 6], [1, 3, 5, 7]]
        assert one.letters() == []
        assert one.left() == []
        assert one.differences() == []


def test_a_source_that_is_added_stops_no_window_and_what_it_had_before_is_late(lab: MakeLab) -> None:  # E11
    one = lab(counting("in"))
    one.start()
    base = now_of(one)
    for n in (0, 15):
        one.publish("in", {"k": "a"}, time=base + timedelta(seconds=n))
    one.advance(1)
    assert len(one.outputs("out")) == 1
    one.kill()
    one.start("b", counting("in", "old"))
    one.publish("old", {"k": "a"}, time=base - timedelta(days=300))
    one.publish("in", {"k": "a"}, time=base + timedelta(seconds=25))
    one.advance(10)  # the first engine is silent
    assert [w["value"] for w in one.outputs("out")] == [1, 1]
    assert [letter.reason for letter in one.letters()] == ["LateEvent"]
    one.advance(90)
    assert len(one.outputs("out")) == 3


@pytest.mark.asyncio
async def test_many_windows_that_end_at_once_let_everything_else_have_its_turn() -> None:  # E17
    topology = Topology("t")
    many = topology.source("in").flat_map(lambda d: [{"k": f"{n}"} for n in range(d["count"])])
    many.key_by("k").window("1s").count(name="w").sink("out")
    server = MemoryServer(epoch=START.timestamp())
    bus = server.connect()
    host, client = Host(bus, APP, [topology.graph], engine="a"), Client(bus=bus, app=APP)
    await host.start()

    def kept() -> int:
        return sum(len(p.tables.keyed.rows) for runner in host.runners for p in runner.partitions.values())

    async def until(wanted: int) -> int:
        """Wait until so many windows are open; how many came or went while nothing else had its turn, at most."""
        most, before = 0, kept()
        while before != wanted:
            await asyncio.sleep(0)
            most, before = max(most, abs(before - (now := kept()))), now
        return most

    await client.publish("in", {"count": 1000}, time=at(0))
    await until(1000)
    await client.publish("in", {"count": 1}, time=at(60))
    assert await until(1) <= 300
    await host.drain()


class SlowScan(MemoryBus):
    """A connection on which it takes a moment to find out what watermarks were stated before."""

    async def scan(self, stream: str, filters: Sequence[str], **options: Any) -> list[Message]:
        if any(".time." in subject for subject in filters):
            await asyncio.sleep(0.2)
        return await super().scan(stream, filters, **options)


def test_a_partition_that_waits_hears_no_watermark_that_stands_behind_what_it_has_not_taken(lab: MakeLab) -> None:
    topology = Topology("t")
    asked = topology.source("in", time="time").key_by("k").predict("n: int -> answer", name="ask", deadline="1h")
    asked.window("10s").count(name="w").sink("out")
    one = lab(topology)
    one.start(bus=SlowScan(one.server, BusEvents()), most_open_calls=5)
    for key, first, count in (("a", 0, 5), ("a", 20, 10), ("b", 500, 1)):  # after the first five it waits
        for n in range(first, first + count):
            one.publish("in", {"k": key, "n": n, "time": at(n - 1000).isoformat()})
        one.advance(1)
    one.work()
    one.advance(60)
    assert one.letters() == []
    assert sorted(w["value"] for w in one.outputs("out")) == [1, 5, 10]


def test_what_was_stated_of_a_partition_is_known_for_good_though_another_engine_has_it_and_knows_less(
    lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:  # E10
    """A reader that begins now hears what is kept. What it hears less of a partition, it would not wait for."""
    monkeypatch.setattr(stater, "KEPT", 1)
    topology = Topology("t")
    topology.source("in", time="time", partitions=8).key_by("k").window("10s").count(name="w").sink("out")
    one = lab(topology)
    one.start("a")

    def known() -> dict[int, float]:
        found: dict[int, float] = {}
        for m in one.messages(subjects.time(APP, "t", "s1", "*")):
            for index, mark in codecs.decode(m.data, codecs.MSGPACK).items():
                found[index] = max(found.get(index, -inf), mark or -inf)
        return found

    def publish(time: float, *keys: int) -> None:
        for n in keys:
            one.publish("in", {"k": "a", "time": at(time).isoformat()}, key=str(n))
        one.advance(2)

    publish(-100, 0)
    publish(-500, *range(1, 40))
    before = known()
    assert set(before.values()) == {at(-100).timestamp()}
    one.start("b")
    one.advance(3)
    assert known() == before


def test_a_window_that_has_ended_stays_so_under_a_new_name_whatever_a_call_before_it_holds(lab: MakeLab) -> None:
    def named(name: str, **options: Any) -> Topology:
        topology = Topology("t", **options)
        asked = topology.source("in", time="time").key_by("k").predict("n: int -> answer", name="ask", retry=Retry(attempts=1))
        asked.window("10s").count(name=name).sink("out")
        return topology

    def fails(inputs: dict[str, Any], work: Any) -> dict[str, Any]:
        raise ProgramError("not yet")

    one = lab(named("w"))
    one.start()
    one.work()
    for n, time in enumerate((1, 5, 100)):
        one.answers["ask"] = fails if n == 1 else lambda inputs, work: {"answer": "yes"}
        one.publish("in", {"k": "a", "n": n, "time": at(time - 1000).isoformat()})
        one.advance(1)
    one.advance(5)
    assert [w["value"] for w in one.outputs("out")] == [1]
    one.kill()
    one.start("b", named("v", renamed_from={"v": "w"}))
    one.advance(10)
    assert one.run(one.client.redrive(one.letters())) == 1
    one.advance(60)
    assert [w["value"] for w in one.outputs("out")][:2] == [1, 1]
    assert [letter.reason for letter in one.letters()] == ["LateEvent"]


def test_the_longer_a_source_is_silent_the_less_often_its_watermark_is_stated(lab: MakeLab) -> None:
    """What was open is closed by then, and an engine with nothing to do is to do nothing."""
    topology = Topology("t")
    topology.source("in", time="time").key_by("k").window("10s").count(name="w").sink("out")
    one = lab(topology)
    one.start()
    one.publish("in", {"k": "a", "time": at(0).isoformat()})
    one.advance(60)
    assert [w["value"] for w in one.outputs("out")] == [1]
    soon = len(one.messages(subjects.time(APP, "t", "s1", "*")))
    one.advance(60)
    later = len(one.messages(subjects.time(APP, "t", "s1", "*"))) - soon
    assert 5 <= later <= 9, (soon, later)
