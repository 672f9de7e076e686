"""A record whose bytes are damaged where they lie is told as that: never as a difference, an open call, or another answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.errors import BusError, RecordingIncomplete
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.keys.hashes import is_damaged
from dspex.engine.again.repeat import repeat
from dspex.engine.cli.runs.drawing import drawn
from dspex.engine.client.following.many import histories
from dspex.engine.client.run import Run
from dspex.engine.graph.graph import Graph
from dspex.engine.log.entries import VERSION, is_damaged_entry, packed, plain, readable, sum_of_pieces, summed, was_read
from dspex.engine.replay.topology import Replayed, replayed_run
from dspex.engine.replay.topology import replayed as replayed_topology
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
RECORDS = subjects.record(APP, "*", "*", "*", "*")


def words() -> Topology:
    topology = Topology("words")
    topology.source("in").predict("text -> label", name="ask").sink("out")
    return topology


@pytest.fixture
def one(lab: MakeLab) -> Lab:
    found = lab(words())
    found.answers["ask"] = lambda inputs, work: {"label": str(inputs["text"]).upper()}
    found.start()
    return found


def ran(one: Lab) -> Run:
    one.work()
    run = one.client.run(one.publish("in", {"text": "good"}))
    one.advance(1)
    return run


def damage(one: Lab) -> None:
    """One bit of the answer in the only record."""
    (record,) = one.messages(RECORDS)
    assert record.data.count(b"GOOD") == 1
    stored = one.server.streams[STREAM].messages
    stored[record.sequence] = stored[record.sequence]._replace(data=record.data.replace(b"GOOD", b"FOOD"))


def replayed(one: Lab, run: Run, code: Topology | None = None) -> Replayed:
    async def go() -> Replayed:
        past, applied = await run.history()
        taken: dict[tuple[str, int], set[int]] = {}
        for commit in past.taken:
            taken.setdefault(commit.partition[1:], set()).add(commit.sequence)
        return await replayed_run(one.client.bus, APP, (code or words()).graph, applied["words"], {}, taken, {past.run})

    found: Replayed = one.run(go())
    return found


def test_a_damaged_record_of_a_run_is_named_by_whatever_needs_it(one: Lab, tmp_path: Path) -> None:
    run = ran(one)
    assert replayed(one, run).same
    damage(one)
    root = one.run(run.tree())
    assert any("ask#0  its record is damaged" in line for line in drawn(root, root.time))
    (step,) = root.below[0].attempts
    assert (step.ended, step.damaged, step.outputs, step.error) == (True, True, None, None)
    with pytest.raises(RecordingIncomplete, match=r"the record of ask#0 of run .* is damaged"):
        one.run(run.export(tmp_path / "run.jsonl"))
    with pytest.raises(RecordingIncomplete, match=f"the record of ask#0 of run {run.id} is damaged"):
        one.run(one.client.diff(run, run))
    with pytest.raises(RecordingIncomplete, match=f"of run {run.id}, is damaged"):
        replayed(one, run)


def removed(one: Lab) -> None:
    """The only record."""
    (record,) = one.messages(RECORDS)
    one.run(one.client.bus.delete(STREAM, record.sequence))


def test_a_record_that_was_removed_is_named_by_whatever_needs_it(one: Lab, tmp_path: Path) -> None:
    run = ran(one)
    removed(one)
    root = one.run(run.tree())
    assert any("ask#0  its record is missing" in line for line in drawn(root, root.time))
    (step,) = root.below[0].attempts
    assert (step.ended, step.missing, step.outputs, step.error) == (True, True, None, None)
    with pytest.raises(RecordingIncomplete, match=r"the record of ask#0 of run .* is missing"):
        one.run(run.export(tmp_path / "run.jsonl"))
    with pytest.raises(RecordingIncomplete, match=f"the record of ask#0 of run {run.id} is missing"):
        one.run(one.client.diff(run, run))
    with pytest.raises(RecordingIncomplete, match=r"of 1 records that the commit at .* took, 1 are missing"):
        replayed(one, run)
    file = one.run(run.file())
    with pytest.raises(RecordingIncomplete, match="the record of ask#0 is missing"):
        asyncio.run(repeat(None, file, [words().graph]))


def test_a_call_that_ended_without_a_record_misses_none(lab: MakeLab) -> None:
    topology = Topology("words")
    topology.source("in").predict("text -> label", name="ask", timeout="2s", deadline="5s").sink("out")
    found = lab(topology)
    found.start()
    run = found.client.run(found.publish("in", {"text": "good"}))
    found.advance(30)
    assert found.run(run.info()).status == "failed"
    (step,) = found.run(run.tree()).below[0].attempts
    assert not step.missing


def test_who_does_a_run_again_is_told_or_asks_again(one: Lab) -> None:
    run = ran(one)
    damage(one)
    file = one.run(run.file())
    with pytest.raises(RecordingIncomplete, match="the record of ask#0 is damaged"):
        asyncio.run(repeat(None, file, [words().graph]))

    async def made(pool: str, request: CallRequest) -> CallRecord:
        return CallRecord("", 0, 0, "", "", outputs={"label": "AGAIN"})

    found = asyncio.run(repeat(None, file, [words().graph], mode="hybrid", make=made))
    assert (found.served, found.called, [event.data["label"] for event in found.file.outputs]) == (0, 1, ["AGAIN"])


def test_a_record_that_is_damaged_before_it_is_taken_gives_no_answer(one: Lab) -> None:
    """The engine is not there when the worker answers, and nobody has the answer any more."""
    one.publish("in", {"text": "good"})
    one.advance(1)
    one.kill()
    one.work()
    one.advance(1)
    damage(one)
    one.start()
    one.advance(5)
    assert one.outputs("out") == []
    assert [(letter.code, letter.node) for letter in one.letters()] == [("DX511", "ask")]
    assert one.differences() == []
    one.run(one.client.redrive(one.letters()))
    one.advance(5)
    assert [output["label"] for output in one.outputs("out")] == ["GOOD"]


def test_a_record_of_before_there_were_hashes_is_taken_as_it_is(one: Lab) -> None:
    one.publish("in", {"text": "good"})
    one.advance(1)
    (request,) = one.requests()
    one.store(one.result(request))
    one.advance(1)
    assert not any(subjects.HASH in message.headers for message in one.messages(RECORDS))
    assert [output["label"] for output in one.outputs("out")] == ["GOOD"]


def kinds() -> Topology:
    """What is stored of each kind by its commits: requests beside a hop, frames, outputs, large ones too, and letters."""
    topology = Topology("words")
    source = topology.source("in")
    source.predict("text -> label", name="ask").sink("out")
    source.map(lambda d: {"long": d["text"] * 100_000}, name="repeat").sink("large")
    source.key_by("text").validate({"type": "object", "required": ["more"]}, name="refuse").sink("never")
    return topology


def told_as_damage(one: Lab, run: Run, at: int, graph: Graph, tmp_path: Path) -> None:
    """What was committed at `at` is told as damaged by whatever reads the run whole."""
    where = rf"of run {run.id}, what was committed at {at} is damaged"
    with pytest.raises(RecordingIncomplete, match=where):
        one.run(run.export(tmp_path / "run.jsonl"))
    with pytest.raises(RecordingIncomplete, match=where):
        one.run(one.client.diff(run, run))
    file = one.run(run.file())
    with pytest.raises(RecordingIncomplete, match=where):
        asyncio.run(repeat(None, file, [graph]))


@pytest.mark.parametrize(
    ("subject", "was"),
    [
        ("out", b"GOOD"),
        ("large", b"good"),
        (f"dspex.{APP}.work.>", b"good"),
        (subjects.edge(APP, "*", "*", "*"), b"good"),
        (subjects.dead_pattern(APP), b"good"),
    ],
    ids=["output", "large output", "request", "frame", "letter"],
)
def test_what_a_commit_stored_and_is_changed_is_told_as_that(lab: MakeLab, tmp_path: Path, subject: str, was: bytes) -> None:
    """Whoever may write to the server's disk can change it so that the server does not notice."""
    one = lab(kinds())
    one.answers["ask"] = lambda inputs, work: {"label": str(inputs["text"]).upper()}
    one.start()
    run = ran(one)
    root = one.run(run.tree())
    assert root.changed == ()
    stored = one.server.streams[STREAM].messages
    message = stored[one.messages(subject)[0].sequence]
    data = message.data.replace(was, b"food") if message.data else b""
    headers = message.headers if message.data else {**message.headers, subjects.RUN: message.headers[subjects.RUN][:-1] + "9"}
    stored[message.sequence] = message._replace(data=data, headers=headers)
    root = one.run(run.tree())
    assert len(root.changed) == 1
    assert root.as_dict()["changed"] == [*root.changed]
    told_as_damage(one, run, root.changed[0], kinds().graph, tmp_path)


