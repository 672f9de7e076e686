"""Hops: events go on in the partition of their key, whoever owns it, once and in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import pytest
from engine_lab import APP, Cut, Lab
from pydantic import BaseModel, Field

from dspex.bus import subjects
from dspex.bus.errors import TopologyError
from dspex.bus.memory.connection import MemoryBus
from dspex.bus.memory.handles import MemoryReader
from dspex.bus.memory.server import MemoryServer
from dspex.bus.message import partition_of
from dspex.bus.port import BusEvents, NewMessage
from dspex.bus.records import NodeEvent, Origin, pack_frame
from dspex.engine.replay.partition import PartitionReplay
from dspex.engine.runtime.walk.compile import compile_behind, compile_stage
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
EDGES = subjects.edge(APP, "keyed", "s2", "*")


def keyed(*, partitions: int = 2) -> Topology:
    topology = Topology("keyed")
    topology.source("in", partitions=partitions).key_by("k").map(lambda d: d, name="seen").sink("out")
    return topology


def send(one: Lab, count: int, *, keys: int = 3, first: int = 0) -> None:
    for n in range(first, first + count):
        one.publish("in", {"k": f"k{n % keys}", "n": n}, key=str(n))


def test_events_of_a_key_come_out_in_their_order_with_their_key_whatever_partition_of_the_source_had_them(lab: MakeLab) -> None:
    one = lab(keyed(partitions=1))
    one.start()
    send(one, 30)
    one.advance(1)
    out = one.messages("out")
    assert sorted(n["n"] for n in one.outputs("out")) == list(range(30))
    for key in ("k0", "k1", "k2"):
        mine = [d["n"] for d in one.outputs("out") if d["k"] == key]
        assert mine == sorted(mine)
    assert {m.headers[subjects.KEY] for m in out} == {"k0", "k1", "k2"}


def test_a_key_has_one_partition_for_good(lab: MakeLab) -> None:
    one = lab(keyed())
    one.start()
    send(one, 12)
    places = {m.subject for m in one.messages(EDGES)}
    assert places == {subjects.edge(APP, "keyed", "s2", partition_of(f"k{n}", 64)) for n in range(3)}


def test_what_one_commit_sends_to_a_partition_is_one_message(lab: MakeLab) -> None:
    topology = Topology("keyed")
    topology.source("in").flat_map(lambda d: [{"k": f"k{n % 3}", "n": n} for n in range(90)]).key_by("k").sink("out")
    one = lab(topology)
    one.start()
    one.publish("in", {})
    one.advance(1)
    assert len(one.outputs("out")) == 90
    assert len(one.messages(EDGES)) == 3


@pytest.mark.parametrize("partition", ["x", "01", "64", "1025", "-1", "9" * 400, "\u0663", "1.2"])
def test_a_frame_for_a_partition_that_is_none_is_passed_over(lab: MakeLab, partition: str) -> None:
    one = lab(keyed())
    one.start()
    one.advance(1)
    event = NodeEvent("by_k", Origin("id", "in", "run", key="k1"), "application/json", b'{"k": "k1", "n": -1}')
    one.store(NewMessage(subjects.edge(APP, "keyed", "s2", partition), pack_frame([event])))
    send(one, 9)
    one.advance(1)
    assert sorted(d["n"] for d in one.outputs("out")) == list(range(9))


@pytest.mark.parametrize("landed", [False, True])
def test_events_cross_a_hop_once_whichever_commit_the_engine_dies_in(lab: MakeLab, landed: bool) -> None:  # P5
    for at in range(1, 8):
        one = lab(keyed())
        bus = Cut(one.server, at, landed)
        one.start("a", bus=bus)
        send(one, 9)
        one.kill("a")
        one.start("b")
        one.advance(10)  # the first one is silent
        assert sorted(d["n"] for d in one.outputs("out")) == list(range(9))
        assert len({m.headers[subjects.EVENT_ID] for m in one.messages("out")}) == 9


def test_stages_behind_hops_are_spread_over_engines_and_handed_over_without_loss(lab: MakeLab) -> None:
    one = lab(keyed())
    first = one.start("a")
    send(one, 20, keys=20)
    second = one.start("b")
    one.advance(10)
    owned = [{i for r in host.runners if r.stage.id == "s2" for i in r.partitions} for host in (first, second)]
    assert (len(owned[0]), len(owned[1]), owned[0] & owned[1]) == (32, 32, set())
    send(one, 20, keys=20, first=20)
    one.advance(1)
    assert one.differences() == []  # of both engines
    one.kill("b")
    send(one, 20, keys=20, first=40)
    one.advance(10)
    assert sorted(d["n"] for d in one.outputs("out")) == list(range(60))


def test_a_call_and_a_second_hop_stand_behind_a_hop(lab: MakeLab) -> None:
    topology = Topology("keyed")
    asked = topology.source("in").key_by("k").predict("n: int -> answer", name="ask")
    asked.key_by("answer", name="by_answer").sink("out")
    one = lab(topology)
    one.start()
    one.work()
    run = one.publish("in", {"k": "a", "n": 1})
    one.advance(1)
    assert one.outputs("out") == [{"k": "a", "n": 1, "answer": "yes"}]
    (message,) = one.messages("out")
    assert (message.headers[subjects.KEY], message.headers[subjects.RUN]) == ("yes", run)


def test_a_run_is_done_when_its_events_are_through_the_last_hop(lab: MakeLab) -> None:
    topology = Topology("keyed")
    topology.source("in").key_by("k").predict("n: int -> answer", name="ask").sink("out")
    one = lab(topology)
    one.start()
    run = one.publish("in", {"k": "a", "n": 1})
    assert one.run(one.client.run(run).info()).status == "running"
    one.work()
    one.advance(1)
    info = one.run(one.client.run(run).info())
    assert (info.status, info.calls) == ("done", 1)


def test_what_fails_behind_a_hop_is_a_letter_that_goes_on_there(lab: MakeLab) -> None:
    broken = [True]

    def check(data: Any) -> Any:
        if broken:
            raise ValueError("not yet")
        return data

    topology = Topology("keyed")
    topology.source("in").key_by("k").map(check, name="check").sink("out")
    one = lab(topology)
    one.start()
    one.publish("in", {"k": "a"})
    (dead,) = one.letters()
    assert (dead.node, dead.event.data) == ("check", {"k": "a"})
    broken.clear()
    assert one.run(one.client.redrive([dead])) == 1
    one.advance(1)
    assert one.outputs("out") == [{"k": "a"}]


@pytest.mark.parametrize("data", [{"k": 5}, {"k": ""}, {"k": "x" * 513}, {"k": "a\nb"}, {"k": None}, {}], ids=str)
def test_an_event_without_a_key_that_is_one_is_a_letter(lab: MakeLab, data: dict[str, Any]) -> None:
    one = lab(keyed())
    one.start()
    one.publish("in", data)
    (dead,) = one.letters()
    assert dead.node == "by_k"
    assert one.outputs("out") == []


def test_the_log_of_a_stage_behind_a_hop_and_of_the_one_before_replay_as_they_were(lab: MakeLab) -> None:
    topology = Topology("keyed")
    topology.source("in").key_by("k").predict("n: int -> answer", name="ask").sink("out")
    one = lab(topology)
    one.start()
    one.work()
    send(one, 12)
    one.advance(1)
    graph, hops = topology.graph, {"by_k": ("s2", 64)}
    before = compile_stage(graph, graph.sources[0], "s1", hops=hops)
    behind = compile_behind(graph, graph.hops, "s2", hops=hops)

    async def differences(replay: PartitionReplay) -> list[Any]:
        return [d async for d in replay.differences()]

    bus, limit = one.client.bus, next(iter(one.hosts.values()))[0].runners[0].s.limit
    assert one.run(differences(PartitionReplay(bus, APP, before, subjects.sources(APP), 0, 1, limit))) == []
    for index in {partition_of(f"k{n}", 64) for n in range(3)}:
        replay = PartitionReplay(bus, APP, behind, "", index, 64, limit)
        assert one.run(differences(replay)) == []


def test_a_hop_that_is_dropped_ends_what_it_had_open_and_its_events_are_letters(lab: MakeLab) -> None:
    def made(*, hop: bool) -> Topology:
        topology = Topology("keyed", drop=[] if hop else ["by_k"])
        s = topology.source("in")
        (s.key_by("k") if hop else s).predict("n: int -> answer", name="ask").sink("out")
        return topology

    one = lab(made(hop=True))
    one.start()
    one.publish("in", {"k": "a", "n": 1})
    one.kill()
    plain = Topology("keyed")
    plain.source("in").predict("n: int -> answer", name="ask").sink("out")
    with pytest.raises(TopologyError, match="by_k"):
        one.start("x", plain)
    one.start("b", made(hop=False))
    one.work()
    one.publish("in", {"k": "b", "n": 2})
    one.advance(10)
    assert sorted(d["n"] for d in one.outputs("out")) == [1, 2]
    host = one.hosts["b"][0]
    assert {r.stage.id for r in host.runners} == {"s1"}


def test_a_hop_that_is_renamed_keeps_its_stage_and_the_events_on_their_way(lab: MakeLab) -> None:
    one = lab(keyed())
    one.start()
    send(one, 3)
    one.kill()
    renamed = Topology("keyed", renamed_from={"by_key": "by_k"})
    renamed.source("in", partitions=2).key_by("k", name="by_key").map(lambda d: d, name="seen").sink("out")
    host = one.start("b", renamed)
    send(one, 3, first=3)
    one.advance(10)
    assert sorted(d["n"] for d in one.outputs("out")) == list(range(6))
    assert {r.stage.id for r in host.runners} == {"s1", "s2"}


def test_status_shows_the_stage_behind_a_hop_and_what_waits_there(lab: MakeLab) -> None:
    one = lab(keyed())
    one.start()
    send(one, 3)
    one.advance(2)
    rows = {row["stage"]: row for row in one.run(one.client.status())["stages"]}
    assert (rows["s2"]["source"], rows["s2"]["partitions"], rows["s2"]["lag"], rows["s2"]["events"]) == ("by_k", 64, 0, 3)
    one.kill()


class Begins(MemoryBus):
    """A connection that notes behind which sequence events are read."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, BusEvents())
        self.after: list[int] = []

    async def reader(self, stream: str, filters: Sequence[str], **options: Any) -> MemoryReader:
        if any(".edge." in subject for subject in filters):
            self.after.append(options["after"])
        return await super().reader(stream, filters, **options)


