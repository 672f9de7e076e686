"""Housekeeping: what is over goes after its retention; what is needed, sinks and dead letters never do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import codecs, subjects
from dspex.bus.errors import ProgramError, RateLimited, SessionEnded
from dspex.bus.port import NewMessage, StreamConfig
from dspex.engine.graph import manifest
from dspex.engine.hosting.membership import FORGOTTEN
from dspex.engine.log import commit_log, housekeeping
from dspex.engine.log.entries import LogAddress, Snapshot, bases, packed, unpack
from dspex.engine.log.reading import restored
from dspex.engine.log.tables import Tables
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
KEEP = 30.0  # seconds of retention
SWEEP_EVERY = 60.0  # seconds; 600 in earnest
LATER = 130.0  # seconds after which two sweeps have gone over what is past it
SNAPSHOT_AFTER = 4_000  # bytes of entries, about 16 of them; 64 KiB in earnest
MANY = 48


@pytest.fixture(autouse=True)
def _frequent_snapshots_and_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes before a snapshot stands behind it: with frequent ones a few events show what thousands would."""
    monkeypatch.setattr(housekeeping, "EVERY", SWEEP_EVERY)
    monkeypatch.setattr(commit_log, "LEAST", SNAPSHOT_AFTER)


def kept(name: str = "kept", source: str = "in", **options: Any) -> Topology:
    topology = Topology(name, retention="30s")
    topology.source(source).predict("text -> answer", name="ask", deadline="30d", **options).sink(f"out.{name}")
    return topology


def busy(one: Lab, count: int = MANY, source: str = "in") -> None:
    for n in range(count):
        one.publish(source, {"text": str(n)}, key="k")


def counts(one: Lab, name: str = "kept") -> dict[str, int]:
    return {
        "log": len(one.messages(subjects.log(APP, name, "s1", 0))),
        "records": len(one.messages(subjects.record(APP, "*", name, "s1", 0))),
        "work": len(one.messages(subjects.work_of(APP, name))),
        "source": len(one.messages("in")),
        "out": len(one.messages(f"out.{name}")),
    }


def test_nothing_is_removed_before_its_retention(lab: MakeLab) -> None:
    one = lab(kept())
    one.start(records=KEEP)
    one.work()
    busy(one)
    before = counts(one)
    one.advance(KEEP - 10)
    assert counts(one) == before


def test_finished_events_are_removed_after_their_retention_and_sinks_and_dead_letters_stay(lab: MakeLab) -> None:
    one = lab(kept())

    def answer(inputs: Any, work: Any) -> Any:
        if inputs["text"] == "7":
            raise ProgramError("no")
        return {"answer": "yes"}

    one.answers["ask"] = answer
    one.start(records=KEEP)
    one.work()
    busy(one)
    one.advance(LATER)
    after = counts(one)
    assert after["out"] == MANY - 1
    assert len(one.letters()) == 1
    assert after["log"] < MANY
    assert after["source"] < MANY
    assert after["work"] < MANY
    assert after["records"] < MANY
    one.kill()
    one.start(records=KEEP)
    busy(one, 10)
    one.advance(1)
    assert len(one.outputs("out.kept")) == MANY - 1 + 9
    assert one.run(one.client.redrive(one.letters())) == 2


def test_records_of_calls_are_kept_longer_than_events_where_that_is_set(lab: MakeLab) -> None:
    one = lab(kept())
    one.start(records=24 * KEEP)
    one.work()
    busy(one)
    one.advance(LATER)
    after = counts(one)
    assert after["records"] == MANY
    assert after["work"] < MANY


def test_open_calls_held_results_and_waiting_events_are_kept_however_old(lab: MakeLab) -> None:
    one = lab(kept(order="key"))

    def answer(inputs: Any, work: Any) -> Any:
        if inputs["text"] == "0" and work.try_number == 1:
            raise RateLimited("come back later", retry_after=200.0)
        return {"answer": "yes"}

    one.answers["ask"] = answer
    one.start(records=KEEP)
    one.work()
    busy(one, MANY)  # the first waits for long, all others for the first
    one.advance(LATER)
    one.kill()
    one.start(records=KEEP)
    assert one.outputs("out.kept") == []
    one.advance(LATER)
    assert [o["text"] for o in one.outputs("out.kept")] == [str(n) for n in range(MANY)]


