"""What is stated of watermarks: when, by whom, and what no longer counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from engine_lab import APP, STREAM, Lab

from dspex.bus import codecs, subjects
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.message import Message
from dspex.bus.port import BusEvents, Reader
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


class Stuck(MemoryBus):
    """A connection on which a source gives nothing while it is stuck, though the server has more."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, BusEvents())
        self.flows = asyncio.Event()
        self.flows.set()

    async def reader(self, stream: str, filters: Sequence[str], **options: Any) -> Any:
        found = await super().reader(stream, filters, **options)
        return Held(found, self.flows) if "in" in filters else found


class Held:
    def __init__(self, reader: Reader, flows: asyncio.Event) -> None:
        self._reader, self._flows = reader, flows

    async def read(self, limit: int) -> list[Message]:
        found = await self._reader.read(limit)
        await self._flows.wait()
        return list(found)

    async def close(self) -> None:
        await self._reader.close()


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
