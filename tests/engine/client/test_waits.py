"""Waits for runs: one reader tells all that a client waits for, and what it tells is what following each by itself would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from engine_lab import APP, Lab

from dspex.bus.errors import CallTimeout, ProgramError, RunFailed, RunNotFound, Unreachable
from dspex.bus.memory.connection import MemoryBus
from dspex.bus.memory.handles import MemoryReader
from dspex.bus.memory.server import MemoryServer
from dspex.bus.message import Message
from dspex.bus.port import BusEvents, StreamInfo
from dspex.engine.client.client import Client
from dspex.engine.client.following import waits
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


class Counted(MemoryBus):
    """A connection that keeps the readers that it has opened, and how it has asked for what is stored."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, BusEvents())
        self.opened: list[MemoryReader] = []
        self.asked: list[str] = []

    async def next(self, stream: str, subject: str, sequence: int) -> Message | None:
        self.asked.append("next")
        return await super().next(stream, subject, sequence)

    async def page(self, stream: str, filters: Sequence[str], **options: Any) -> list[Message]:
        self.asked.append("page")
        return await super().page(stream, filters, **options)

    async def stream(self, name: str) -> StreamInfo | None:
        self.asked.append("stream")
        return await super().stream(name)

    async def reader(self, stream: str, filters: Sequence[str], **options: Any) -> MemoryReader:
        self.opened.append(await super().reader(stream, filters, **options))
        return self.opened[-1]


def asking() -> Topology:
    topology = Topology("asking")
    topology.source("in", partitions=3).flat_map(lambda d: [d] * 2, name="two").key_by("text").predict(
        "text -> answer", name="ask"
    ).sink("out")
    return topology


def waiting(one: Lab) -> tuple[Client, Counted]:
    """A client that somebody has connected."""
    bus = Counted(one.server)
    return one.run(Client(bus=bus, app=APP).__aenter__()), bus


def published(one: Lab, client: Client, text: str = "a") -> Any:
    return one.run(client.publish("in", {"text": text}, key=text))


