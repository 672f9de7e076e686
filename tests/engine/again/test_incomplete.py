"""Of several runs that are replayed, one that is damaged or incomplete is named, and the others are done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_bench import NATIVE, Project
from engine_lab import STREAM, Lab

from dspex.bus.errors import DecodeError, RecordingIncomplete
from dspex.engine.again.replays import of_many
from dspex.engine.client.runs.diff import Replay
from dspex.engine.client.runs.export import load, written
from dspex.operators.topology import Topology
from dspex.testing import Driver

MakeLab = Callable[..., Lab]
NO_SERVER = {"NATS_URL": "nats://127.0.0.1:1"}


def words(size: int = 0, more: str = "") -> Topology:
    topology = Topology("words")
    read = topology.source("in").map(lambda d: {**d, "text": d["text"] + more * (d["text"] == "b")}, name="read")
    asked = read.predict("text -> label", name="ask")
    asked.map(lambda d: {**d, "size": size}, name="size").sink("out")
    return topology


def spoiled(file: Path) -> None:
    """As if its run had not been over when it was written."""
    then = load(file)
    file.write_bytes(written(replace(then, info=replace(then.info, status="running", finished=None))))


def recorded(lab: MakeLab, *texts: str) -> tuple[Lab, list[str]]:
    one = lab(words())
    one.answers["ask"] = lambda inputs, work: {"label": "yes"}
    one.start()
    one.work()
    runs = [one.publish("in", {"text": text}) for text in texts]
    one.advance(2)
    return one, runs


def test_a_folder_is_done_again_but_for_files_that_are_damaged_or_incomplete_and_each_is_named(
    lab: MakeLab, tmp_path: Path
) -> None:
    one, runs = recorded(lab, *"abcde")
    files = [tmp_path / f"{number}.jsonl" for number in range(5)]
    for run, file in zip(runs, files):
        one.run(one.client.run(run).export(file))
    spoiled(files[0])
    files[3].write_bytes(files[3].read_bytes().replace(b"yes", b"no!"))
    with Driver(words()) as d:
        found = d.replay(tmp_path)
        assert (found.same, found.runs, found.diverged) == (False, 3, None)
        assert {name: e.code for name, e in found.incomplete.items()} == {str(files[0]): "DX802", str(files[3]): "DX501"}
        assert f"not replayed {files[0]}: run {runs[0]} was not over" in str(found)
        with pytest.raises(RecordingIncomplete):
            d.replay(files[0])
        with pytest.raises(DecodeError):
            d.replay(files[3])
    with Driver(words(more="!")) as d:
        found = d.replay(tmp_path)
        assert (found.same, found.runs, len(found.incomplete)) == (False, 3, 2)
        assert found.diverged is not None
        assert "there is no answer to read back" in str(found.diverged.b)


def test_of_several_runs_of_the_server_one_whose_event_was_changed_is_named_and_the_others_are_done(lab: MakeLab) -> None:
    one, runs = recorded(lab, "a", "b", "c")
    (event,) = (m for m in one.messages("in") if b'"b"' in m.data)
    stored = next(
        stream.messages for name, stream in one.server.streams.items() if name != STREAM and event in stream.messages.values()
    )
    stored[event.sequence] = event._replace(data=event.data.replace(b'"b"', b'"B"'))
    seen = list[tuple[str, bool]]()

    def told(so_far: Replay, last: Replay, run: str) -> None:
        seen.append((run, last.same))

    found = one.run(of_many(one.client, runs, [], [words().graph], "strict", told))
    assert (found.same, found.runs, found.diverged, [*found.incomplete]) == (False, 2, None, [runs[1]])
    assert seen == [(runs[0], True), (runs[1], False), (runs[2], True)]
    with pytest.raises(RecordingIncomplete):
        one.run(of_many(one.client, runs[1:2], [], [words().graph], "strict"))


@pytest.mark.long
def test_the_command_names_each_such_file_beside_those_that_differ_and_ends_as_one_of_them_alone_does(native: Project) -> None:
    folder = native.folder / "damaged"
    folder.mkdir()
    for number, one in enumerate(native.publish("-", stdin='{"text":"abc"}\n' * 3).objects()):
        assert native.here("runs", "export", one["run"], "-o", f"damaged/{number}.jsonl").code == 0
    spoiled(folder / "1.jsonl")
    found = native.here("--json", "replay", "--file", "damaged", **NO_SERVER)
    (said,) = found.objects()
    assert (found.code, found.error()["code"], said["same"], said["runs"], "files" in said) == (6, "DX802", False, 2, False)
    assert [(one["file"], one["code"]) for one in said["incomplete"]] == [("damaged/1.jsonl", "DX802")]
    alone = native.here("--json", "replay", "--file", "damaged/1.jsonl", **NO_SERVER)
    assert (alone.code, alone.error()["code"]) == (6, "DX802")
    text = native.here("replay", "--file", "damaged", **NO_SERVER)
    assert "not replayed damaged/1.jsonl: run " in text.out
    assert "same" not in text.out.splitlines()
    assert "not replayed damaged/1.jsonl" in native.here("replay", "--file", "damaged", "--as", "markdown", **NO_SERVER).out
    changed = NATIVE.format(u=native.input.removesuffix(".in")).replace('"len(text)"', '"len(text) + 1"')
    both = native.here("--json", "replay", "--file", "damaged", "--with", native.write("longer.yaml", changed), **NO_SERVER)
    (said,) = both.objects()
    assert (both.code, both.error()["code"], len(said["files"]), len(said["incomplete"])) == (6, "DX802", 2, 1)
    assert "2 differ" in both.error()["message"]
    (folder / "1.jsonl").write_text("no file of a run")
    torn = native.here("--json", "replay", "--file", "damaged", **NO_SERVER)
    (said,) = torn.objects()
    alone = native.here("--json", "replay", "--file", "damaged/1.jsonl", **NO_SERVER)
    assert (torn.code, torn.error()["code"]) == (alone.code, alone.error()["code"]) == (alone.code, "DX501")
    assert (said["runs"], [one["file"] for one in said["incomplete"]]) == (2, ["damaged/1.jsonl"])