def test_work_that_no_worker_has_taken_is_kept(lab: MakeLab) -> None:
    one = lab(kept())
    one.start(records=KEEP)
    busy(one, MANY)
    one.advance(LATER)
    one.work()
    one.advance(10)
    assert len(one.outputs("out.kept")) == MANY


def test_a_source_stays_while_another_topology_has_not_read_it(lab: MakeLab) -> None:
    one = lab()
    slow = kept("slow")
    one.start("slow", slow)
    one.drain("slow")
    one.start("quick", kept("quick"), records=KEEP)
    one.work()
    busy(one)
    one.advance(LATER)
    assert len(one.messages("in")) == MANY
    one.start("slow", slow)
    one.advance(30)
    assert len(one.outputs("out.slow")) == MANY


def test_a_source_that_is_somebodys_sink_and_a_stream_of_others_are_left_alone(lab: MakeLab) -> None:
    first = Topology("first", retention="30s")
    first.source("in").sink("middle")
    second = Topology("second", retention="30s")
    second.source("middle").sink("out")
    one = lab(first, second)
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    one.start(records=KEEP)
    for n in range(MANY):
        one.publish("in", {"n": n})
    one.advance(LATER)
    assert len(one.messages("in", "EVENTS")) == MANY
    assert len(one.messages("middle")) == MANY
    assert len(one.messages("out")) == MANY
    log = len(one.messages(subjects.log(APP, "first", "s1", 0)))
    assert log < MANY


