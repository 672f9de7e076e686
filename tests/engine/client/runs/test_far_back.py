"""Runs of long ago are found without reading what was stored since: by their id, by its end, and those that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.errors import RateLimited, RunNotFound
from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRequest
from dspex.engine.client.following.progress import RunInfo
from dspex.engine.client.runs import history as reading
from dspex.engine.client.runs.tree import Happening
from dspex.engine.graph.nodes import Retry
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
MANY = 3000


def lot() -> Topology:
    """Most events become a row; some ask a model, some wait for a person, and some are poison."""

    def row(data: dict[str, Any]) -> dict[str, Any]:
        if data.get("poison"):
            raise ValueError("poison")
        return {"text": "x" * 60}

    topology = Topology("lot")
    asked, rest = topology.source("in").branch("ask")
    asked.predict("text -> intent", name="classify").sink("intents")
    rest.map(row, name="row").sink("rows")
    return topology


def listed(one: Lab, **options: Any) -> list[RunInfo]:
    async def found() -> list[RunInfo]:
        return [info async for info in one.client.runs(**options)]

    runs: list[RunInfo] = one.run(found())
    return runs


def many(one: Lab, count: int = MANY) -> None:
    """So many events come and are done, each some milliseconds behind the one before."""
    for _ in range(count // 100):
        one.run(one.client.bus.publish_all([NewMessage("in", b'{"text":"a","ask":false}')] * 100))
        one.advance(1)


@contextmanager
def read(one: Lab) -> Iterator[list[Message]]:
    """What is read of the application's stream meanwhile."""
    bus, found = one.client.bus, list[Message]()
    scan, page = bus.scan, bus.page

    async def scanned(stream: str, filters: Sequence[str], **options: Any) -> list[Message]:
        messages = await scan(stream, filters, **options)
        found.extend(m for m in messages if stream == STREAM)
        return messages

    async def paged(stream: str, filters: Sequence[str], **options: Any) -> list[Message]:
        messages = await page(stream, filters, **options)
        found.extend(m for m in messages if stream == STREAM)
        return messages

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bus, "scan", scanned)
        patch.setattr(bus, "page", paged)
        yield found


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is long is so sooner."""
    for name, value in {"_FEW": 64, "_SOON": 128, "_MANY": 128, "_LONG": 256}.items():
        monkeypatch.setattr(reading, name, value)


@pytest.mark.usefixtures("short")
def test_of_a_run_whose_call_stays_open_only_its_begin_and_what_no_snapshot_tells_is_read(lab: MakeLab) -> None:
    one = lab(lot())
    one.start(most_arrivals=1)
    run = one.client.run(one.publish("in", {"text": "a", "ask": True}))
    one.advance(1)
    many(one)
    entries = [m.sequence for m in one.messages(subjects.log(APP, "*", "*", "*"))]
    with read(one) as found:
        past, _ = one.run(run.history())
    logs = {m.sequence for m in found if subjects.matches(subjects.log(APP, "*", "*", "*"), m.subject)}
    assert (len(entries) > MANY, len(logs) < MANY // 3, max(logs)) == (True, True, entries[-1])
    assert (past.done, len(past.taken), one.run(run.info()).status) == (False, 1, "running")
    one.answers["classify"] = lambda inputs, work: {"intent": "late"}
    one.work()
    one.advance(1)
    info = one.run(run.info())
    assert (info.status, info.calls) == ("done", 1)
    assert [told.label for told in one.run(run.tree())] == ["in", "classify#0", "intents"]


@pytest.mark.usefixtures("short")
def test_what_happened_to_an_open_call_before_the_last_snapshot_is_told(lab: MakeLab) -> None:
    one = lab(lot())
    one.start(most_arrivals=1)
    one.answers["classify"] = lambda inputs, work: 1 / 0 if work.try_number == 1 else {"intent": "late"}
    run = one.client.run(one.publish("in", {"text": "a", "ask": True}))
    many(one, MANY // 2)
    one.work()
    one.advance(1)
    one.stop_workers()
    many(one, MANY // 2)
    assert one.run(run.tree()).below[0].attempts[0].error == "division by zero"


@pytest.mark.long
@pytest.mark.usefixtures("short")
def test_of_a_run_that_waited_long_and_is_done_what_lies_between_is_not_read(lab: MakeLab) -> None:
    one = lab(lot())
    one.start(most_arrivals=1)
    one.answers["classify"] = lambda inputs, work: {"intent": "late"}
    run = one.client.run(one.publish("in", {"text": "a", "ask": True}))
    one.advance(1)
    many(one)
    one.work()
    one.advance(1)
    one.stop_workers()
    many(one)
    entries = [m.sequence for m in one.messages(subjects.log(APP, "*", "*", "*"))]
    with read(one) as found:
        past, _ = one.run(run.history())
    logs = {m.sequence for m in found if subjects.matches(subjects.log(APP, "*", "*", "*"), m.subject)}
    assert (past.done, len(past.taken), len(past.records)) == (True, 2, 1)
    assert (len(entries) > 2 * MANY, len(logs) < MANY // 3, max(logs) < entries[-MANY // 2]) == (True, True, True)


@pytest.mark.long
@pytest.mark.usefixtures("short")
def test_a_redriven_letter_is_found_without_reading_to_the_end(lab: MakeLab) -> None:
    one = lab(lot())
    one.start(most_arrivals=1)
    id = one.publish("in", {"poison": 1, "ask": False})
    one.advance(1)
    many(one)
    one.run(one.client.redrive(one.letters()))
    one.advance(1)
    many(one)
    with read(one) as found:
        past, _ = one.run(one.client.run(id).history())
    logs = {m.sequence for m in found if subjects.matches(subjects.log(APP, "*", "*", "*"), m.subject)}
    assert (past.done, len(past.taken)) == (True, 2)
    assert len(logs) < MANY // 3
    assert [told.label for told in one.run(one.client.run(id).tree())] == ["in", "row"]


def test_runs_that_failed_are_listed_without_a_look_at_all_others(lab: MakeLab) -> None:
    one = lab(lot())
    one.start()
    failed = [one.publish("in", {"poison": n, "ask": False}) for n in (1, 2)]
    one.advance(1)
    many(one)
    with read(one) as found:
        assert [(info.id, info.status) for info in listed(one, status="failed")] == [(id, "failed") for id in failed[::-1]]
    assert len(found) < MANY // 3
    assert [info.id for info in listed(one, status="failed", limit=1)] == failed[1:]
    assert listed(one, status="failed", since="10s") == []


def test_the_end_of_an_id_names_its_run_and_nothing_is_read_to_find_it(lab: MakeLab) -> None:
    one = lab(lot())
    one.start()
    ids = [one.publish("in", {"text": "a", "ask": False}) for _ in range(3)]
    many(one, 300)
    assert [one.run(one.client.run(id[-8:]).info()).id for id in ids] == ids
    assert one.run(one.client.run(ids[1][-14:]).info()).id == ids[1]
    for wrong in (f"f{ids[0][-7:]}", "00ffff", "zzzzzz", f"{'0' * 12}{ids[0][-12:]}"):
        with pytest.raises(RunNotFound):
            one.run(one.client.run(wrong).info())


def chained() -> tuple[Topology, Topology]:
    first, second = Topology("first"), Topology("second")
    first.source("in").map(lambda data: data, name="same").sink("between")
    second.source("between").predict("text -> intent", name="classify").sink("intents")
    return first, second


def test_a_run_goes_on_in_the_topology_that_takes_its_output(lab: MakeLab) -> None:
    one = lab(*chained())
    one.start()
    run = one.client.run(one.publish("in", {"text": "a"}))
    one.advance(1)
    info = one.run(run.info())
    assert (info.topology, info.status, info.calls) == ("first", "running", 0)
    one.answers["classify"] = lambda inputs, work: {"intent": "card"}
    one.work()
    one.advance(1)
    found: Happening = one.run(run.tree())
    assert [told.label for told in found] == ["in", "between", "classify#0", "intents"]
    info = one.run(run.info())
    assert (info.status, info.calls) == ("done", 1)
    assert [told.id for told in listed(one, topology="second")] == [run.id]


def test_a_run_stands_where_it_began_however_late_another_topology_takes_its_output(lab: MakeLab) -> None:
    asks, reads = Topology("asks"), Topology("reads")
    retry = Retry(attempts=3, backoff="30s", jitter=0.0)
    asks.source("in").predict("text -> intent", name="classify", retry=retry).sink("between")
    reads.source("between").sink("out")
    one = lab(asks, reads)
    one.answers["classify"] = busy_at_first
    one.start()
    one.work()
    begun = list[str]()
    for text in ("first", "late", "third"):
        begun.append(one.publish("in", {"text": text}))
        one.advance(1)
    one.advance(60)
    assert [data["text"] for data in one.outputs("out")] == ["first", "third", "late"]
    assert [info.id for info in listed(one)] == begun[::-1]
    assert one.run(one.client.run("@last").info()).id == begun[2]
    assert [info.id for info in listed(one, topology="reads")] == begun[::-1]


def busy_at_first(inputs: dict[str, Any], work: CallRequest) -> dict[str, Any]:
    if inputs["text"] == "late" and work.try_number == 1:
        raise RateLimited("slow down")
    return {"intent": "card", "text": inputs["text"]}


def test_a_run_is_followed_in_every_topology_whose_source_takes_its_event(lab: MakeLab) -> None:
    some, all_ = Topology("some"), Topology("all")
    some.source("in.a").sink("of.some")
    all_.source("in.*").predict("text -> intent", name="classify").sink("of.all")
    one = lab(some, all_)
    one.start()
    run = one.client.run(one.publish("in.a", {"text": "a"}))
    one.advance(1)
    assert {told.label for told in one.run(run.tree())} == {"in.a", "of.some", "classify#0"}
    assert one.run(run.info()).status == "running"