def test_a_replay_of_logs_tells_damage_from_a_difference(one: Lab) -> None:
    run = ran(one)
    (out,) = one.messages("out")
    stored = one.server.streams[STREAM].messages
    stored[out.sequence] = out._replace(data=out.data.replace(b"GOOD", b"FOOD"))
    assert replayed(one, run).same, "the log says what was stored, and it is what comes again"

    def changed() -> Topology:
        topology = Topology("words")
        topology.source("in").predict("text -> label", name="ask").filter("label == 'x'", name="none").sink("out")
        return topology

    with pytest.raises(RecordingIncomplete, match=r"what was committed at \d+ is damaged"):
        replayed(one, run, changed())


def test_an_event_with_a_strangers_hash_is_an_event(one: Lab) -> None:
    one.work()
    one.store(NewMessage("in", b'{"text": "good"}', {subjects.HASH: "0" * 32}))
    one.advance(1)
    (event,) = one.messages("in")
    assert not is_damaged(event)
    assert [output["label"] for output in one.outputs("out")] == ["GOOD"]


def flipped(one: Lab, stream: str, sequence: int, at: int) -> None:
    """Another bit of a byte of what is stored."""
    stored = one.server.streams[stream].messages
    data = bytearray(stored[sequence].data)
    data[at] ^= 1
    stored[sequence] = stored[sequence]._replace(data=bytes(data))


