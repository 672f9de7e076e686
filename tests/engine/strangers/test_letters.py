"""Whoever may write dead letters, frames or markers can write anything there: what becomes of letters, theirs and others'."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from cli_bench import NATIVE, Project
from engine_lab import APP, Lab
from waiting import eventually

from dspex.bus import codecs, subjects
from dspex.bus.errors import DecodeError, DspexError, RunError, TopologyError
from dspex.bus.nats import connect
from dspex.bus.port import NewMessage
from dspex.bus.records import Letter, NodeEvent, Origin, StoredAt, pack_frame
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
EDGE = subjects.edge(APP, "repaired", "s1", 0)
DEAD = subjects.dead(APP, "repaired", "check")
NAN = float("nan")


def failed(make: MakeLab) -> Lab:
    """A lab with a dead letter whose event would now succeed."""
    broken = [True]

    def check(data: Any) -> Any:
        if broken:
            raise ValueError("not yet")
        return data

    topology = Topology("repaired")
    topology.source("in").map(check, name="check").sink("out")
    one = make(topology)
    one.start()
    one.publish("in", {"n": 1})
    broken.clear()
    return one


def letter(redrive: str = EDGE, *, time: float = 0.0, topology: str = "repaired", **changes: Any) -> Letter:
    event = NodeEvent("in", Origin("e", "in", "r", time=time), "application/json", b'{"n":2}')
    return Letter(topology, "check", event, redrive, {"type": "DataError", "message": "no"}, **changes)


UNREADABLE = {
    "bytes": b"\xffgarbage",
    "nothing": b"",
    "a map": b"\x81\xa1a\x01",
    "nested": b"\x91" * 900 + b"\xc0",
    "of another topology": letter(topology="other").pack(),
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_a_letter_that_cannot_be_read_is_shown_and_dropped_and_holds_up_no_other(lab: MakeLab, data: bytes) -> None:
    one = failed(lab)
    one.store(NewMessage(DEAD, data))
    mine, strange = one.letters()
    assert (mine.unreadable, strange.unreadable) == (False, True)
    assert (strange.topology, strange.node, strange.reason) == ("repaired", "check", "DecodeError")
    assert "cannot be read" in strange.message
    with pytest.raises(DecodeError):
        one.run(one.client.redrive([strange, mine]))
    one.advance(1)
    assert one.outputs("out") == [{"n": 1}]
    assert [d.sequence for d in one.letters()] == [strange.sequence]


@pytest.mark.parametrize("time", [1e30, -1e30, 1e300, NAN, float("inf"), float("-inf")])
def test_a_letter_of_any_time_can_be_read(lab: MakeLab, time: float) -> None:
    one = failed(lab)
    one.store(NewMessage(DEAD, letter(time=time).pack()))
    one.store(NewMessage(DEAD, replace(letter(), time=time).pack()))
    assert [d.unreadable for d in one.letters()] == [False] * 3


def test_a_letter_whose_table_has_a_shape_nested_without_end_is_shown_with_its_bytes(lab: MakeLab) -> None:
    pa, one = pytest.importorskip("pyarrow"), failed(lab)
    table = pa.table({"data": [1.0]}).replace_schema_metadata({b"dspex.dtype": b"<f8", b"dspex.shape": b"[" * 200_000})
    data = codecs.encode(table, "arrow")[0]
    event = NodeEvent("in", Origin("e", "in", "r"), codecs.ARROW, data)
    one.store(NewMessage(DEAD, replace(letter(), event=event).pack()))
    assert [d.event.data for d in one.letters()][1:] == [data]


@pytest.mark.parametrize(("time", "attempts"), [(1e30, 0), (NAN, 0), (0.0, 2**64 - 1), (0.0, -1)], ids=str)
def test_a_frame_of_no_time_or_endless_attempts_is_passed_over_and_makes_no_letter(
    lab: MakeLab, time: float, attempts: int
) -> None:
    one = failed(lab)
    event = NodeEvent("in", Origin("e", "in", "r", time=time), "application/json", b"garbage", attempts=attempts)
    one.store(NewMessage(EDGE, pack_frame([event])))
    one.publish("in", {"n": 3})
    one.advance(1)
    assert one.outputs("out") == [{"n": 3}]
    assert len(one.letters()) == 1


def test_an_event_behind_a_call_that_it_does_not_name_is_passed_over_and_not_redriven(lab: MakeLab) -> None:
    one = failed(lab)
    event = NodeEvent("in", Origin("e", "in", "r"), "application/json", b'{"n": 1}', outputs={"label": "a"})
    one.store(NewMessage(EDGE, codecs.msgpack_bytes([event])))
    one.store(NewMessage(DEAD, replace(letter(), event=event).pack()))
    forged = one.letters()[1:]
    with pytest.raises(DecodeError, match="without its id"):
        one.run(one.client.redrive(forged))
    one.advance(1)
    assert [d.sequence for d in one.letters()[1:]] == [d.sequence for d in forged]


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_an_event_of_any_year_that_there_is_can_be_redriven(lab: MakeLab, time: str) -> None:
    one = failed(lab)
    one.store(NewMessage("in", b"garbage", {subjects.TIME: time}))
    (_, odd) = one.letters()
    assert odd.event.time.isoformat() == time.replace("Z", "+00:00")
    assert one.run(one.client.redrive([odd])) == 1
    one.advance(1)
    assert [d.event.data for d in one.letters()][1:] == [b"garbage"]


def test_a_letter_of_an_operator_with_a_name_without_end_is_refused_with_its_begin(lab: MakeLab) -> None:
    one = failed(lab)
    forged = letter()
    one.store(NewMessage(DEAD, replace(forged, event=forged.event._replace(node="x" * 9000)).pack()))
    with pytest.raises(TopologyError) as caught:
        one.run(one.client.redrive(one.letters()[1:]))
    assert "has no operator xxx" in caught.value.message
    assert len(caught.value.message) < 500


FORGED = {
    "no subject": letter("x"),
    "nothing": letter(""),
    "a log": letter(subjects.log(APP, "repaired", "s1", 0)),
    "the subject of another stream": letter("in"),
    "another topology": letter(subjects.edge(APP, "other", "s1", 0)),
    "a partition that is not there": letter(subjects.edge(APP, "repaired", "s1", 1)),
    "a partition that is none": letter(subjects.edge(APP, "repaired", "s1", "00")),
    "all partitions": letter(subjects.edge(APP, "repaired", "s1", "*")),
    "what is stored in another stream": letter(stored=StoredAt("KV_" + APP, 1)),
    "what is stored in no stream": letter(stored=StoredAt("a.b c\r\n", 1)),
    "a subject without end": letter("x" * 9000),
    "a stream without end": letter(stored=StoredAt("x" * 9000, 1)),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_a_letter_is_redriven_to_a_partition_of_its_topology_or_not_at_all(lab: MakeLab, forged: Letter) -> None:
    one = failed(lab)
    one.store(NewMessage(DEAD, forged.pack()))
    mine, strange = one.letters()
    before = len(one.messages(">"))
    with pytest.raises(RunError) as e:
        one.run(one.client.redrive([strange]))
    assert e.value.code == "DX624"
    assert len(e.value.message) < 500
    assert len(one.messages(">")) == before
    with pytest.raises(DspexError):
        one.run(one.client.redrive([strange, mine]))
    one.advance(1)
    assert one.outputs("out") == [{"n": 1}]
    assert [d.sequence for d in one.letters()] == [strange.sequence]


@pytest.mark.parametrize("subject", [EDGE, "in.other", subjects.redriven(APP)])
def test_a_forged_marker_with_anything_behind_it_does_not_take_a_letter_away(lab: MakeLab, subject: str) -> None:
    one = failed(lab)
    (mine,) = one.letters()
    frame = pack_frame([NodeEvent("nowhere", Origin("e", "in", "r"), "application/json", b"1")])
    one.store(NewMessage(subjects.redriven(APP), orjson.dumps({"letter": mine.sequence})))
    if subject != "in.other":
        one.store(NewMessage(subject, frame, {subjects.LETTER: str(mine.sequence)}))
    assert one.run(one.client.redrive([mine])) == 1
    one.advance(1)
    assert one.outputs("out") == [{"n": 1}]


def test_a_marker_and_a_frame_elsewhere_in_one_batch_do_not_take_a_letter_away(lab: MakeLab) -> None:
    one = failed(lab)
    (mine,) = one.letters()
    marker = NewMessage(subjects.redriven(APP), orjson.dumps({"letter": mine.sequence}))
    other = NewMessage(subjects.edge(APP, "other", "s1", 0), b"x", {subjects.LETTER: str(mine.sequence)})
    one.run(one.client.bus.commit([marker, other]))
    assert one.run(one.client.redrive([mine])) == 1
    one.advance(1)
    assert one.outputs("out") == [{"n": 1}]


# -- on the real server, by the command line ------------------------------------------------------------------------------
def publish(url: str, *messages: NewMessage) -> None:
    async def go() -> None:
        bus = await connect(url)
        for message in messages:
            await bus.publish(message)
        await bus.close()

    asyncio.run(go())


def test_letters_of_strangers_break_no_verb(tmp_path: Path, unique: str, nats_url: str) -> None:
    project = Project(tmp_path, unique, 'topologies = ["native.yaml"]', NATS_URL=nats_url)
    project.write("native.yaml", NATIVE.format(u=unique))
    dead, deep = subjects.dead(unique, "native", "check"), "[" * 700 + "]" * 700
    with project.start("run", "--pools", "none") as run:
        run.until("ready")
        odd = replace(letter("x", topology="native"), time=1e30)
        publish(nats_url, NewMessage(dead, b"\xffgarbage"), NewMessage(dead, odd.pack()))
        publish(nats_url, NewMessage(f"{unique}.in", f'{{"text": {deep}}}'.encode()))
        letters = eventually(lambda: len(found := project.here("--json", "dlq", "ls").objects()) == 3 and found)
        garbage, forged, nested = [str(row["sequence"]) for row in letters]
        assert project.here("dlq", "ls").code == 0
        for sequence in (garbage, forged, nested):
            assert project.here("dlq", "show", sequence).code == 0
            assert project.here("--json", "dlq", "show", sequence).code == 0
        refused = project.here("--json", "dlq", "redrive", "--all")
        assert refused.error()["code"] == "DX501"
        assert project.here("--json", "dlq", "redrive", forged).error()["code"] == "DX624"
        assert project.here("dlq", "drop", garbage, forged).code == 0
        again = eventually(lambda: project.here("--json", "dlq", "ls").objects())  # it failed again
        assert [row["node"] for row in again] == ["check"]
        assert str(again[0]["sequence"]) != nested
