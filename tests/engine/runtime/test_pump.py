"""The pump reads any input: a sixth one needs no line of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar

from engine_lab import Lab

from dspex.bus import codecs
from dspex.bus.message import Message
from dspex.bus.port import Bus, NewMessage, Reader, StreamConfig
from dspex.bus.records import NodeEvent, Origin
from dspex.engine.log.rows import Place, Position
from dspex.engine.runtime.arrival import Arrival
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.pump import Pump
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


class Ticks:
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