@pytest.mark.parametrize("place", ["event", "begin of an entry", "middle of an entry", "end of an entry", "sum of an entry"])
def test_a_changed_byte_of_what_a_run_began_with_or_of_its_log_is_damage_and_no_difference(
    one: Lab, tmp_path: Path, place: str
) -> None:
    run = ran(one)
    entries = [m for m in one.messages(subjects.log(APP, "*", "*", "*")) if b"taken" in m.data]
    (event,) = one.messages("in")
    at = {"begin": 0, "middle": len(entries[0].data) // 2, "end": -5, "sum": -1}.get(
        place.split()[0], event.data.index(b"good")
    )
    stream = next(name for name, kept in one.server.streams.items() if event in kept.messages.values())
    flipped(one, *((stream, event.sequence) if place == "event" else (STREAM, entries[0].sequence)), at)
    root = one.run(run.tree())
    assert root.changed == (entries[0].sequence,)
    told_as_damage(one, run, root.changed[0], words().graph, tmp_path)

    async def whole() -> Replayed:
        applied = (await one.client.manifests())["words"]
        return await replayed_topology(one.client.bus, APP, words().graph, applied, {})

    (error,) = one.run(whole()).incomplete.values()
    assert re.search(r"(the event at \d+ of .*|the log entry at \d+) is damaged", error.message)


def test_many_runs_are_told_which_of_them_is_damaged(one: Lab) -> None:
    one.work()
    runs = [one.client.run(one.publish("in", {"text": text})) for text in ("good", "bad")]
    one.advance(1)
    event = one.messages("in")[1]
    stream = next(name for name, kept in one.server.streams.items() if event in kept.messages.values())
    flipped(one, stream, event.sequence, event.data.index(b"bad"))

    async def read() -> list[bool]:
        past = await histories(one.client.bus, APP, await one.client.manifests(), [run.id for run in runs])
        return [bool(past[run.id].changed) for run in runs]

    assert one.run(read()) == [False, True]


def test_an_entry_of_before_there_were_sums_is_taken_as_it_is() -> None:
    entry = {"v": VERSION, "kind": "commit", "time": 0, "base": 0, "older": 0, "claim": 1, "after": 1, "covers": 0}
    old = packed({**entry, "digest": b"", "taken": [], "tables": {}})
    assert readable(old) is not None
    assert not is_damaged_entry(old)
    assert was_read(readable(old) or {}, 1, b"any")


