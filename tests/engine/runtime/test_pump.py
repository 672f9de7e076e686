"""The pump reads any input: a sixth one needs no line of it. What a partition misses that waits is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import codecs, subjects, telemetry
from dspex.bus.memory.server import MemoryBus
from dspex.bus.message import Message, partition_of
from dspex.bus.port import Bus, BusEvents, NewMessage, Reader, StreamConfig
from dspex.bus.records import NodeEvent, Origin
from dspex.engine.log.rows import Place, Position
from dspex.engine.runtime.arrival import Arrival
from dspex.engine.runtime.inputs.input import Input
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.pump import Pump
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


class Ticks(Input):
    """A log of ticks: each is an event at the source."""

    name: ClassVar[str] = "ticks"
    gated: ClassVar[bool] = True

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def open(self, partitions: Sequence[Partition], after: int, name: str) -> Reader:
        return await self._bus.reader("TICKS", ["tick"], after=after, name=name)

    async def verify(self, partitions: Sequence[Partition], clock: float) -> None:
        """Nothing trims it."""

    def owner(self, message: Message) -> int:
        return 0

    async def arrivals(self, p: Partition, message: Message, clock: float) -> Sequence[Arrival]:
        origin = Origin(id=f"tick-{message.sequence}", subject="tick", run=f"tick-{message.sequence}")
        event = NodeEvent("in", origin, codecs.JSON, message.data)
        place, position = Place("ticks", message.sequence), Position(message.sequence)
        return [Arrival(place, position, clock, event)]


def test_a_sixth_input_is_taken_committed_and_goes_on_at_its_position_after_a_crash(lab: MakeLab) -> None:
    topology = Topology("ticking")
    topology.source("in").map(lambda d: d, name="same").sink("out")
    one = lab(topology)
    one.run(one.client.bus.ensure_stream(StreamConfig("TICKS", ["tick"])))

    def pumped() -> None:
        """Start an engine, and let a pump feed its partition from the sixth input for a second."""
        host = one.start()
        (runner,) = host.runners
        bus = one.hosts["a"][1]
        pump = Pump(
            Ticks(bus),
            runner.partitions,
            lambda: one.server.now,
            asyncio.Semaphore(1),
            "ticks",
        )

        async def go() -> None:
            task = asyncio.create_task(pump.run())
            await asyncio.sleep(1)
            task.cancel()

        one.run(go())

    for n in range(3):
        one.store(NewMessage("tick", b'{"n": %d}' % n))
    pumped()
    assert [o["n"] for o in one.outputs("out")] == [0, 1, 2]
    one.kill()
    one.store(NewMessage("tick", b'{"n": 3}'))
    pumped()
    assert [o["n"] for o in one.outputs("out")] == [0, 1, 2, 3]
    position = one.hosts["a"][0].runners[0].partitions[0].tables.position("ticks")
    assert position.sequence == 4


KEYS = {partition_of(key, 2): key for key in ("a", "b", "c", "d")}


def waiting(one: Lab) -> Any:
    """An engine whose partition 0 has all the open calls it may have. The stream is of others, and holds this source alone."""
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    stream = one.server.streams["EVENTS"]
    info = stream.info
    stream.info = lambda now: replace(info(now), own=False)  # type: ignore[method-assign]
    host = one.start(most_open_calls=2)
    store(one, 0, 1, 2)
    return host.runners[0]


def store(one: Lab, partition: int, *numbers: int) -> None:
    for n in numbers:
        one.publish("in", {"n": n}, key=KEYS[partition])
    one.advance(10)


def asking(**options: Any) -> Topology:
    topology = Topology("asking")
    topology.source("in", partitions=2, stream="EVENTS", **options).predict("n: int -> answer", name="ask").sink("out")
    return topology


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("pause", [0.0, 20.0], ids=["at once", "later"])
def test_what_is_trimmed_while_a_partition_waits_for_its_calls_is_a_gap(lab: MakeLab, policy: Any, pause: float) -> None:
    one = lab(asking(on_gap=policy))
    runner, gaps = waiting(one), list[tuple[Any, Any]]()
    done = telemetry.subscribe(lambda name, facts: gaps.append((facts["after"], facts["up_to"])) if name == "gap" else None)
    store(one, 0, 3, 4, 5, 6)
    store(one, 1, 7)
    one.server.streams["EVENTS"].purge(">", 5)
    one.advance(pause)
    one.work()
    one.advance(30)
    done()
    numbers = sorted(o["n"] for o in one.outputs("out"))
    assert (numbers[:2], set(numbers) & {3, 4}) == ([1, 2], set())
    if policy == "stop":
        assert "trimmed" in (runner.stopped or "")
    else:
        assert (numbers, gaps, runner.stopped) == ([1, 2, 5, 6, 7], [(2, 4)], None)


def test_what_others_have_read_is_no_gap_for_a_partition_that_waits_when_it_is_trimmed(lab: MakeLab) -> None:
    one = lab(asking())
    runner = waiting(one)
    store(one, 1, 3)
    one.work()
    one.advance(10)
    one.stop_workers()
    store(one, 0, 4, 5)
    store(one, 1, 6)
    store(one, 0, 7)
    one.server.streams["EVENTS"].purge(">", 7)
    one.advance(20)
    one.work()
    one.advance(30)
    assert runner.stopped is None
    assert sorted(o["n"] for o in one.outputs("out")) == [1, 2, 3, 4, 5, 6, 7]


def test_what_is_trimmed_while_a_partition_catches_up_slowly_is_a_gap(lab: MakeLab) -> None:
    one = lab(asking())
    runner = waiting(one)
    store(one, 0, *range(3, 300))
    store(one, 1, 300)
    one.store(one.result(one.requests()[0]))  # there is room for one more call: the partition begins to catch up
    one.advance(10)
    assert runner.stopped is None
    one.server.streams["EVENTS"].purge(">", 290)
    one.advance(10)
    assert "trimmed" in (runner.stopped or "")


class Later:
    """Reads records of calls a while after they were stored."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self.close = reader, reader.close

    async def read(self, limit: int) -> list[Message]:
        messages = await self._reader.read(limit)
        asyncio.get_running_loop().call_later(0.1, (passed := asyncio.Event()).set)
        await passed.wait()
        return messages


class LongWay(MemoryBus):
    async def reader(self, stream: str, filters: Sequence[str], **options: Any) -> Any:
        found = await super().reader(stream, filters, **options)
        return Later(found) if any(".record." in subject for subject in filters) else found


def test_a_deadline_passes_though_records_of_other_calls_are_always_on_their_way(lab: MakeLab) -> None:
    topology = Topology("asking")
    topology.source("in").predict("text -> answer", name="ask", deadline="1s").sink("out")
    one = lab(topology)
    one.start(bus=LongWay(one.server, BusEvents()))
    one.publish("in", {"text": "lost"})
    one.run(one.client.bus.purge(STREAM, subjects.work_pattern(APP, "lightweight"), below=1 << 40))
    one.work()
    for n in range(300):
        one.publish("in", {"text": str(n)})
        one.advance(0.01)
    assert len(one.outputs("out")) > 200
    assert len(one.letters()) == 1