def test_an_event_that_a_dead_letter_points_at_is_kept(lab: MakeLab) -> None:
    topology = Topology("pointing", retention="30s")
    topology.source("in").map(lambda d: {"n": len(d["text"]) // d["by"]}, name="divide").sink("out")
    one = lab(topology, max_payload=64_000)
    one.start(records=KEEP)
    one.publish("in", {"text": "x" * 63_900, "by": 0})
    for _ in range(MANY):
        one.publish("in", {"text": "x", "by": 1})
    one.advance(LATER)
    (letter,) = one.letters()
    assert one.run(one.client.redrive([letter])) == 1
    one.advance(1)
    (letter,) = one.letters()
    assert letter.attempts == 2


@pytest.mark.long
def test_an_entry_that_is_kept_keeps_the_pieces_of_its_changes(lab: MakeLab) -> None:
    topology = Topology("kept", retention="30s")
    asking = topology.source("in").flat_map(lambda d: [{"text": str(n)} for n in range(60)], name="many")
    asking.predict("text -> answer", name="ask", deadline="30d").sink("out.kept")
    one = lab(topology, max_payload=8192)
    one.start(records=KEEP)
    one.work()
    for _ in range(20):
        one.publish("in", {})
        one.advance(1)
    written = one.messages(subjects.pieces(APP, "kept", "s1", 0))
    one.advance(LATER)
    left = one.messages(subjects.pieces(APP, "kept", "s1", 0))
    assert 0 < len(left) < len(written)
    entries = {m.sequence: unpack(m.data) for m in one.messages(subjects.log(APP, "kept", "s1", 0))}
    wanted = [at - e["covers"] + n for at, e in entries.items() if e.get("pieces") for n in range(e["pieces"])]
    assert [m.sequence for m in left] == wanted


def test_only_the_engine_with_the_first_partition_does_housekeeping(lab: MakeLab) -> None:
    topology = Topology("kept", retention="30s")
    topology.source("in", partitions=2).sink("out.kept")
    one = lab(topology)
    hosts = [one.start("a"), one.start("b")]
    one.advance(20)
    assert sorted(len(h._first_of()) for h in hosts) == [0, 1]
    assert STREAM in one.server.streams


def whole(one: Lab, name: str = "kept") -> list[bool]:
    """Of each snapshot that an entry names which is still there: whether all of its messages are."""
    found = [unpack(m.data).get("snapshot") for m in one.messages(subjects.log(APP, name, "s1", 0))]
    address = LogAddress.of(APP, name, "s1", 0)
    return [one.run(restored(one.client.bus, address, Snapshot(*named), Tables())) for named in found if named]


def test_the_older_of_two_snapshots_stays_whole_while_it_is_named(lab: MakeLab) -> None:
    one = lab(kept())
    one.start(records=KEEP)
    one.work()
    busy(one)
    one.advance(LATER)
    last = one.messages(subjects.log(APP, "kept", "s1", 0))[-1]
    base, older = bases(last.sequence, unpack(last.data))
    assert base > older > 0
    assert whole(one) == [True, True]
    one.kill()
    message = one.server.streams[STREAM].messages[base]  # and it is what recovery falls back to
    entry = dict(unpack(message.data))
    entry["snapshot"] = (*entry["snapshot"][:3], b"damaged", entry["snapshot"][4])
    one.server.streams[STREAM].messages[base] = message._replace(data=packed(entry))
    one.start(records=KEEP)
    busy(one, 5)
    one.advance(5)
    assert len(one.outputs("out.kept")) == MANY + 5


def test_the_last_snapshot_before_the_retention_stays_with_all_that_a_replay_from_it_reads(lab: MakeLab) -> None:
    one = lab(kept())
    one.start(records=KEEP)
    one.work()
    busy(one)
    one.advance(LATER)
    for _ in range(3):  # much more than two snapshots, all within the retention
        busy(one)
    one.advance(1)

    async def swept() -> float:
        bus = one.client.bus
        applied = await manifest.of_application(bus, APP)
        now = one.server.now
        await housekeeping.sweep(bus, APP, "kept", applied, records=KEEP, now=now)
        return now - KEEP

    horizon = one.run(swept())
    log = one.messages(subjects.log(APP, "kept", "s1", 0))
    named = [m for m in log if "snapshot" in unpack(m.data)]
    old = [m for m in named if m.time < horizon]
    assert len(named) > 3
    assert old
    at = unpack(old[-1].data)["snapshot"][0]
    assert whole(one)[len(old) - 1]
    assert log[0].sequence <= at < log[-1].sequence
    tables, address = Tables(), LogAddress.of(APP, "kept", "s1", 0)
    one.run(restored(one.client.bus, address, Snapshot(*unpack(old[-1].data)["snapshot"]), tables))
    events = [m.sequence for m in one.messages("in")]
    position = tables.position("source").sequence
    assert len([sequence for sequence in events if sequence > position]) >= 3 * MANY


@pytest.mark.parametrize("had_an_event", [False, True])
def test_what_was_emitted_stays_when_an_engine_starts_whose_other_partitions_stood_still(
    lab: MakeLab, had_an_event: bool
) -> None:
    one = lab(kept(), kept("idle", "other"))
    one.answers["ask"] = lambda inputs, work: {"answer": "yes"} if int(inputs["text"]) % 7 else _refused()
    one.start(records=KEEP)
    one.work()
    if had_an_event:
        busy(one, 1, "other")
    busy(one)
    one.advance(LATER)
    busy(one)
    one.advance(LATER)
    before, letters = counts(one), len(one.letters())
    assert before["log"] < MANY  # entries are removed, and what they covered is not
    one.kill()
    one.start(records=KEEP)
    one.advance(1)
    assert (counts(one)["out"], len(one.letters())) == (before["out"], letters)


def _refused() -> Any:
    raise ProgramError("no")


@pytest.mark.long
def test_statements_of_engines_that_are_gone_go_once_others_have_said_as_much(lab: MakeLab) -> None:
    topology = Topology("kept", retention="30s")
    topology.source("in").key_by("k").window("10s").count(name="windows").sink("out.kept")
    one = lab(topology)
    pattern = subjects.time(APP, "kept", "s1", "*")
    for name in ("a", "b", "c"):
        one.start(name, records=KEEP)
        one.publish("in", {"k": "x"})
        one.advance(20)
        one.kill(name)
    one.store(NewMessage(subjects.time(APP, "kept", "s1", "stranger"), b"\xc1"))
    assert {m.subject.rpartition(".")[2] for m in one.messages(pattern)} == {"a", "b", "c", "stranger"}
    one.start("d", records=KEEP)
    one.publish("in", {"k": "x"})
    one.advance(FORGOTTEN + LATER)
    assert {m.subject.rpartition(".")[2] for m in one.messages(pattern)} == {"d"}
    assert len(one.messages(pattern)) < 2 * SWEEP_EVERY


def test_a_statement_of_an_engine_that_is_gone_stays_while_nobody_else_has_said_as_much(lab: MakeLab) -> None:
    """Who begins to read would know less than those before, and take a source that it had heard of for a new one."""
    topology = Topology("kept", retention="30s")
    topology.source("in").key_by("k").window("10s").count(name="windows").sink("out.kept")
    one = lab(topology)
    pattern = subjects.time(APP, "kept", "s1", "*")

    async def swept() -> None:
        applied = await manifest.of_application(one.client.bus, APP)
        await housekeeping.sweep(one.client.bus, APP, "kept", applied, records=KEEP, now=one.server.now)

    one.start("a", records=KEEP)
    one.publish("in", {"k": "x"})
    one.advance(1)
    ahead = one.messages("in")[0].time + 20.0
    one.store(NewMessage(subjects.time(APP, "kept", "s1", "gone"), codecs.encode({0: ahead}, "msgpack")[0]))
    for passed, left in ((1, {"a", "gone"}), (120, {"a"})):
        one.advance(passed)
        one.run(swept())
        assert {m.subject.rpartition(".")[2] for m in one.messages(pattern)} == left


def test_decisions_that_were_taken_go_after_the_retention_and_others_stay(lab: MakeLab) -> None:
    topology = Topology("kept", retention="30s")
    topology.source("in").approve(name="ok").sink("out.kept")
    one = lab(topology)
    one.start(records=KEEP)

    async def decided() -> None:
        for a in [a async for a in one.client.approvals()]:
            await one.client.decide(a, "accept")

    for _ in range(MANY // 4):
        for _ in range(4):
            one.publish("in", {"filler": "x" * 50})
        one.advance(1)
        one.run(decided())
        one.advance(1)
    decisions = subjects.decision(APP, "kept", "*", "*")
    assert len(one.messages(decisions)) == MANY
    one.advance(LATER)
    one.publish("in", {})
    one.advance(1)
    one.run(decided())
    assert 0 < len(one.messages(decisions)) < MANY
    assert len(one.outputs("out.kept")) == MANY + 1


def test_decisions_that_nobody_reads_are_removed_after_the_retention(lab: MakeLab) -> None:
    one = lab(kept())
    one.start(records=KEEP)
    decisions = subjects.decision(APP, "kept", "s1", 0)
    one.store(NewMessage(decisions, b"{}"))
    one.advance(KEEP / 2)
    assert len(one.messages(decisions)) == 1
    one.advance(LATER)
    assert one.messages(decisions) == []


def test_sessions_that_are_over_are_removed_once_nobody_has_to_be_told(lab: MakeLab) -> None:
    one = lab(kept())
    one.start()
    for id, ttl in (("short", "100s"), ("long", "1h")):
        one.run(one.client.session(id, ttl=ttl).save({"n": 1}, 0))
    one.advance(150)  # it has ended, and that is still to be told
    with pytest.raises(SessionEnded):
        one.run(one.client.session("short").load())
    one.advance(120)
    assert one.run(one.client.session("short").load()) == ({}, 0)
    assert one.run(one.client.session("long").load()) == ({"n": 1}, 1)