@pytest.mark.parametrize("later", ["a row with one more field", "another table", "another format"])
def test_what_a_later_version_has_written_is_told_as_that_and_is_not_guessed(one: Lab, later: str) -> None:
    run = ran(one)
    message = next(m for m in one.messages(subjects.log(APP, "*", "*", "*")) if b"taken" in m.data)
    entry = dict(readable(message.data) or {})
    if later == "another format":
        entry["v"] = VERSION + 1
    elif later == "another table":
        entry["tables"] = {**entry["tables"], "later": ()}
    else:
        rows = [(number, (*row, "later")) for number, row in entry["tables"]["calls"]]
        entry["tables"] = {**entry["tables"], "calls": tuple(rows)}
    stored = one.server.streams[STREAM].messages
    stored[message.sequence] = message._replace(data=summed(entry))
    for what in (run.tree, run.file, run.info):
        with pytest.raises(BusError, match="written by a newer version of dspex") as e:
            one.run(what())
        assert e.value.code == "DX411"

    async def whole() -> Replayed:
        applied = (await one.client.manifests())["words"]
        return await replayed_topology(one.client.bus, APP, words().graph, applied, {})

    with pytest.raises(BusError, match="written by a newer version of dspex"):
        one.run(whole())


def large(data: dict[str, str]) -> dict[str, str]:
    return {"kind": "k", "text": data["text"] * 4000}


def in_pieces() -> Topology:
    """What its partitions keep is too much for an entry."""
    topology = Topology("words")
    topology.source("in").map(large, name="large").key_by("kind", name="by").debounce("5s", name="calm").sink("out")
    return topology


@pytest.fixture
def apart(lab: MakeLab) -> tuple[Lab, Run]:
    """A run of which an entry has its changes in pieces."""
    found = lab(in_pieces(), max_payload=20_000)
    found.start()
    run = found.client.run(found.publish("in", {"text": "good "}))
    found.advance(10)
    return found, run


def replayed_all(one: Lab) -> Replayed:
    async def whole() -> Replayed:
        applied = (await one.client.manifests())["words"]
        return await replayed_topology(one.client.bus, APP, in_pieces().graph, applied, {})

    found: Replayed = one.run(whole())
    return found


def test_a_damaged_piece_of_an_entry_is_told_as_damage_also_where_it_still_reads_well(apart: tuple[Lab, Run]) -> None:
    one, run = apart
    assert (one.run(run.tree()).changed, replayed_all(one).same) == ((), True)
    piece = next(m for m in one.messages(subjects.pieces(APP, "words", "*", "*")) if b"good good" in m.data)
    flipped(one, STREAM, piece.sequence, piece.data.index(b"good good"))
    entry = next(m for m in one.messages(subjects.log(APP, "words", "*", "*")) if m.sequence > piece.sequence)
    assert one.run(run.tree()).changed == (entry.sequence,)
    past = one.run(histories(one.client.bus, APP, one.run(one.client.manifests()), [run.id]))
    assert past[run.id].changed == [entry.sequence]
    (error,) = replayed_all(one).incomplete.values()
    assert f"the log entry at {entry.sequence} is damaged: its pieces" in error.message


def test_pieces_that_a_later_version_has_written_are_told_as_that(apart: tuple[Lab, Run]) -> None:
    one, run = apart
    message = next(m for m in one.messages(subjects.log(APP, "words", "*", "*")) if "pieces" in (readable(m.data) or {}))
    entry, stored = dict(readable(message.data) or {}), one.server.streams[STREAM].messages
    first = message.sequence - entry["covers"]
    parts = range(first, first + entry["pieces"])
    whole = packed({**plain(b"".join(stored[at].data for at in parts)), "later": ()})
    for n, at in enumerate(parts):
        stored[at] = stored[at]._replace(data=whole[n * 10_000 : (n + 1) * 10_000])
    stored[message.sequence] = message._replace(data=summed({**entry, "whole": sum_of_pieces(whole)}))
    with pytest.raises(BusError, match=f"newer version of dspex.* entry at {message.sequence}"):
        one.run(run.tree())
