"""A fork of a fork has both changes; and one whose first change is not kept is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from engine_lab import Lab

from dspex.bus import codecs, subjects
from dspex.bus.errors import ConfigError, RecordingIncomplete
from dspex.engine.again.change import ForkChange
from dspex.engine.again.fork import delivered, forked
from dspex.engine.again.replays import of_file
from dspex.engine.client.runs.export import RunFile
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def asking(mark: str = "") -> Topology:
    topology = Topology("asking")
    clean = topology.source("in").map(lambda d: {**d, "size": len(d["text"])}, name="measure")
    asked = clean.predict("text -> kind", name="ask")
    asked.map(lambda d: {**d, "kind": d["kind"] + mark}, name="say").sink("out")
    return topology


@pytest.fixture
def one(lab: MakeLab) -> Lab:
    found = lab(asking())
    found.answers["ask"] = lambda inputs, work: {"kind": "plain"}
    found.start()
    found.work()
    return found


def fork(one: Lab, run: str, at: str, code: Topology | None = None, **change: Any) -> RunFile:
    made = one.run(forked(one.client, run, at, ForkChange(**change), [(code or asking()).graph]))
    file: RunFile = one.run(one.client.run(made.run).file())
    assert asyncio.run(of_file(None, file, [(code or asking()).graph], "strict")).same
    return file


def out(file: RunFile) -> dict[str, Any]:
    (found,) = file.outputs
    return {name: found.data[name] for name in ("size", "kind")}


def test_both_changes_hold_whichever_came_first(one: Lab) -> None:
    run = one.publish("in", {"text": "abc"})
    one.advance(5)
    first = fork(one, run, "measure", outputs={"size": 9})
    assert out(first) == {"size": 9, "kind": "plain"}
    second = fork(one, first.info.id, "ask", outputs={"kind": "other"})
    assert out(second) == {"size": 9, "kind": "other"}
    third = fork(one, second.info.id, "in", inputs={"text": "abcdef"})  # the call is asked something else now
    assert out(third) == {"size": 9, "kind": "other"}
    assert out(fork(one, third.info.id, "measure#0", outputs={"size": 1})) == {"size": 1, "kind": "other"}
    assert third.info.parent == second.info.id


def test_a_fork_of_other_code_is_forked_with_other_code_alone(one: Lab) -> None:
    run = one.publish("in", {"text": "abc"})
    one.advance(5)
    first = fork(one, run, "say", asking("!"), topology=True)
    assert out(first)["kind"] == "plain!"
    with pytest.raises(RecordingIncomplete, match="a fork of other code, which is not kept"):
        fork(one, first.info.id, "ask", outputs={"kind": "other"})
    assert out(fork(one, first.info.id, "say", asking("?"), topology=True))["kind"] == "plain?"


def test_a_change_that_has_no_place_in_the_code_any_more_is_no_change_that_is_lost(one: Lab) -> None:
    run = one.publish("in", {"text": "abc"})
    one.advance(5)
    first, other = fork(one, run, "measure", outputs={"size": 9}), Topology("asking")
    other.source("in").predict("text -> kind", name="ask").sink("out")
    with pytest.raises(RecordingIncomplete, match="a fork at measure, which the code has not got"):
        fork(one, first.info.id, "ask", other, topology=True)


def test_a_fork_is_delivered_again_where_it_was_not_and_nothing_comes_twice(lab: MakeLab) -> None:
    topology = Topology("packed")
    topology.source("in").map(lambda d: {**d, "n": 1}, name="count").sink("out", codec="msgpack")
    one, graphs = lab(topology), [topology.graph]
    one.start()
    run = one.publish("in", {"text": "abc"})
    one.advance(5)
    kept = one.run(forked(one.client, run, "count", ForkChange(outputs={"n": 2}), graphs))
    assert [d["n"] for d in one.outputs("out")] == [1]
    assert one.run(delivered(one.client, kept.run, graphs)) == (kept.run, 1)
    one.advance(600)  # longer than the server knows ids
    assert one.run(delivered(one.client, kept.run[-8:], graphs)) == (kept.run, 0)
    assert [d["n"] for d in one.outputs("out")] == [1, 2]
    assert {m.headers.get(subjects.CONTENT_TYPE) for m in one.messages("out")} == {codecs.MSGPACK}
    with pytest.raises(ConfigError, match="is no fork"):
        one.run(delivered(one.client, run, graphs))


def test_what_a_fork_gives_as_it_was_given_is_not_delivered_again(lab: MakeLab) -> None:
    topology = Topology("two")
    read = topology.source("in")
    read.map(lambda d: {"size": len(d["text"])}, name="size").sink("sizes")
    read.map(lambda d: {"text": d["text"].upper()}, name="loud").sink("texts")
    one, graphs = lab(topology), [topology.graph]
    one.start()
    run = one.publish("in", {"text": "abc"})
    one.advance(5)
    made = one.run(forked(one.client, run, "in", ForkChange(inputs={"text": "xyz"}), graphs, deliver=True))
    assert (made.delivered, one.outputs("sizes")) == (1, [{"size": 3}])
    quiet = one.run(forked(one.client, made.run, "loud", ForkChange(outputs={"text": "!"}), graphs))
    parents = ((made.run, 9, 1), (quiet.run, 8, 2))  # the first one was delivered
    for parent, size, delivered_then in parents:
        change = ForkChange(outputs={"size": size})
        assert one.run(forked(one.client, parent, "size", change, graphs, deliver=True)).delivered == delivered_then
    assert [d["text"] for d in one.outputs("texts")] == ["ABC", "XYZ", "!"]
    assert [d["size"] for d in one.outputs("sizes")] == [3, 9, 8]


@pytest.mark.parametrize("codec", ["msgpack", "arrow"])
def test_what_json_cannot_say_is_in_files_and_forks_as_it_was(lab: MakeLab, codec: Any) -> None:
    given = {"msgpack": lambda d: {**d, "raw": b"\x00\xff"}, "arrow": lambda d: pa.table({"text": [d["text"]]})}
    topology = Topology("packed")
    topology.source("in").map(given[codec], name="make").sink("out", codec=codec)
    one, graphs = lab(topology), [topology.graph]
    one.start()
    run = one.publish("in", {"text": "abc"})
    one.advance(5)
    made = one.run(forked(one.client, run, "in", ForkChange(inputs={"text": "x"}), graphs, deliver=True))
    (output,) = one.run(one.client.run(made.run).file()).outputs
    first, second = one.outputs("out")
    assert output.data == second
    assert first != second
    assert type(first) is type(second)
