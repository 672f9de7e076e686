"""An engine that is alive and makes no progress says so; one that only waits does not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest
from engine_lab import APP, Lab
from structlog.testing import capture_logs

from dspex.bus import subjects
from dspex.bus.memory.handles import MemoryReader
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.port import BusEvents, NewMessage, StreamConfig
from dspex.engine.client.status.health import faults
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def echo() -> Topology:
    topology = Topology("echo")
    topology.source("in").map(lambda d: d, name="same").sink("out")
    return topology


def asking() -> Topology:
    topology = Topology("asking")
    topology.source("in").predict("question -> answer", name="ask").sink("out")
    return topology


def stalls(logged: list[dict[str, object]]) -> int:
    return sum(str(line["event"]).startswith("stalled") for line in logged)


def written(one: Lab, name: str = "a") -> dict[str, object]:
    """What an engine writes about itself for `dspex status`."""

    async def read() -> bytes:
        bucket = await one.client.bus.bucket(subjects.bucket(APP))
        return (await bucket.items("engine"))[subjects.member_key("engine", name)][0]

    found: dict[str, object] = orjson.loads(one.run(read()))
    return found


class Held(MemoryBus):
    """A connection whose commits wait while `held`."""

    held = False

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        while self.held:
            await asyncio.sleep(0.1)
        return await super().commit(drafts, timeout=timeout)


def test_a_commit_that_does_not_end_is_logged_once_and_shown_by_status_until_it_does(lab: MakeLab) -> None:
    one = lab(echo())
    bus = Held(one.server, BusEvents())
    engine = one.start(bus=bus, stall_after=3.0, heartbeat=0.6)
    bus.held = True
    one.publish("in", {"n": 1})
    one.advance(2)
    assert engine.watchdog.health == "ok"
    with capture_logs() as logged:
        one.advance(5)
    assert stalls(logged) == 1
    assert engine.watchdog.health == "stalled: echo/s1, events are processed and not committed"
    assert written(one)["health"] == engine.watchdog.health
    bus.held = False
    one.advance(2)
    assert engine.watchdog.health == "ok"


def test_a_source_that_is_not_read_on_is_a_stall(lab: MakeLab) -> None:  # P8
    one = lab(echo())
    engine = one.start(stall_after=3.0)
    for task in [t for t in asyncio.all_tasks(one.loop) if t.get_name() == "echo.s1.source"]:
        task.cancel()  # as if its pump hung
    one.advance(0.1)
    one.publish("in", {"n": 1})
    one.advance(5)
    assert engine.watchdog.health == "stalled: echo/s1, events of the source are not read"


class Silent(MemoryBus):
    """A connection whose readers of hops get nothing: all of them, or those that read for one partition alone."""

    def __init__(self, server: MemoryServer, *, alone: bool = False) -> None:
        super().__init__(server, BusEvents())
        self.alone = alone

    async def reader(self, stream: str, filters: Sequence[str], **options: Any) -> MemoryReader:
        hop = ".edge." in filters[0] and (not self.alone or (len(filters) == 1 and "*" not in filters[0]))
        return await super().reader(stream, ["nobody.publishes.here"] if hop else filters, **options)


def keyed() -> Topology:
    topology = Topology("keyed")
    topology.source("in").key_by("k", name="by").predict("k -> answer", name="ask").sink("out")
    return topology


def test_a_stage_whose_reader_behind_a_hop_is_silent_is_stalled_and_fails_the_health_check(lab: MakeLab) -> None:
    one = lab(keyed())
    engine = one.start(bus=Silent(one.server), stall_after=3.0)
    one.advance(10)
    assert engine.watchdog.health == "ok"
    one.publish("in", {"k": "a"})
    one.advance(6)
    assert engine.watchdog.health == "stalled: keyed/s2, events that came over a hop are not read"
    assert "events that came over a hop" in " ".join(f.message for f in faults(one.run(one.client.status())))


def test_one_partition_that_stands_still_is_a_stall_though_the_others_of_its_stage_go_on(lab: MakeLab) -> None:  # P8
    """It was full, left the reader of its stage, and the one that it got of its own is silent."""
    one = lab(keyed())
    engine = one.start(bus=Silent(one.server, alone=True), stall_after=3.0, most_open_calls=1)
    for key in "aab":
        one.publish("in", {"k": key})
    one.work()
    for n in range(10):
        one.publish("in", {"k": f"c{n}"})
        one.advance(1)
    found = [o["k"] for o in one.outputs("out")]
    assert (found.count("a"), len(found) > 8) == (1, True), found  # all but those of the partition of a
    assert engine.watchdog.health == "stalled: keyed/s2, events that came over a hop are not read"


def test_events_of_another_engines_partitions_are_not_work_of_this_one(lab: MakeLab) -> None:
    topology = Topology("shared")
    topology.source("in", partitions=2).map(lambda d: d, name="same").sink("out")
    one = lab(topology)
    engines = [one.start(name, stall_after=3.0) for name in "ab"]
    one.advance(20)
    for n in range(20):
        one.publish("in", {"n": n}, key="k")
        one.advance(1)
    assert [e.watchdog.health for e in engines] == ["ok", "ok"]
    assert [len(e.runners[0].partitions) for e in engines] == [1, 1]


def test_an_engine_without_events_is_not_stalled(lab: MakeLab) -> None:
    one = lab(echo())
    engine = one.start(stall_after=3.0)
    one.publish("in", {"n": 1})
    with capture_logs() as logged:
        one.advance(20)
    assert stalls(logged) == 0
    assert engine.watchdog.health == "ok"


def test_waiting_for_workers_is_no_stall_even_when_the_source_waits_too(lab: MakeLab) -> None:
    one = lab(asking())
    engine = one.start(stall_after=3.0, most_open_calls=1)
    for n in range(3):
        one.publish("in", {"question": str(n)})
    with capture_logs() as logged:
        one.advance(20)
    assert stalls(logged) == 0
    assert engine.watchdog.health == "ok"


@pytest.mark.parametrize("source", ["EVENTS", ""])
def test_a_stream_that_is_gone_from_the_server_is_told_at_once_and_then_once_a_minute(lab: MakeLab, source: str) -> None:
    one = lab(echo())
    if source:  # of somebody else: it goes on, and nothing can be committed
        one.run(one.client.bus.ensure_stream(StreamConfig(source, ["in"])))
    engine = one.start()
    one.publish("in", {})
    with capture_logs() as logged:
        one.run(one.client.bus.remove("stream", subjects.stream(APP)))
        if source:
            one.publish("in", {})
        one.advance(10)
        gone = f"the stream {subjects.stream(APP)} is gone from the server, with all that it held"
        assert engine.watchdog.health == gone
        assert [(line["why"], "fix" in line) for line in logged if line["event"] == "nothing is processed"] == [(gone, True)]
        one.advance(590)
    said = Counter(str(line["event"]) for line in logged)
    assert said["nothing is processed"] == 10
    assert max(said.values()) <= 10