def test_one_reader_tells_all_runs_that_a_client_waits_for_and_ends_when_nobody_waits(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    one.work()
    client, bus = waiting(one)
    runs = [published(one, client, str(n)) for n in range(9)]
    infos = [one.run(runs[0].wait("5s"))]

    async def together() -> list[Any]:
        return await asyncio.gather(*(run.wait("5s") for run in runs[1:]))

    infos += one.run(together())
    late = published(one, client, "late")
    one.advance(1.0)  # it is over by now
    infos.append(one.run(late.wait("5s")))
    assert len(bus.opened) == 1
    assert infos == [one.run(client.run(info.id).info()) for info in infos]
    assert {(info.status, info.calls) for info in infos} == {("done", 2)}
    one.advance(waits.IDLE + 1)
    with pytest.raises(Unreachable, match="closed"):
        one.run(bus.opened[0].read(1))
    assert one.run(published(one, client, "again").wait("5s")).status == "done"
    one.run(client.close())


def test_a_run_from_before_the_first_wait_is_followed_by_itself(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    client, bus = waiting(one)
    old = published(one, client, "old")
    one.advance(60.0)
    new = published(one, client, "new")
    with pytest.raises(CallTimeout, match="1 of 1 runs"):
        one.run(new.wait("1s"))
    one.work()
    assert [one.run(run.wait("5s")).calls for run in (new, old)] == [2, 2]
    assert len(bus.opened) == 2
    one.run(client.close())


def test_a_topology_that_is_applied_between_two_waits_is_known_to_the_second(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    one.work()
    client, _ = waiting(one)
    assert one.run(published(one, client).wait("5s")).topology == "asking"
    other = Topology("other")
    other.source("elsewhere").predict("text -> answer", name="ask").sink("there")
    one.start("b", other)
    run = one.run(client.publish("elsewhere", {"text": "x"}))
    info = one.run(run.wait("5s"))
    assert (info.topology, info.calls) == ("other", 1)
    one.run(client.close())


def test_a_run_with_a_dead_letter_fails_its_wait_and_a_place_without_an_event_is_refused(lab: MakeLab) -> None:
    one = lab(asking())

    def fail(inputs: Any, work: Any) -> Any:
        raise ProgramError("no")

    one.answers["ask"] = fail
    one.start()
    one.work()
    client, _ = waiting(one)
    run = published(one, client)
    with pytest.raises(RunFailed, match="2 dead letter"):
        one.run(run.wait("5s"))
    with pytest.raises(RunNotFound):
        one.run(client.run(f"{run.stream}@99").wait("5s"))
    one.run(client.close())


def test_a_wait_ends_when_what_it_reads_is_gone(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    client, bus = waiting(one)
    run = published(one, client)

    async def go() -> None:
        wait = asyncio.ensure_future(run.wait("60s"))
        while not bus.opened:
            await asyncio.sleep(0)
        await bus.opened[0].close()
        with pytest.raises(Unreachable):
            await wait

    one.run(go())
    one.work()
    assert one.run(client.run(f"{run.stream}@{run.sequence}").wait("5s")).status == "done"
    one.run(client.close())


def test_what_a_run_has_sent_is_read_from_where_its_wait_has_seen_it(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    one.work()
    client, bus = waiting(one)
    for n in range(5):
        run = published(one, client, str(n))
        one.run(run.wait("5s"))
        bus.asked.clear()
        events = one.run(run.outputs())
        assert bus.asked == ["next"] * 3  # two messages, and that there is no third
        assert [event.data for event in events] == [{"text": str(n), "answer": "yes"}] * 2
        other = one.run(one.client.run(run.id).outputs())
        assert events == other
    one.run(client.close())


def test_all_that_a_run_has_sent_is_read_where_it_took_several_commits(lab: MakeLab) -> None:
    topology = Topology("many")
    topology.source("in").flat_map(lambda d: [d] * 2500, name="many").sink("out")
    one = lab(topology)
    one.start()
    client, _ = waiting(one)
    for n in range(2):
        run = published(one, client, str(n))
        one.run(run.wait("5s"))
        events = one.run(run.outputs())
        assert (len(events), {event.data["text"] for event in events}) == (2500, {str(n)})
    one.run(client.close())


def test_sinks_of_two_topologies_that_have_subjects_in_common_are_read_once(lab: MakeLab) -> None:
    topologies = [Topology("one"), Topology("other")]
    for topology, subject in zip(topologies, ("a.{text}", "a.x")):
        topology.source("in").sink(subject)
    for n in range(5):
        topologies[0].source(f"in{n}").sink(f"out{n}")
    one = lab(*topologies)
    one.start()
    client, _ = waiting(one)
    run = published(one, client, "x")
    assert one.run(run.wait("5s")).status == "done"
    assert [event.subject for event in one.run(run.outputs())] == ["a.x"] * 2
    one.run(client.close())


class Scanned(dict[str, Any]):
    """Counts how often all of it is looked at."""

    times = 0

    def __iter__(self) -> Any:
        self.times += 1
        return super().__iter__()


def test_runs_that_go_on_cost_nothing_and_keep_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused topology has thousands of them: each new run must not look at them all, nor may those that end be kept."""
    monkeypatch.setattr(waits, "KEPT", 50)
    everyone = waits._Everyone(MemoryServer().connect(), APP, {}, "first")  # pyright: ignore[reportPrivateUsage]
    everyone.runs = runs = Scanned()
    for number in range(1000):
        run = everyone._of(f"run {number}")  # pyright: ignore[reportPrivateUsage]
        assert run is not None
        if number < 200:
            run.waiting[("t", "s", 0), "source"] = 1
    assert 200 < len(runs) <= 200 + 2 * 50
    assert runs.times <= 1000 // 50
