"""Runs: when everything that an event caused is over, and what a client knows of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.errors import (
    CallTimeout,
    ConfigError,
    NotStored,
    ProgramError,
    RetryLater,
    RunFailed,
    RunNotFound,
    TopologyError,
)
from dspex.bus.message import new_id
from dspex.bus.port import NewMessage, StreamConfig
from dspex.engine.log.entries import VERSION, packed
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
COMMIT = {"v": VERSION, "kind": "commit", "time": 0, "base": 0, "older": 0, "claim": 1, "digest": b"", "taken": ()}
GARBAGE = {
    "rows": packed({**COMMIT, "covers": 0, "tables": {"calls": [[1, ["too", "short"]]], "positions": 5}}),
    "pieces": packed({**COMMIT, "covers": 3, "pieces": 2}),
}


def asking() -> Topology:
    topology = Topology("asking")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    return topology


def published(one: Lab, subject: str = "in", text: str = "a", **options: Any) -> Any:
    run = one.run(one.client.publish(subject, {"text": text}, **options))
    one.loop.settle()
    return run


def now(one: Lab) -> str:
    """A new id of a publisher whose clock is the server's."""

    async def made() -> str:
        return new_id(one.server.now)

    return str(one.run(made()))


@pytest.mark.parametrize("clock", ["right", "ahead", "none"])
def test_a_run_is_done_when_nothing_of_it_is_open(lab: MakeLab, clock: str) -> None:
    one = lab(asking())
    one.start()
    ids = {"right": now(one), "ahead": new_id(2_000_000_000.0), "none": "order-17"}
    run = published(one, id=ids[clock])
    assert one.run(run.info()).status == "running"
    with pytest.raises(CallTimeout):
        one.run(run.wait(timeout="3s"))
    one.work()
    info = one.run(run.wait(timeout="3s"))
    assert (info.id, info.topology, info.status, info.calls, info.dead_letters) == (run.id, "asking", "done", 1, 0)
    assert info.finished is not None
    assert [e.data["answer"] for e in one.run(run.outputs())] == ["yes"]


def test_a_run_of_more_calls_than_one_log_entry_can_name_is_done_when_the_last_is_answered(lab: MakeLab) -> None:
    topology = Topology("wide")
    asked = topology.source("in").flat_map(lambda d: [{"text": f"{n}"} for n in range(600)], name="many")
    asked.predict("text -> answer", name="ask").sink("out")
    one = lab(topology, max_payload=64_000)
    one.start()
    run = published(one)
    assert one.messages(subjects.pieces(APP, "wide", "s1", 0)) != []
    assert one.run(run.info()).status == "running"
    one.work()
    info = one.run(run.wait(timeout="10s"))
    assert (info.status, info.calls, len(one.run(run.outputs()))) == ("done", 600, 600)


@pytest.mark.parametrize("data", [b"garbage", GARBAGE["rows"], GARBAGE["pieces"]], ids=["none", "rows", "pieces"])
@pytest.mark.parametrize("partition", ["0", "x"])
def test_what_no_engine_wrote_to_a_log_ends_no_wait_for_a_run(lab: MakeLab, data: bytes, partition: str) -> None:
    one = lab(asking())
    one.start()
    run = published(one)
    one.work()
    one.run(one.client.bus.publish(NewMessage(subjects.log(APP, "asking", "s1", partition), data)))
    one.work()
    assert one.run(run.wait(timeout="30s")).status == "done"


def test_a_run_with_a_dead_letter_has_failed(lab: MakeLab) -> None:
    one = lab(asking())

    def fail(inputs: Any, work: Any) -> Any:
        raise ProgramError("no")

    one.answers["ask"] = fail
    one.start()
    one.work()
    run = published(one)
    with pytest.raises(RunFailed):
        one.run(run.wait(timeout="3s"))
    assert one.run(run.info()).status == "failed"


def test_a_run_waits_for_events_that_are_run_again_later(lab: MakeLab) -> None:
    topology, tries = Topology("later"), list[int]()

    def patient(data: Any) -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise RetryLater(after=10.0)
        return data

    topology.source("in").map(patient, name="patient").sink("out")
    one = lab(topology)
    one.start()
    run = published(one, id=now(one))
    with pytest.raises(CallTimeout):
        one.run(run.wait(timeout="12s"))
    assert one.run(run.wait(timeout="12s")).status == "done"


