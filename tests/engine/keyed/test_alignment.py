"""Sources wait for those that are far behind, and until what lies behind their hops is read; and for nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.memory.server import MemoryBus
from dspex.bus.port import BusEvents, Reader
from dspex.engine.cli.figures import blocks
from dspex.engine.graph import pauses
from dspex.engine.graph.lanes import Backfill
from dspex.engine.hosting.apply import apply
from dspex.engine.runtime.inputs import backlog
from dspex.operators.topology import Topology

DAY = 1_600_000_000.0  # in the past
MakeLab = Callable[..., Lab]


class SlowSource(MemoryBus):
    """A connection on which the source "slow", or that of a stage, gives one message a second."""

    def __init__(self, server: Any, stage: str = "none") -> None:
        super().__init__(server, BusEvents())
        self._stage = f"-{stage}-source-"

    async def reader(self, stream: str, filters: Any, **options: Any) -> Any:
        found = await super().reader(stream, filters, **options)
        return OneBySecond(found) if "slow" in filters or self._stage in options["name"] else found


class OneBySecond:
    def __init__(self, reader: Reader) -> None:
        self._reader, self._left = reader, list[Any]()

    async def read(self, limit: int) -> list[Any]:
        if not self._left:
            self._left = await self._reader.read(limit)
        await asyncio.sleep(1)
        return [self._left.pop(0)]

    async def close(self) -> None:
        await self._reader.close()


def joining() -> Topology:
    topology = Topology("t")
    slow, fast = (topology.source(s, time="at").key_by("k", name=f"{s}_key") for s in ("slow", "fast"))
    slow.join(fast, within="10s", name="pairs").sink("out")
    return topology


def at(seconds: float) -> str:
    return datetime.fromtimestamp(DAY + seconds, tz=UTC).isoformat()


def rows(one: Lab) -> int:
    return sum(len(p.tables.keyed.rows) for _, p in one.partitions())


def waiting(one: Lab) -> tuple[dict[str, str], list[str]]:
    """What `status` says that the fast source waits for, and what people read of it."""
    found = one.run(one.client.status())
    (fast,) = [s for s in found["stages"] if s["source"] == "fast"]
    said = [remark.partition(": ")[2] for block in blocks(found) for remark in block.remarks]
    return fast["gate"]["sources"] if fast["gate"] is not None else {}, said


def test_a_source_far_ahead_waits_for_one_that_has_more_to_read_and_not_for_one_that_is_read(lab: MakeLab) -> None:  # E20
    one = lab(joining())
    one.start()
    one.kill()
    for n in range(20):
        one.publish("slow", {"k": "a", "at": at(n * 60)})
    for n in range(40):
        one.publish("fast", {"k": "b", "at": at(n * 60)})
    one.start("b", bus=SlowSource(one.server), align=300.0)
    one.advance(9)  # the first one is silent
    for n in range(40, 80):  # more than one reading of it
        one.publish("fast", {"k": "b", "at": at(n * 60)})
    one.advance(5)
    source = next(r.source for r, _ in one.partitions() if r.stage.name == "fast")
    assert source is not None
    assert source.waits_for == {"slow": "behind"}
    assert source.highest == DAY + 39 * 60
    one.advance(3)
    assert waiting(one) == ({"slow": "behind"}, ["fast waits for slow, which is far behind in event time (engine.align)"])
    one.advance(27)
    assert not source.waits_for  # the slow one has nothing more to read
    assert source.highest == DAY + 79 * 60
    assert waiting(one) == ({}, [])
    assert one.hosts["b"][0].watchdog.health == "ok"


def test_who_waits_until_a_table_is_read_is_shown_with_its_name(lab: MakeLab) -> None:
    topology = Topology("t")
    table, events = (topology.source(s).key_by("k", name=f"{s}_key") for s in ("slow", "fast"))
    events.lookup(table, name="known").sink("out")
    one = lab(topology)
    one.start()
    one.kill()
    for _ in range(8):
        one.publish("slow", {"k": "a"})
    one.publish("fast", {"k": "a"})
    one.start("b", bus=SlowSource(one.server))
    one.advance(6)
    assert waiting(one) == ({"slow": "table"}, ["fast waits for slow, which a lookup reads to its end first"])
    one.advance(20)
    assert waiting(one) == ({}, [])
    assert len(one.outputs("out")) == 1


def test_no_source_waits_for_history_that_is_far_behind_and_read_in_a_lane(lab: MakeLab) -> None:
    def reduced(*, new: bool) -> Topology:
        topology = Topology("t")
        keyed = topology.source("in", time="at").key_by("k", name="by")
        keyed.window("10s").count(name="old").sink("out")
        if new:
            keyed.window("10s").count(name="new").sink("more")
        return topology

    one = lab(reduced(new=False))
    one.start()
    for n in range(40):
        one.publish("in", {"k": "a", "at": at(n * 60)})
    one.advance(1)
    one.drain()
    one.run(apply(one.client.bus, APP, [reduced(new=True).graph], backfill=Backfill(86400.0)))
    one.start("b", reduced(new=True), bus=SlowSource(one.server, "s3"), align=300.0)
    for n in range(40, 50):  # more than one reading of it
        one.publish("in", {"k": "a", "at": at(n * 60)})
        one.advance(0.5)
    assert (len(one.outputs("out")), one.outputs("more")) == (49, [])
    one.advance(80)
    assert len(one.outputs("more")) == 11  # the window of the last event of history ends behind the boundary


def test_a_source_waits_until_the_stages_behind_its_hops_have_read_most_of_what_it_gave_them(  # G5
    lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def change(how: Any, *more: Any) -> None:
        await how(await one.client.bus.bucket(subjects.applied(APP)), "t", "fast_key_2", *more)

    monkeypatch.setattr(backlog, "MOST", 20)
    topology = Topology("t")
    for name in ("slow", "fast"):
        first = topology.source(name).key_by("k", name=f"{name}_key")
        first.key_by("k", name=f"{name}_key_2").sink(f"out.{name}")
    one = lab(topology)
    one.start()
    one.run(change(pauses.pause, 0.0))
    one.advance(1.1)
    for n in range(100):
        for name in ("slow", "fast"):
            one.publish(name, {"k": f"k{n}"})
        one.advance(0.1)
    unread = sum(".edge.t.s5." in m.subject for m in one.server.streams[STREAM].messages.values())
    assert 20 < unread < 45  # a heartbeat, and what was on its way
    assert len(one.outputs("out.slow")) == 100
    said = ["fast waits for fast_key_2, behind which too much is not read yet"]
    assert waiting(one) == ({"fast_key_2": "unread"}, said)
    assert one.hosts["a"][0].watchdog.health == "ok"
    one.run(change(pauses.resume))
    one.advance(10)
    assert len(one.outputs("out.fast")) == 100
    assert waiting(one) == ({}, [])
