"""A session that is forgotten: what is removed of it, what stays unreadable, and that what its runs did is still told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from engine_lab import APP, Lab
from sealed_app import CARD, KEYS

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, RunNotFound
from dspex.bus.memory.connection import MemoryBus
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.keys.keyring import Keyring
from dspex.bus.serving.record_store import RecordStore
from dspex.bus.serving.server_clock import ServerClock
from dspex.engine.client.client import Client
from dspex.engine.client.following.forgetting import Belonging, Belongings
from dspex.engine.graph.manifest import of_application
from dspex.operators.topology import Topology
from dspex.workers.pool.cache.kept import CachedAnswer
from dspex.workers.pool.cache.shared import SharedAnswers

MakeLab = Callable[..., Lab]


def asking(sink: str = "out") -> Topology:
    topology = Topology("asking")
    topology.source("in").predict("text -> answer", name="ask", retry={"attempts": 1}).key_by(lambda d: "k", name="by").sink(
        sink
    )
    return topology


def sealed(lab: Lab) -> MemoryBus:
    bus = lab.server.connect()
    bus.sealing = Keyring(bus, APP, "KEY", KEYS)
    return bus


def ran(make: MakeLab, *topologies: Topology, key: bool = True) -> tuple[Lab, list[str]]:
    """Two runs of ann's, one of which failed, and one of bob's."""
    lab = make(*(topologies or (asking(),)))
    bus: Callable[[], Any] = (lambda: sealed(lab)) if key else lab.server.connect
    lab.client = Client(bus=bus(), app=APP)

    def answer(inputs: Any, work: Any) -> Any:
        if "fail" in inputs["text"]:
            raise ArithmeticError(inputs["text"])
        return {"answer": inputs["text"]}

    lab.answers["ask"] = answer
    lab.start(bus=bus(), claim_check_above=400)
    lab.work(bus=bus())
    said = [(CARD + "x" * 500, "ann"), (f"fail {CARD}", "ann"), (f"fail and {CARD}", "bob")]
    runs = [lab.publish("in", {"text": text}, session=session) for text, session in said]
    lab.advance(5)
    return lab, runs


def belongings(lab: Lab, session: str = "ann") -> dict[str, Belonging]:
    return {row.what: row for row in rows_of(lab, session)}


def rows_of(lab: Lab, session: str = "ann") -> list[Belonging]:
    async def look() -> list[Belonging]:
        found = Belongings(lab.client.bus, APP, session, await of_application(lab.client.bus, APP))
        await found.look()
        return found.rows

    found: list[Belonging] = lab.run(look())
    return found


async def _everywhere(lab: Lab, file: Path, run: str) -> None:
    """Have it also where engines put nothing: an interactive record, a cached answer, a turn, an imported run."""
    client = lab.client
    await client.run(run).export(file)
    await client.import_run(file)
    _, revision = await client.session("ann").load()
    await client.session("ann").save({"card": CARD}, revision)
    request = CallRequest("c1", 1, 1, "", "", CallSpec("predict", "a -> b", "a -> b"), {"a": CARD}, "c1", session="ann")
    records = RecordStore(client.bus, APP, "lightweight")
    records.put(CallRecord.of(request, outputs={"b": CARD}), request)
    await records.drain(5)
    clock = ServerClock(client.bus, subjects.stream(APP))
    await clock.ask()
    cache = SharedAnswers(client.bus, APP, "lightweight", clock, ())
    cache.put(b"k" * 16, 3600, "ann", CachedAnswer({"b": CARD}, "", "", "", "c1", 0.0, 10))
    await cache.drain(5)


GONE = {
    "events of sinks", "dead letters", "records of interactive calls", "its data and turns", "answers that may be given again",
    "imported runs and forks", "large payloads",
}  # fmt: skip
STAYS = {"events of sources", "requests of calls", "records of calls", "events over hops"}


def test_what_nothing_goes_by_is_removed_and_the_rest_is_told_with_why_it_stays(lab: MakeLab, tmp_path: Path) -> None:
    one, (done, failed, others) = ran(lab)
    one.run(_everywhere(one, tmp_path / "run.jsonl", done))
    before, of_bob = belongings(one), belongings(one, "bob")
    assert {what for what, row in before.items() if row.removed} == GONE
    assert {what for what, row in before.items() if not row.removed} == STAYS
    assert all(bool(row.until) != row.removed for row in before.values())
    assert (before["events of sinks"].count, before["dead letters"].count, before["events of sources"].count) == (1, 1, 2)
    assert one.run(one.client.forget(session="ann")) == 1
    after = belongings(one)
    assert {*after} == STAYS
    assert {what: row.count for what, row in after.items()} == {what: before[what].count for what in STAYS}
    assert belongings(one, "bob") == of_bob
    assert [letter.run for letter in one.letters()] == [others]
    later = Client(bus=sealed(one), app=APP)
    for run in (done, failed):  # what headers and the log say of it is still told
        told = one.run(later.run(run).tree())
        assert [call.node for call in told if call.kind == "call"] == ["ask"]
        assert CARD not in str([step.as_dict() for step in told])
    assert one.run(later.run(failed).info()).status in ("done", "failed")
    with pytest.raises(RunNotFound):
        one.run(later.run("c1").info())
    assert one.run(later.forget(session="ann")) == 0


def test_what_another_topology_reads_of_a_sink_stays_since_it_is_the_source_of_its_runs(lab: MakeLab) -> None:
    reads = Topology("reads")
    reads.source("out").sink("end")
    one, _ = ran(lab, asking(), reads)
    rows = {(row.what, row.where): row.count for row in rows_of(one) if row.what.startswith("events of s")}
    stream = subjects.stream(APP)
    assert (rows["events of sources", stream], rows["events of sinks", stream]) == (1, 1)


def test_an_engine_goes_on_behind_what_was_removed(lab: MakeLab) -> None:
    one, _ = ran(lab)
    one.run(one.client.forget(session="ann"))
    one.kill()
    one.start("b", bus=sealed(one), claim_check_above=400)
    one.publish("in", {"text": "after"}, session="carl")
    one.advance(90)
    assert [row for row in belongings(one, "carl") if row == "events of sinks"] == ["events of sinks"]
    assert len(one.messages("out")) == 1


def test_where_nothing_is_sealed_the_refusal_lists_what_there_is_and_nothing_is_removed(lab: MakeLab) -> None:
    one, _ = ran(lab, key=False)
    before = belongings(one)
    with pytest.raises(ConfigError, match="are stored in clear text") as e:
        one.run(one.client.forget(session="ann"))
    assert e.value.code == "DX125"
    stream, sources = subjects.stream(APP), subjects.sources(APP)
    listed: Iterable[str] = (f"2 events of sources in {sources} (what runs did", f"1 dead letters in {stream}")
    assert all(one in e.value.message for one in listed)
    assert belongings(one) == before
    assert "logs and events over hops are not told apart" in e.value.message  # entries hold requests, and frames many events
    apart = [subjects.log(APP, "*", "*", "*"), subjects.edge(APP, "*", "*", "*")]
    for name in (stream, sources):
        for message in one.messages(">", name):
            if CARD.encode() in message.data and not any(subjects.matches(one, message.subject) for one in apart):
                assert message.headers.get(subjects.SESSION) in ("ann", "bob"), message