def test_runs_of_sources_in_other_streams_and_of_many_partitions_are_followed_too(lab: MakeLab) -> None:
    topology = Topology("spread")
    topology.source("in", partitions=4).flat_map(lambda d: [d] * 3, name="three").sink("out")
    one = lab(topology)
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    one.start()
    runs = [published(one, text=str(n), key=f"k{n}", id=now(one)) for n in range(20)]

    async def follow() -> list[str]:
        return [p.id async for done in one.client.follow([r.id for r in runs], "10s") for p in done]

    assert sorted(one.run(follow())) == sorted(one.run(run.info()).id for run in runs)
    assert len(one.run(runs[7].outputs())) == 3


def test_a_run_is_found_by_the_end_of_its_id_also_if_it_came_without_one(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    one.work()
    id = one.run(published(one).info()).id
    assert one.run(one.client.run(id[-8:]).info()).id == id
    one.store(NewMessage("in", b'{"text": "b"}'))
    foreign = one.messages("out")[-1].headers[subjects.RUN]
    assert one.run(one.client.run(foreign[-8:]).wait("3s")).id == foreign
    for unknown in ("abc", "abcdef0123"):
        with pytest.raises(RunNotFound):
            one.run(one.client.run(unknown).info())
    with pytest.raises(RunNotFound):
        one.run(one.client.run(new_id()).info())


def test_the_same_id_twice_is_one_event_and_one_run(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    one.work()
    first, second = published(one, id="order-17"), published(one, id="order-17")
    assert (first.duplicate, second.duplicate) == (False, True)
    assert first.sequence == second.sequence
    assert len(one.outputs("out")) == 1


def test_a_client_that_publishes_to_an_unknown_subject_is_refused_with_the_nearest_one(lab: MakeLab) -> None:
    topology = Topology("near")
    topology.source("support.messages").sink("out")
    one = lab(topology)
    one.start()
    with pytest.raises(NotStored) as e:
        published(one, "support.mesages")
    assert "did you mean support.messages" in e.value.fix
    with pytest.raises(ConfigError):
        published(one, "support.*")
    with pytest.raises(ConfigError):
        published(one, "support.messages", headers={"Nats-Msg-Id": "x"})


def watched(one: Lab, what: str, count: int, **options: Any) -> list[Any]:
    async def go() -> list[Any]:
        found = []
        events = one.client.watch(what, **options)
        async for event in events:
            found.append(event)
            if len(found) == count:
                break
        await events.aclose()  # type: ignore[attr-defined]
        return found

    found: list[Any] = one.run(go())
    return found


def test_a_watch_shows_events_and_results_from_the_start_that_is_asked_for(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    one.work()
    for n in range(3):
        published(one, text=str(n))
        one.advance(60)
    assert [e.data["text"] for e in watched(one, "out", 3, start="all")] == ["0", "1", "2"]
    assert [e.data for e in watched(one, "asking/ask", 2, start="all")] == [{"answer": "yes"}] * 2
    at = datetime.fromtimestamp(1_767_225_600 + 90, tz=UTC)
    assert [e.data["text"] for e in watched(one, "out", 1, start=at)] == ["2"]
    sequence = one.messages("out")[1].sequence
    assert [e.data["text"] for e in watched(one, "out", 1, start=sequence)] == ["1"]
    with pytest.raises(TopologyError):
        watched(one, "asking/nothing", 1)


def test_a_watch_shows_new_events_and_messages_that_no_stream_stores(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    one.work()
    published(one, text="old")

    async def go(what: str, subject: str) -> Any:
        events = one.client.watch(what)
        first = asyncio.ensure_future(anext(events))  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
        if subject == "in":
            await one.client.publish("in", {"text": "new"})
        else:
            await one.client.bus.send(subject, b'{"text": "live"}')
        return (await first).data["text"]

    assert one.run(go("out", "in")) == "new"
    assert one.run(go("live.*", "live.x")) == "live"


def test_status_shows_stages_partitions_and_open_calls(lab: MakeLab) -> None:
    one = lab(asking())
    host = one.start()
    published(one)

    async def described() -> dict[str, Any]:
        return host.describe()

    said = one.run(described())
    (stage,) = said["stages"]
    assert (stage["topology"], stage["source"], stage["events"], stage["stopped"]) == ("asking", "in", 1, None)
    assert stage["partitions"][0]["open_calls"] == 1
    assert said["full"] == ""
    assert one.server.streams[STREAM].last > 0
