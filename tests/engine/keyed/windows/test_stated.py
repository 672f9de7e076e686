"""What is stated of watermarks: when, by whom, and what no longer counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from engine_lab import APP, STREAM, Lab

from dspex.bus import codecs, subjects
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.message import Message, partition_of
from dspex.bus.port import BusEvents, Reader
from dspex.engine.graph import pauses
from dspex.engine.runtime.inputs.position import LATE
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


class Stuck(MemoryBus):
    """A connection on which a source gives nothing while it is stuck, though the server has more. `after`: it is stuck behind
    so many messages.
    """

    def __init__(self, server: MemoryServer, after: int = 0) -> None:
        super().__init__(server, BusEvents())
        self.flows, self.after = asyncio.Event(), after
        if not after:
            self.flows.set()

    async def reader(self, stream: str, filters: Sequence[str], **options: Any) -> Any:
        found = await super().reader(stream, filters, **options)
        return Held(found, self.flows, self.after) if "in" in filters else found


class Held:
    def __init__(self, reader: Reader, flows: asyncio.Event, after: int = 0) -> None:
        self._reader, self._flows, self._left = reader, flows, after

    async def read(self, limit: int) -> list[Message]:
        found = await self._reader.read(min(limit, self._left) or limit)
        if not self._left:
            await self._flows.wait()
        self._left = max(0, self._left - len(found))
        return list(found)

    async def close(self) -> None:
        await self._reader.close()


class OneByOne(MemoryBus):
    """A connection on which what comes over hops, and statements, come one at a time, with time for timers in between."""

    async def reader(self, stream: str, filters: Sequence[str], **options: Any) -> Any:
        found = await super().reader(stream, filters, **options)
        return Single(found) if any(".time." in subject for subject in filters) else found


class Single(Held):
    def __init__(self, reader: Reader) -> None:
        super().__init__(reader, asyncio.Event())
        self._flows.set()

    async def read(self, limit: int) -> list[Message]:
        for _ in range(20):
            await asyncio.sleep(0)
        return await super().read(1)


def owner(one: Lab, stage: str, partition: int) -> str:
    return next(
        name for name, (host, _) in one.hosts.items() for r in host.runners if r.stage.id == stage and partition in r.partitions
    )


def test_a_source_with_unread_events_is_not_idle_however_long_none_came_to_an_engine(lab: MakeLab) -> None:  # E7
    topology = Topology("t")
    topology.source("in", idle="5s").key_by("k").window("10s").count(name="w").sink("out")
    one = lab(topology)
    bus = Stuck(one.server)
    one.start(bus=bus)
    one.publish("in", {"k": "a"})
    one.advance(1)
    bus.flows.clear()  # as if it were cut off from its events, or frozen
    for _ in range(5):
        one.advance(6)
        one.publish("in", {"k": "a"})
    stated = [codecs.decode(m.data, codecs.MSGPACK) for m in one.messages(subjects.time(APP, "t", "s1", "*"))]
    assert max(at for marks in stated for at in marks.values()) < one.messages("in")[1].time
    bus.flows.set()
    one.advance(20)
    assert one.letters() == []
    assert sum(w["value"] for w in one.outputs("out")) == 6


def test_who_takes_over_lets_no_source_run_ahead_of_one_that_it_has_not_heard_again(lab: MakeLab) -> None:
    topology = Topology("t")
    sources = [topology.source(name, time="t", idle="1h") for name in "ab"]
    sources[0].merge(sources[1]).key_by("k", name="by").window("10s").count(name="w").sink("out")
    one, day = lab(topology), 1_767_225_600
    one.start()
    for name, at in (("a", 1), ("b", 1), ("a", 35), ("b", 25)):
        one.publish(name, {"k": "x", "t": day + at})
        one.advance(1)
    one.kill()
    one.start("b", bus=OneByOne(one.server, BusEvents()))  # it hears again that a is at 35, and later that b is at 25
    one.advance(20)
    one.publish("b", {"k": "x", "t": day + 26})
    one.advance(5)
    for name in "ab":
        one.publish(name, {"k": "x", "t": day + 61})
    one.advance(5)
    assert one.letters() == []  # the window from 20 to 30 was open
    assert [w["value"] for w in one.outputs("out")] == [2, 2, 1]
    assert one.differences() == []


def test_watermarks_cost_one_message_a_stage_and_at_most_four_a_second(lab: MakeLab) -> None:  # E9
    topology = Topology("t")
    topology.source("in", partitions=8).key_by("k").window("1s").count(name="w").key_by("key", name="again").window("1s").count(
        name="v"
    ).sink("out")
    one = lab(topology)
    one.start()
    before = one.run(one.client.bus.stream(STREAM)).last
    for n in range(40):
        one.publish("in", {"k": f"k{n}"}, key=f"k{n}")
        one.advance(0.1)
    stated = [m for m in one.messages(subjects.time(APP, "t", "*", "*")) if m.sequence > before]
    by_stage = Counter(m.subject for m in stated)
    assert set(by_stage) == {subjects.time(APP, "t", stage, "a") for stage in ("s1", "s2")}
    assert max(by_stage.values()) <= 4 * 4 + 1
    assert {len(codecs.decode(m.data, codecs.MSGPACK)) for m in stated} == {8, 64}


def test_a_source_that_is_dropped_holds_no_window_whatever_it_has_open(lab: MakeLab) -> None:  # E12
    def made(*, both: bool) -> Topology:
        topology = Topology("t", drop=[] if both else ["slow", "ask"])
        live = topology.source("in")
        if both:
            asked = topology.source("slow").predict("k -> answer", name="ask", timeout="1h", deadline="1h")
            live = live.merge(asked)
        live.key_by("k", name="by_k").window("10s").count(name="w").sink("out")
        return topology

    one = lab(made(both=True))
    one.start()
    for subject in ("slow", "in"):
        one.publish(subject, {"k": "a"})
    one.advance(60)
    assert one.outputs("out") == []  # the call holds them
    one.kill()
    one.start("b", made(both=False))
    one.publish("in", {"k": "a"})
    one.advance(60)
    assert [w["value"] for w in one.outputs("out")] == [1, 1]


def test_who_takes_over_looks_at_a_source_that_has_long_been_silent_as_soon_as_at_any_other(lab: MakeLab) -> None:
    topology = Topology("t")
    topology.source("in", partitions=2, idle="5s").key_by("k").window("10s").count(name="w").sink("out")
    one = lab(topology)
    hosts = [one.start(name) for name in "ab"]
    one.publish("in", {"k": "a"}, key="a")
    one.advance(200)
    one.kill("b")
    (source,) = [r for r in hosts[0].runners if r.source is not None]
    while len(source.partitions) < 2:
        one.advance(0.25)

    def stated() -> int:
        return len(one.messages(subjects.time(APP, "t", "s1", "a")))

    before = stated()
    one.advance(3)
    assert stated() > before


def test_who_starts_while_a_source_is_silent_lets_no_window_wait_for_a_partition_with_rare_events(lab: MakeLab) -> None:
    topology = Topology("t")
    topology.source("in", partitions=2, idle="5s").key_by("k").window("5m").count(name="w").sink("out")
    rare, often = (next(f"k{n}" for n in range(9) if partition_of(f"k{n}", 2) == index) for index in (1, 0))
    one = lab(topology)
    one.start("a")
    one.start("b")  # each has one of the source's partitions
    one.advance(5)
    one.publish("in", {"k": "a"}, key=rare)
    for _ in range(6):
        one.advance(60)
        one.publish("in", {"k": "a"}, key=often)
    one.advance(LATE + 10)  # long enough for a partition to leave behind it what was read for the other one
    one.kill(owner(one, "s1", 1))
    one.start("c")
    one.advance(250)  # the last event's window ends 235 s behind it
    assert owner(one, "s1", 1) == "c"
    assert [w["value"] for w in one.outputs("out")] == [5, 2]
    assert one.letters() == []
    assert one.differences() == []


def rare_and_often() -> list[str]:
    """A key of the second of two partitions of a source, and one of the first."""
    return [next(f"k{n}" for n in range(9) if partition_of(f"k{n}", 2) == index) for index in (1, 0)]


def stated(one: Lab, partition: int) -> float:
    """The highest watermark that was stated of a partition of the source."""
    said = [codecs.decode(m.data, codecs.MSGPACK) for m in one.messages(subjects.time(APP, "t", "s1", "*"))]
    return max((at for marks in said if (at := marks.get(partition)) is not None), default=0.0)


def test_who_reads_again_what_was_taken_does_not_take_the_time_since_for_silence(lab: MakeLab) -> None:
    topology = Topology("t")
    topology.source("in", partitions=2, idle="15s").key_by("k").window("10s").count(name="w").sink("out")
    rare, often = rare_and_often()
    one = lab(topology)
    one.start()
    one.publish("in", {"k": "a"}, key=rare)
    for _ in range(8):
        one.advance(3)
        one.publish("in", {"k": "a"}, key=often)
    one.advance(0.5)
    one.kill()
    bus = Stuck(one.server, after=2)  # of what the partition with rare events had not taken
    one.start("b", bus=bus)
    one.advance(10)
    assert stated(one, 0) <= one.messages("in")[8].time
    bus.flows.set()
    one.advance(30)
    assert one.letters() == []
    assert sum(w["value"] for w in one.outputs("out")) == 9


def test_a_source_is_not_idle_while_one_partition_has_not_taken_what_lies_before_what_another_one_has(lab: MakeLab) -> None:
    topology = Topology("t")
    topology.source("in", partitions=2, idle="5s").key_by("k").window("10s").count(name="w").sink("out")
    rare, often = rare_and_often()
    one = lab(topology)
    buses = {name: Stuck(one.server) for name in "ab"}
    for name, bus in buses.items():
        one.start(name, bus=bus)
    one.advance(5)
    for key in (rare, often):
        one.publish("in", {"k": "a"}, key=key)
    one.advance(1)
    cut_off = owner(one, "s1", 1)
    (other,) = set(buses) - {cut_off}
    buses[cut_off].flows.clear()
    for key in (rare, often):
        one.publish("in", {"k": "a"}, key=key)
    one.advance(4)  # the other partition has taken the last event
    buses[other].flows.clear()
    one.kill(cut_off)
    one.advance(60)
    assert owner(one, "s1", 1) == other
    assert stated(one, 1) <= one.messages("in")[3].time
    buses[other].flows.set()
    one.advance(30)
    assert one.letters() == []
    assert sum(w["value"] for w in one.outputs("out")) == 4


def test_silence_is_measured_by_all_that_was_read_while_one_partition_reads_by_itself(lab: MakeLab) -> None:
    topology = Topology("t")
    asked, other = topology.source("in", partitions=2, idle="15s").branch("ask")
    asked.predict("k -> answer", name="ask", timeout="1h", deadline="1h").merge(other).key_by("k").window("10s").count(
        name="w"
    ).sink("out")
    full, often = rare_and_often()
    one = lab(topology)
    one.start(most_open_calls=2)
    for _ in range(4):
        one.publish("in", {"k": "a", "ask": True}, key=full)
    for _ in range(10):
        one.advance(3)
        one.publish("in", {"k": "a", "ask": False}, key=often)
    one.answers["ask"] = lambda inputs, work: {"answer": "b"}
    one.work()
    one.advance(10)
    assert stated(one, 0) <= one.messages("in")[-1].time
    one.advance(60)
    assert one.letters() == []
    assert sum(w["value"] for w in one.outputs("out")) == 14


def test_who_takes_a_partition_over_in_a_pause_does_not_take_for_read_what_another_one_has_not_taken(lab: MakeLab) -> None:
    topology = Topology("t")
    topology.source("in", partitions=2, idle="5s").key_by("k").window("10s").count(name="w").sink("out")
    rare, often = rare_and_often()
    one = lab(topology)
    buses = {name: Stuck(one.server) for name in "ab"}
    for name, bus in buses.items():
        one.start(name, bus=bus)
    one.advance(5)
    cut_off = owner(one, "s1", 1)
    for key in (rare, often):
        one.publish("in", {"k": "a"}, key=key)
    one.advance(1)
    buses[cut_off].flows.clear()
    for key in (rare, often):
        one.publish("in", {"k": "a"}, key=key)
        one.advance(12)

    async def paused(on: bool) -> None:
        bucket = await one.client.bus.bucket(subjects.applied(APP))
        await (pauses.pause(bucket, "t", "", 0.0) if on else pauses.resume(bucket, "t", ""))

    one.run(paused(True))
    one.advance(2)
    one.kill(cut_off)
    one.advance(30)
    assert stated(one, 1) <= one.messages("in")[3].time
    one.run(paused(False))
    one.advance(30)
    assert one.letters() == []
    assert sum(w["value"] for w in one.outputs("out")) == 4
