"""`status` counts on the server what waits, nothing that is missing breaks it, and `faults` tells what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.errors import ProgramError, RetryLater, Unsettled
from dspex.bus.memory.server import MemoryBus
from dspex.bus.port import BusEvents, NewMessage, StreamConfig
from dspex.engine.cli.figures import blocks
from dspex.engine.client.status.approvals import Approval
from dspex.engine.client.status.health import faults
from dspex.engine.client.status.rows import Status
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def echo(name: str = "echo", source: str = "in", **options: Any) -> Topology:
    def check(data: Any) -> Any:
        if data.get("bad"):
            raise ValueError("bad")
        return data

    topology = Topology(name)
    topology.source(source, **options).map(check, name="check").sink(f"out.{name}")
    return topology


def status(one: Lab) -> Status:
    one.advance(1.5)  # a heartbeat
    found: Status = one.run(one.client.status())
    return found


def wrong(one: Lab) -> list[str]:
    """The messages of what is wrong. The clock of this machine is no matter here: the lab has its own time."""
    return [fault.message for fault in faults(status(one)) if fault.check != "clock"]


def test_lag_is_the_number_of_unread_events_of_the_source_whatever_else_is_in_its_stream(lab: MakeLab) -> None:
    one = lab(echo(source="ev.in"))
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["ev.>"])))
    one.start()
    for n in range(20):
        one.publish("ev.other", {"n": n})
        one.publish("ev.in", {"n": n})
    (stage,) = status(one)["stages"]
    assert (stage["lag"], stage["oldest"]) == (0, None)
    one.drain()
    one.publish("ev.in", {"n": 20})
    one.advance(60)
    for n in range(50):
        one.publish("ev.other", {"n": n})
    one.publish("ev.in", {"n": 21})
    (stage,) = status(one)["stages"]
    assert stage["lag"] == 2
    assert stage["oldest"] is not None
    assert 60 <= stage["oldest"] < 65
    assert stage["unowned"] == 1


def test_calls_that_end_with_their_fallback_are_counted(lab: MakeLab) -> None:
    def answer(inputs: Any, request: Any) -> Any:
        if inputs["text"] != "good":
            raise ProgramError("no")
        return {"answer": "yes"}

    topology = Topology("falling")
    topology.source("in").predict("text -> answer", name="ask", fallback=lambda data: {"answer": "no"}).sink("out")
    one = lab(topology)
    one.answers["ask"] = answer
    one.start()
    one.work()
    for text in ("good", "bad", "worse"):
        one.publish("in", {"text": text})
    (stage,) = status(one)["stages"]
    assert len(one.outputs("out")) == 3
    assert stage["fallbacks"] == 2


def test_partitions_without_events_are_not_behind(lab: MakeLab) -> None:
    one = lab(echo(partitions=4))
    one.start()
    for n in range(50):
        one.publish("in", {"n": n}, key="always the same")
    (stage,) = status(one)["stages"]
    assert (stage["lag"], stage["unowned"]) == (0, 0)


def test_dead_letters_are_those_that_are_stored_now_whichever_engine_made_them(lab: MakeLab) -> None:
    one = lab(echo(), echo("other", "there"))
    one.start()
    for _ in range(3):
        one.publish("in", {"bad": True})
    one.kill()
    one.start("b")
    one.advance(10)
    assert [s["dead_letters"] for s in status(one)["stages"]] == [3, 0]
    one.run(one.client.redrive(one.letters()[:1]))
    one.run(one.client.bus.delete(subjects.stream(APP), one.letters()[0].sequence))
    assert [s["dead_letters"] for s in status(one)["stages"]] == [2, 0]


def test_a_partition_that_was_taken_over_counts_once_though_its_engine_that_died_is_not_silent_yet(lab: MakeLab) -> None:
    topology = Topology("asking")
    topology.source("in", partitions=4).predict("text -> answer", name="ask").sink("out")
    one = lab(topology)
    one.start()
    for n in range(8):
        one.publish("in", {"text": str(n)}, key=str(n))
    one.advance(1.5)  # until its heartbeat says so
    one.kill()
    one.start("b")
    one.advance(8)  # five heartbeats, after which the partitions are free
    for n in range(8, 10):
        one.publish("in", {"text": str(n)}, key=str(n))
    found = status(one)
    assert [(e["engine"], e["alive"]) for e in found["engines"]] == [("a", True), ("b", True)]
    (stage,) = found["stages"]
    assert (stage["owners"], stage["open_calls"], stage["calls"]) == (["b"], 10, {"lightweight": 10})
    assert (stage["lag"], stage["unowned"]) == (0, 0)


@pytest.mark.parametrize("engine", [True, False])
def test_a_source_stream_that_is_gone_shows_in_its_row_and_in_no_other(lab: MakeLab, engine: bool) -> None:
    one = lab(echo("a", "ev.in"), echo("b", "there"))
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["ev.>"])))
    one.start()
    one.publish("ev.in", {})
    one.publish("there", {})
    assert wrong(one) == []
    if not engine:
        one.drain()
    one.run(one.client.bus.remove("stream", "EVENTS"))
    one.advance(10)
    gone, other = status(one)["stages"]
    assert (gone["lag"], gone["oldest"]) == (None, None)
    assert "EVENTS" in str(gone["stopped"])
    assert (other["lag"], other["stopped"]) == (0, None)
    assert any("a/s1 (ev.in) is stopped: the stream EVENTS" in message for message in wrong(one))


def test_who_holds_the_gate_of_a_stage_is_named_open_calls_by_pool_parked_events_and_the_stream(lab: MakeLab) -> None:
    def put_off(data: Any) -> Any:
        if data["text"] == "later":
            raise RetryLater(after=3600)
        return data

    topology = Topology("asking")
    topology.source("in").map(put_off, name="check").predict("text -> answer", name="ask", pool="writers").sink("out")
    one = lab(topology, echo())
    one.start(most_open_calls=3)
    for text in ("a", "later"):
        one.publish("in", {"text": text})
    assert status(one)["stages"][0]["gate"] is None
    one.publish("in", {"text": "b"})
    one.publish("in", {"text": "waits"})
    found = status(one)
    gate = {"open_calls": 2, "put_off": 1, "calls": {"writers": 2}, "stream": "", "sources": {}}
    assert [(s["full"], s["gate"], s["lag"]) for s in found["stages"]] == [(1, gate, 1), (0, None, 0)]
    (said,) = [remark for block in blocks(found) for remark in block.remarks if "admit" in remark]
    assert said == (
        "asking/s1: 1 of 1 partitions admit no event: 2 open calls (2 of pool writers) and 1 put-off event "
        "(engine.max_open_calls)"
    )
    one.start("full", echo("other", "there"), max_bytes=one.server.streams[STREAM].bytes * 6 // 5)
    found = status(one)
    streams = {s["topology"]: s["gate"] and s["gate"]["stream"] for s in found["stages"]}
    assert streams["other"] == "sources wait: 80% of the stream's max_bytes are used"
    assert any("other/s1: sources wait: 80%" in remark for block in blocks(found) for remark in block.remarks)


def test_who_holds_the_watermark_of_a_stage_is_named_once_it_is_held_for_a_minute(lab: MakeLab) -> None:  # E13
    topology = Topology("asking")
    asked = topology.source("in").predict("text -> answer", name="ask", timeout="150s", deadline="150s")
    asked.key_by("event.key", name="by_key").window("10s").count(name="counts").sink("out")
    one = lab(topology)
    one.start()
    one.publish("in", {"text": "a"}, key="a")
    one.advance(40)
    found = status(one)
    assert [{*s["holds"]} for s in found["stages"]] == [{"ask"}, set()]
    assert not [r for block in blocks(found) for r in block.remarks]
    one.advance(60)
    (said,) = [r for block in blocks(status(one)) for r in block.remarks]
    assert said.startswith("asking/s1: ask holds the watermark 1 m ")
    one.advance(60)  # behind its deadline
    assert [s["holds"] for s in status(one)["stages"]] == [{}, {}]


def test_events_that_wait_for_a_person_are_counted_also_once_no_engine_runs(lab: MakeLab) -> None:
    topology = Topology("asking")
    topology.source("in").approve(name="ok", timeout="1h").sink("out")
    one = lab(topology)
    one.start()
    assert status(one)["stages"][0]["approvals"] == {}
    for n in range(3):
        one.publish("in", {"n": n})
    first, *_ = one.run(_all(one))
    one.run(one.client.decide(first, "accept"))
    assert status(one)["stages"][0]["approvals"] == {"ok": 2}
    one.kill()
    found = status(one)
    assert found["stages"][0]["approvals"] == {"ok": 2}
    assert "asking/s1: 2 events at ok wait for a person: dspex approvals ls" in [r for b in blocks(found) for r in b.remarks]


async def _all(one: Lab) -> list[Approval]:
    return [approval async for approval in one.client.approvals()]


# -- health ------------------------------------------------------------------------------------------------------------
def test_an_application_that_runs_is_healthy_and_one_without_an_engine_is_not(lab: MakeLab) -> None:
    one = lab(echo())
    assert wrong(one) == [f"nothing is applied for app {APP}"]
    one.start()
    one.publish("in", {})
    assert wrong(one) == []
    one.drain()
    assert wrong(one) == ["no engine is running echo"]


def test_a_topology_that_no_living_engine_runs_is_told_though_others_run(lab: MakeLab) -> None:
    one = lab(echo(), echo("other", "there"))
    one.start()
    one.kill()
    one.start("b", echo())
    one.advance(20)
    assert wrong(one) == ["no engine is running other"]


def test_calls_that_wait_for_a_pool_without_workers_are_told(lab: MakeLab) -> None:
    topology = Topology("asking")
    topology.source("in").predict("text -> answer", name="ask", pool="gpu").sink("out")
    idle = Topology("idle")
    idle.source("there").predict("text -> answer", name="ask", pool="writers").sink("out.idle")
    one = lab(topology, idle)
    one.start()
    assert wrong(one) == []
    one.publish("in", {"text": "a"})
    one.publish("in", {"text": "b"})
    assert wrong(one) == ["2 calls wait for pool gpu, and no worker of it is ready"]
    one.kill()
    one.advance(30)
    assert wrong(one) == ["no engine is running asking", "no engine is running idle", *wrong(one)[2:]]
    assert "2 calls wait for pool gpu" in wrong(one)[-1]


def test_a_full_stream_is_told(lab: MakeLab) -> None:
    one = lab(echo())
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    one.start(max_bytes=20_000)
    for n in range(60):
        one.publish("in", {"n": n, "text": "x" * 500})
    one.advance(5)
    (message,) = wrong(one)
    assert message.startswith("a: cannot commit: ")


def test_partitions_that_nobody_owns_and_clocks_that_differ_are_told() -> None:
    engine: Any = {"engine": "e", "alive": True, "topologies": ["t"], "full": "", "health": "stalled: t/s1, x", "clock": -7.25}
    stage: Any = {"topology": "t", "stage": "s1", "source": "in", "stopped": None, "owners": ["e"], "calls": {}}
    stage.update(unowned=2, partitions=4, full=0, put_off=0)
    found: Any = {"server": {"app": "a", "stream": "S"}, "engines": [engine], "stages": [stage], "pools": []}
    assert [(f.check, f.message) for f in faults(found)] == [
        ("engine", "e: stalled: t/s1, x"),
        ("owner", "t/s1: 2 of 4 partitions have no owner"),
        ("clock", "the clock of e's machine is -7.2 s from the server's"),
    ]
    engine.update(health="ok", clock=0.5)
    stage.update(unowned=4, owners=[])
    assert [f.message for f in faults(found)] == ["t/s1: 4 of 4 partitions have no owner"]
    stage.update(unowned=0)
    assert faults(found) == []


class Deaf(MemoryBus):
    """A server on which no commit with an output lands."""

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        if any(d.subject.startswith("out.") for d in drafts):
            raise Unsettled("no answer came")
        return await super().commit(drafts, timeout=timeout)


def test_events_that_were_taken_and_cannot_be_committed_are_in_the_lag(lab: MakeLab) -> None:
    one = lab(echo())
    one.start(bus=Deaf(one.server, BusEvents()))
    for n in range(4):
        one.publish("in", {"n": n})
    one.advance(5)
    (stage,) = status(one)["stages"]
    assert stage["lag"] == 4
