"""Runs that are in no log: an exported run is imported, here or elsewhere, and found as those in the logs are."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from engine_lab import APP, Lab
from sealed_app import CARD, Sealed, count, letters, of
from waiting import until

from dspex.bus import subjects
from dspex.bus.errors import (
    ConfigError,
    DecodeError,
    NotAllowed,
    RecordingIncomplete,
    RunError,
    RunFailed,
    RunNotFound,
)
from dspex.engine.cli.runs.drawing import drawn
from dspex.engine.client.following.progress import RunInfo
from dspex.engine.client.run import Run
from dspex.engine.client.runs.export import load
from dspex.engine.client.runs.tree import FORGOTTEN
from dspex.engine.log.housekeeping import forget_kept
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def words() -> Topology:
    topology = Topology("words")
    topology.source("in").predict("text -> label", name="ask").sink("out")
    return topology


def working(lab: MakeLab) -> Lab:
    one = lab(words())
    one.answers["ask"] = lambda inputs, work: {"label": str(inputs["text"]).upper()}
    one.start()
    one.work()
    return one


def exported(one: Lab, path: Path, text: str = "a", **options: Any) -> Run:
    run = one.client.run(one.publish("in", {"text": text}, **options))
    one.advance(1)
    one.run(run.export(path))
    return run


def test_of_two_runs_whose_ids_end_alike_none_is_taken_for_the_other(lab: MakeLab, tmp_path: Path) -> None:
    here, elsewhere = working(lab), working(lab)
    elsewhere.advance(60)  # the same place, at another time
    mine, other = (exported(one, tmp_path / f"{number}.jsonl") for number, one in enumerate((here, elsewhere)))
    assert (mine.id[-8:], mine.id == other.id) == (other.id[-8:], False)
    here.run(here.client.import_run(tmp_path / "1.jsonl"))
    with pytest.raises(RunNotFound, match="2 runs end with") as e:
        here.run(here.client.run(mine.id[-8:]).info())
    assert (mine.id in e.value.fix, other.id in e.value.fix) == (True, True)
    assert {here.run(here.client.run(run.id).info()).id for run in (mine, other)} == {mine.id, other.id}
    said = [*here.run(here.client.diff(mine, other)).lines()]
    assert (mine.id in said[0], other.id in said[1]) == (True, True)


def listed(one: Lab, **options: Any) -> list[RunInfo]:
    async def go() -> list[RunInfo]:
        return [info async for info in one.client.runs(**options)]

    return list(one.run(go()))


def without_hashes(text: str) -> str:
    """As files of before were written."""
    return re.sub(r',"hash":"[0-9a-f]{32}"}$', "}", text, flags=re.MULTILINE).replace(',"lines":4', "")


def test_an_imported_run_is_found_as_others_are(lab: MakeLab, tmp_path: Path) -> None:
    """Where nothing of it has run."""
    file, again = tmp_path / "run.jsonl", tmp_path / "again.jsonl"
    there = working(lab)
    run = exported(there, file, key="k", session="s")
    here = working(lab)
    here.advance(5)
    mine = here.client.run(here.publish("in", {"text": "mine"}))
    here.advance(1)
    found = here.run(here.client.import_run(file))
    info = here.run(found.info())
    assert (info.id, info.status, info.kept, info.calls) == (run.id, "done", "imported", 1)
    assert here.run(found.wait()) == info
    assert {one.id: one.kept for one in listed(here)} == {mine.id: "", run.id: "imported"}
    assert [one.id for one in listed(here, topology="words", limit=1)] == [mine.id]
    assert here.run(here.client.run(run.id[4:]).info()) == info
    assert here.run(here.client.run("@last-1").info()) == info
    assert here.run(found.tree()) == there.run(run.tree())
    assert [(event.subject, event.data, event.run) for event in here.run(found.outputs())] == [
        ("out", {"text": "a", "label": "A"}, run.id)
    ]

    async def steps(of: Run) -> list[Any]:
        return [step async for step in of.steps(follow=True)]

    assert here.run(steps(found)) == there.run(steps(run))
    here.run(found.export(again))
    assert again.read_bytes() == file.read_bytes()
    diff = here.run(here.client.diff(run.id, mine.id))
    assert {(step.step, step.field) for step in diff.steps} >= {("ask#0", "in.text"), ("out#0", "label")}


def test_a_run_with_dead_letters_is_one_that_failed_wherever_it_is(lab: MakeLab, tmp_path: Path) -> None:
    there = working(lab)
    there.answers["ask"] = lambda inputs, work: {"label": 1 / 0}
    run = there.client.run(there.publish("in", {"text": "a"}))
    there.advance(60)
    there.run(run.export(tmp_path / "run.jsonl"))
    here = working(lab)
    found = here.run(here.client.import_run(tmp_path / "run.jsonl"))
    with pytest.raises(RunFailed, match="1 dead letter"):
        here.run(found.wait())
    assert [info.id for info in listed(here, status="failed")] == [run.id]


def test_a_file_that_was_changed_is_refused_with_its_line(lab: MakeLab, tmp_path: Path) -> None:
    one, file, bad = working(lab), tmp_path / "run.jsonl", tmp_path / "bad.jsonl"
    exported(one, file)
    text = file.read_text()
    rows = text.splitlines(keepends=True)
    assert len(rows) == 4
    changed = {
        "line 3: .*was changed": text.replace('"label":"A"', '"label":"B"', 1),
        "line 2: .*was changed": text.replace('"text":"a"', '"text":"b"', 1),
        "line 3: .*a line before it is missing": "".join([*rows[:2], rows[3]]),
        "of 4 lines it has 3": "".join(rows[:3]),
        "line 1: .*was changed": text.replace('"status":"done"', '"status":"lost"'),
        "line 4: .*was changed": "".join([*rows[:3], without_hashes(rows[3])]),
    }
    for why, damaged in changed.items():
        assert damaged != text
        bad.write_text(damaged)
        with pytest.raises(DecodeError, match=why):
            one.run(one.client.import_run(bad))
    for nothing in (bad.parent / "none.jsonl", bad.parent):
        with pytest.raises(DecodeError, match="cannot be read"):
            one.run(one.client.import_run(nothing))


def test_whatever_byte_at_the_end_of_a_line_is_another_one_the_file_is_refused(lab: MakeLab, tmp_path: Path) -> None:
    file, bad = tmp_path / "run.jsonl", tmp_path / "bad.jsonl"
    exported(working(lab), file)
    first, second, rest = file.read_bytes().split(b"\n", 2)
    assert load(file)
    for at in range(1, 50):  # its hash, and what stands around that
        other = bytearray(second)
        other[-at] ^= 1
        bad.write_bytes(b"\n".join((first, other, rest)))
        with pytest.raises(DecodeError, match=r"line 2: .*was changed"):
            load(bad)


def test_a_file_of_before_there_were_hashes_is_taken(lab: MakeLab, tmp_path: Path) -> None:
    there, file = working(lab), tmp_path / "run.jsonl"
    run = exported(there, file)
    file.write_text(without_hashes(file.read_text()))
    assert '"hash":' not in file.read_text()
    here = working(lab)
    assert here.run(here.client.import_run(file)).id == run.id


def test_another_run_with_its_id_is_refused_and_the_same_is_nothing_new(lab: MakeLab, tmp_path: Path) -> None:
    one, file, other = working(lab), tmp_path / "run.jsonl", tmp_path / "other.jsonl"
    run = exported(one, file)
    other.write_text(without_hashes(file.read_text()).replace('"label":"A"', '"label":"B"'))
    with pytest.raises(RunError, match=f"another run {run.id} here") as refused:
        one.run(one.client.import_run(other))  # of one that the logs have
    assert refused.value.code == "DX628"
    here = working(lab)
    for _ in range(2):
        here.run(here.client.import_run(file))
    with pytest.raises(RunError, match=f"another run {run.id} here"):
        here.run(here.client.import_run(other))
    assert [info.id for info in listed(here)] == [run.id]
    assert here.run(here.client.run(run.id).tree()).below[0].attempts[0].outputs == {"label": "A"}


def test_a_run_of_the_logs_can_be_kept_beyond_them(lab: MakeLab, tmp_path: Path) -> None:
    one = working(lab)
    run = exported(one, tmp_path / "run.jsonl")
    one.run(one.client.import_run(tmp_path / "run.jsonl"))
    assert [(info.id, info.kept) for info in listed(one)] == [(run.id, "imported")]


def test_a_large_run_lies_in_pieces_and_what_is_damaged_is_told(lab: MakeLab, tmp_path: Path) -> None:
    there, file = working(lab), tmp_path / "run.jsonl"
    run = exported(there, file, "x" * 700_000)
    here = working(lab)
    found = here.run(here.client.import_run(file))
    assert here.run(found.tree()).data == {"text": "x" * 700_000}
    bucket = here.run(here.client.bus.bucket(subjects.kept(APP)))
    (hash,) = {key.split(".")[2] for key in here.run(bucket.keys()) if key.startswith("part.")}
    last = subjects.kept_part(run.id, hash, 2)
    body, _ = here.run(bucket.get(last))
    here.run(bucket.put(last, body.replace(b"xxxx", b"xxxy", 1)))
    with pytest.raises(DecodeError, match="is damaged: it is not what was stored"):
        here.run(found.tree())
    assert here.run(found.info()).status == "done"
    here.run(bucket.put(subjects.kept_run(run.id), b"anything"))
    assert listed(here) == []


def test_kept_runs_are_removed_when_records_are(lab: MakeLab, tmp_path: Path) -> None:
    there = working(lab)
    run = exported(there, tmp_path / "run.jsonl")
    here = working(lab)
    here.run(here.client.import_run(tmp_path / "run.jsonl"))
    bucket = here.run(here.client.bus.bucket(subjects.kept(APP)))
    here.run(forget_kept(here.client.bus, APP, here.run(bucket.time()) - 1))
    assert [info.id for info in listed(here)] == [run.id]
    here.run(forget_kept(here.client.bus, APP, here.run(bucket.time()) + 1))
    assert here.run(bucket.keys()) == []
    with pytest.raises(RunNotFound):
        here.run(here.client.run(run.id).tree())


@pytest_asyncio.fixture
async def app(nats_url: str, unique: str) -> AsyncIterator[Sealed]:
    async with AsyncExitStack() as stack:
        yield Sealed(nats_url, unique, stack)


@pytest.mark.asyncio
async def test_a_kept_run_is_sealed_with_the_key_of_its_session(app: Sealed, tmp_path: Path) -> None:
    await app.engine()
    await app.worker()
    client, file = await app.client(), tmp_path / "run.jsonl"
    run = await client.publish(f"{app.app}.in", {"text": CARD}, session="ann")
    await run.wait(timeout=30)
    await until(partial(count, partial(of, client, f"{app.app}.out"), 1))
    await run.export(file)
    assert CARD in file.read_text()
    found = await client.import_run(file)
    stored = await (await client.bus.bucket(subjects.kept(app.app))).items()
    assert len(stored) == 2
    assert not any(CARD.encode() in value for value, _ in stored.values())
    assert json.loads(stored[subjects.kept_run(found.id)][0])["session"] == "ann"
    assert (await found.tree()).data == {"text": CARD}
    plain = (await app.client(None)).run(found.id)
    assert (await plain.info()).kept == "imported"
    with pytest.raises(NotAllowed, match="this process has no key"):
        await plain.tree()
    with pytest.raises(ConfigError, match="its session ann shares one key") as refused:
        await client.forget(run=(await client.publish(f"{app.app}.in", {"text": "b"}, session="ann")).id)
    assert refused.value.code == "DX125"
    assert await client.forget(run=found.id) == 1
    assert await (await client.bus.bucket(subjects.kept(app.app))).items() == {}


@pytest.mark.asyncio
async def test_of_a_forgotten_run_is_seen_that_it_was_and_when(app: Sealed, tmp_path: Path) -> None:
    await app.engine()
    await app.worker()
    client = await app.client()
    run = await client.publish(f"{app.app}.in", {"text": CARD}, session="ann")
    bad = await client.publish(f"{app.app}.in", {"text": f"fail {CARD}"}, session="ann")
    await run.wait(timeout=30)
    await until(partial(count, partial(letters, client), 1))
    await run.export(tmp_path / "run.jsonl")
    await client.import_run(tmp_path / "run.jsonl")
    await bad.info()
    await client.forget(session="ann")
    later = await app.client()
    for id in (run.id, bad.id):
        one = later.run(id)
        info, root = await one.info(), await one.tree()
        assert (info.calls, info.finished is not None, info.kept) == (1, True, "")  # the imported one is removed
        assert [(told.kind, told.data) for told in root] == [("source", FORGOTTEN), ("call", FORGOTTEN)]
        assert [told.label for told in root if told.kind == "call"] == ["ask#0"]
        assert not any(CARD in line or "open" in line for line in drawn(root, root.time))
        with pytest.raises(RecordingIncomplete, match="its session was forgotten"):
            await one.export(tmp_path / "gone.jsonl")