@pytest.mark.long
def test_partitions_that_never_had_an_event_do_not_have_all_others_read_again(lab: MakeLab) -> None:
    one = lab(keyed(partitions=1))
    one.start()
    for _ in range(26):
        send(one, 100, keys=2)
    one.advance(5)
    one.kill()
    bus = Begins(one.server)
    one.start("b", bus=bus)
    one.advance(10)
    read = one.run(one.client.bus.stream(subjects.stream(APP)))
    assert read is not None
    assert min(bus.after) > read.last // 2 > 1000
    send(one, 64, keys=64)
    one.advance(2)
    assert len(one.outputs("out")) == 26 * 100 + 64


class Order(BaseModel):
    customer: str = Field(alias="Customer")
    at: datetime


def test_data_is_of_its_type_behind_a_hop_too() -> None:
    def late(order: Order) -> list[str]:
        return [type(order).__name__, order.customer, order.at.isoformat()]

    topology = Topology("t")
    topology.source("in", Order).key_by("customer").map(late).sink("out")
    with Driver(topology) as d:
        d.publish("in", {"Customer": "Ann", "at": "2026-01-01T00:00:00+00:00"})
        assert d.outputs("out") == [["Order", "Ann", "2026-01-01T00:00:00+00:00"]]


def test_an_event_at_a_time_that_no_frame_may_have_is_a_letter_and_takes_no_other_with_it(lab: MakeLab) -> None:
    topology = Topology("keyed")
    topology.source("in", time="time").key_by("k").sink("out")
    one = lab(topology)
    one.start()
    times = ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00", "2026-01-01T00:00:00Z"]
    one.run(_published(one, [{"k": "a", "time": time} for time in times]))
    one.advance(5)
    assert [(letter.node, letter.reason) for letter in one.letters()] == [("by_k", "InvalidInput")] * 2
    assert one.run(one.client.redrive(one.letters())) == 2
    one.advance(5)
    assert (len(one.letters()), [o["time"] for o in one.outputs("out")]) == (2, times[2:])


async def _published(one: Lab, events: Sequence[Any]) -> None:
    for data in events:
        await one.client.publish("in", data)
