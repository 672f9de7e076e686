"""Most runs of the past come out as they did. To know that takes no engine, and it is never said of one that does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus.errors import Divergence, ProgramError
from dspex.engine.again.files import files_at, of_files, replayed
from dspex.engine.again.repeat import repeat
from dspex.engine.again.unchanged import Unchanged
from dspex.engine.client.runs.diff import Replay, compare
from dspex.engine.client.runs.export import RunFile
from dspex.engine.client.runs.then.recorded import RecordedCalls
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def asking(more: str = "", *, twice: bool = False, sink: str = "out", spoils: str = "~") -> Topology:
    topology = Topology("asking")
    read = topology.source("in").map(lambda d: {**d, "text": d["text"].strip().replace(spoils, "x" + spoils)}, name="read")
    each = read.flat_map(lambda d: [{**d, "word": word} for word in d["text"].split()], name="each")
    asked = each.predict("word -> label", name="ask").map(lambda d: {**d, "label": d["label"] + more}, name="mark")
    if twice:
        asked = asked.flat_map(lambda d: [d, d], name="twice")
    asked.sink(sink)
    return topology


def recorded(one: Lab, text: str, **publish: Any) -> RunFile:
    run = one.client.run(one.publish("in", {"text": text}, **publish))
    one.advance(10)
    found: RunFile = one.run(run.file())
    return found


def started(lab: MakeLab, topology: Topology) -> Lab:
    def answer(inputs: Any, work: Any) -> Any:
        if inputs["word"] == "x":
            raise ProgramError("no")
        return {"label": str(inputs["word"]).upper()}

    one = lab(topology)
    one.answers["ask"] = answer
    one.start()
    one.work()
    return one


def told(file: RunFile, topology: Topology) -> bool:
    return Unchanged([topology.graph]).is_same(file, RecordedCalls(file.calls))


@pytest.mark.parametrize("publish", [{}, {"key": "k", "session": "s"}, {"headers": {"Colour": "red"}}, {"id": "mine"}], ids=str)
def test_a_run_of_calls_alone_is_known_to_be_the_same_by_its_ids_and_bytes(lab: MakeLab, publish: dict[str, Any]) -> None:
    file = recorded(started(lab, asking()), " a b a ", **publish)
    assert told(file, asking())
    found = asyncio.run(repeat(None, file, [asking().graph]))
    assert (found.diff.same, found.served, found.called, found.file.info.id) == (True, 3, 0, file.info.id)
    assert found.diff == compare(file.root, file.root, (file.info, file.info))


@pytest.mark.parametrize(
    "changed",
    [asking("!"), asking(twice=True), asking(sink="elsewhere")],
    ids=["other data", "more outputs", "another sink"],
)
def test_what_comes_out_otherwise_is_never_said_to_be_the_same(lab: MakeLab, changed: Topology) -> None:
    file = recorded(started(lab, asking()), "a b")
    assert not told(file, changed)
    assert not asyncio.run(repeat(None, file, [changed.graph])).diff.same


def test_another_input_is_not_the_same(lab: MakeLab) -> None:
    file = recorded(started(lab, asking()), "a b ")
    spoilt = Topology("asking")
    spoilt.source("in").map(lambda d: {**d, "word": d["text"]}, name="mark").predict("word -> label", name="ask").sink("out")
    assert not told(file, spoilt)
    with pytest.raises(Divergence, match="its input is not the recorded one"):
        asyncio.run(repeat(None, file, [spoilt.graph]))


def test_what_takes_an_engine_is_left_to_it_and_is_the_same_too(lab: MakeLab) -> None:
    keyed = Topology("asking")
    asked = keyed.source("in").map(lambda d: {**d, "word": d["text"]}, name="each").predict("word -> label", name="ask")
    asked.key_by("label").aggregate(int, lambda n, d: n + 1, name="n").sink("out")
    file = recorded(started(lab, keyed), "a")
    assert not told(file, keyed)
    assert asyncio.run(repeat(None, file, [keyed.graph])).diff.same
    failed = recorded(started(lab, asking()), "a x")
    assert not told(failed, asking())
    assert asyncio.run(repeat(None, failed, [asking().graph])).diff.same


def test_an_output_that_another_topology_takes_is_followed_by_the_engine(lab: MakeLab) -> None:
    next = Topology("next")
    next.source("out").map(lambda d: d, name="same").sink("end")
    one = lab(asking(), next)
    one.answers["ask"] = lambda inputs, work: {"label": "yes"}
    one.start()
    one.work()
    file, graphs = recorded(one, "a"), [asking().graph, next.graph]
    assert not Unchanged(graphs).is_same(file, RecordedCalls(file.calls))
    assert asyncio.run(repeat(None, file, graphs)).diff.same


def folder_of(one: Lab, folder: Path, *texts: str) -> None:
    (folder / "more").mkdir(parents=True)
    for number, text in enumerate(texts):
        run = one.client.run(one.publish("in", {"text": text}))
        one.advance(1)
        one.run(run.export(folder / ("more" if number else ".") / f"{number}.jsonl"))


def test_a_folder_is_replayed_as_its_files_are_and_the_first_that_differs_is_shown(lab: MakeLab, tmp_path: Path) -> None:
    folder_of(started(lab, asking()), tmp_path / "runs", "a", "b c", "a")
    assert [one.name for one in files_at(tmp_path / "runs")] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    found = replayed([asking().graph], tmp_path / "runs", ())
    assert (found.same, found.runs, found.served, found.live) == (True, 3, 4, 0)
    seen = list[tuple[int, bool, str]]()
    changed = of_files(
        None,
        files_at(tmp_path / "runs"),
        [asking("!" * 2).graph],
        "strict",
        lambda so_far, last, file: seen.append((so_far.runs, last.same, Path(str(file)).name)),
    )
    found = asyncio.run(changed)
    assert (found.same, found.diverged and found.diverged.a) == (False, "A")
    assert seen == [(1, False, "0.jsonl"), (2, False, "1.jsonl"), (3, False, "2.jsonl")]


def test_a_folder_is_replayed_on_behind_files_that_need_a_call_that_was_not_made_then_and_each_is_named(
    lab: MakeLab, tmp_path: Path
) -> None:
    folder_of(started(lab, asking()), tmp_path / "runs", "a", "b c", "a", "b")
    other, seen = asking(spoils="b").graph, list[tuple[str, bool, str]]()

    def told(so_far: Replay, last: Replay, file: object) -> None:
        seen.append((Path(str(file)).name, last.same, str(last.diverged.b) if last.diverged is not None else ""))

    found = asyncio.run(of_files(None, files_at(tmp_path / "runs"), [other], "strict", told))
    assert (found.same, found.runs) == (False, 4)
    assert [(name, same) for name, same, _ in seen] == [
        ("0.jsonl", True),
        ("1.jsonl", False),
        ("2.jsonl", True),
        ("3.jsonl", False),
    ]
    assert all("there is no answer to read back" in why and "b → xb" in why for _, same, why in seen if not same)
    with pytest.raises(Divergence, match="there is no answer to read back"):
        replayed([other], tmp_path / "runs" / "more" / "3.jsonl", ())
