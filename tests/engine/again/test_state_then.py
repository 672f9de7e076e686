"""A run is done again with what operators kept when it began, whatever other runs have left there, and left since."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.engine.again.change import ForkChange
from dspex.engine.again.fork import Forked, forked
from dspex.engine.again.repeat import Repeated, repeat
from dspex.engine.again.replays import of_one
from dspex.engine.again.state import exactly
from dspex.engine.client.following.many import histories
from dspex.engine.client.runs.export import RunFile, load
from dspex.engine.client.runs.then.state import StateThen, state_before, states_before
from dspex.engine.graph.graph import HasGraph
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def counted(state: int, data: dict[str, Any], ctx: object) -> tuple[int, list[dict[str, Any]]]:
    return state + 1, [{**data, "n": state + 1}]


def twice(state: int, data: dict[str, Any], ctx: object) -> tuple[int, list[dict[str, Any]]]:
    return state + 2, [{**data, "n": state + 2}]


def keeping(*, once: str = "7s", fold: Callable[..., Any] = counted) -> Topology:
    """What keeps something: of a key, of a partition; behind a call and two hops; with timers on both clocks."""
    topology = Topology("keeping")
    source = topology.source("in", time="at")
    source.dedupe("id", within=once, name="once").sink("seen")
    by_k = source.predict("text -> kind", name="ask").key_by("kind", name="by_kind")
    by_k.stateful(fold, init=int, name="total").sink("sums")
    by_k.window("10s").count(name="window").sink("windows")
    by_k.throttle("10/m", name="slowly").sink("slow")
    by_k.debounce("2s", name="calm").sink("calmed")
    by_k.batch(3, within="7s", name="some").sink("batches")
    by_k.dedupe("id", within="7s", name="keyed_once").sink("keyed_seen")
    right = topology.source("right", time="at").key_by("kind", name="right_by_kind")
    by_k.join(right, within="7s", name="both").sink("pairs")
    return topology


@pytest.fixture
def past(lab: MakeLab) -> tuple[Lab, list[str]]:
    """What happened, and its runs."""
    one = lab(keeping())
    one.answers["ask"] = lambda inputs, work: {"kind": str(inputs["text"]).split()[0]}
    one.start()
    one.work()
    runs = list[str]()
    for n in range(9):
        one.publish("right", {"kind": "card", "r": n, "at": 1_767_225_600 + 3 * n})
        runs.append(
            one.publish("in", {"text": f"{'card' if n % 3 else 'rate'} {n}", "id": f"i{n % 2}", "at": 1_767_225_600 + 3 * n})
        )
        one.advance(3)
    one.advance(60)
    return one, runs


def again(file: RunFile, topology: HasGraph) -> Repeated:
    return asyncio.run(repeat(None, file, [topology.graph]))


def test_each_run_is_the_same_again(past: tuple[Lab, list[str]], tmp_path: Path) -> None:
    one, runs = past
    for run in (runs[5], runs[8]):
        file = one.run(one.client.run(run).file(state=True))
        found = again(file, keeping())
        assert (found.diff.same, found.without) == (True, ""), str(found.diff)
        one.run(one.client.run(run).export(tmp_path / run))
        found = again(load(tmp_path / run), keeping())
        assert (found.diff.same, found.without) == (True, ""), str(found.diff)


@pytest.mark.long
def test_a_fork_that_leads_to_another_key_finds_what_was_kept_of_that(past: tuple[Lab, list[str]]) -> None:
    one, runs = past
    change = ForkChange(outputs={"kind": "rate"})
    made: Forked = one.run(forked(one.client, runs[7], "ask", change, [keeping().graph]))
    file = one.run(one.client.run(made.run).file())
    assert [o.data["n"] for o in file.root if o.node == "sums"] == [4]  # runs 0, 3, and 6 were before
    assert len([o for o in file.root if o.node == "pairs"]) == 0
    found = again(file, keeping())
    assert [o.data["n"] for o in found.file.root if o.node == "sums"] == [4]  # its state is kept with it


def test_what_is_not_kept_any_more_is_said_once_and_begins_empty(past: tuple[Lab, list[str]]) -> None:
    one, runs = past
    file = one.run(one.client.run(runs[8]).file())
    assert again(file, keeping()).without == "nobody asked for it"
    history, _ = one.run(one.client.run(runs[8]).history())
    (topology, stage, partition), *_ = {taken.partition for taken in history.taken if taken.partition[1] != "s1"}
    first = min(taken.sequence for taken in history.taken if taken.partition == (topology, stage, partition))
    one.run(one.client.bus.purge(STREAM, subjects.log(APP, topology, stage, partition), below=first))
    file = one.run(one.client.run(runs[8]).file(state=True))
    found = again(file, keeping())
    assert found.without.endswith("said then is not kept any more")
    assert [o.data["n"] for o in found.file.root if o.node == "sums"] == [1]


def test_an_operator_that_keeps_something_else_now_begins_empty_and_that_is_said(past: tuple[Lab, list[str]]) -> None:
    one, runs = past
    file = one.run(one.client.run(runs[8]).file(state=True))
    other = Topology("keeping")
    by_k = other.source("in", time="at").predict("text -> kind", name="ask").key_by("kind", name="by_kind")
    by_k.stateful(counted, init=int, name="total").sink("sums")
    by_k.throttle("10/m", name="window").sink("windows")
    found = again(file, other)
    assert found.without == "window keeps something else now"
    assert [o.data["n"] for o in found.file.root if o.node == "sums"] == [6]


def test_what_others_left_waiting_makes_no_calls(lab: MakeLab) -> None:
    """The batch of other runs is full, or too old, while a run is done again: that is no call of the run."""
    topology = Topology("batches")
    topology.source("in").batch(2, within="1s", name="two").map(lambda d: {"many": len(d)}).predict(
        "many -> a", name="ask"
    ).sink("out")
    topology.source("other").predict("text -> a", name="own").sink("owned")
    one = lab(topology)
    one.start()
    one.work()
    one.answers["ask"] = one.answers["own"] = lambda inputs, work: {"a": "x"}
    one.publish("in", {"n": 1})
    run = one.publish("in", {"n": 2})
    one.publish("in", {"n": 3})
    last = one.publish("in", {"n": 4})
    one.advance(30)
    for each in (run, last):
        found = again(one.run(one.client.run(each).file(state=True)), topology)
        assert (found.diff.same, found.served) == (True, 0), str(found.diff)


@pytest.mark.long
def test_what_was_committed_together_with_it_before_it_counts(lab: MakeLab, tmp_path: Path) -> None:
    topology = Topology("counts")
    source = topology.source("in").key_by("k", name="by_k")
    source.stateful(counted, init=int, name="each").sink("sums")
    one = lab(topology)
    one.start()
    one.kill()
    runs = [one.publish("in", {"k": "a"}, key="k") for _ in range(6)]  # taken together, since no engine runs
    one.start()
    one.advance(10)
    assert len({taken.sequence for taken in one.run(one.client.run(runs[4]).history())[0].taken}) < 6
    found = one.run(of_one(one.client, one.client.run(runs[4]), [topology.graph], "hybrid"))[0]
    assert (found.same, found.without) == (True, ""), str(found.diff)
    one.run(one.client.run(runs[4]).export(tmp_path / "run"))
    assert "committed with its own" in again(load(tmp_path / "run"), topology).without
    same, other = Topology("counts"), Topology("counts")
    same.source("in").key_by("k", name="by_k").stateful(counted, init=int, name="each").sink("sums")
    other.source("in").key_by("k", name="by_k").stateful(twice, init=int, name="each").sink("sums")
    files = one.run(exact(one, runs, same))
    assert [again(file, topology).without for file in files] == [""] * 6
    assert all(again(file, topology).diff.same for file in files)
    lacks = [file.state.lacks for file in one.run(exact(one, runs, other))]  # that code gave something else
    assert "committed with its own" in lacks[4]


async def exact(one: Lab, runs: list[str], code: Topology) -> list[RunFile]:
    """The files of runs, as many are exported together, with this code."""
    bus, applied = one.client.bus, await one.client.manifests()
    files, pasts = [await one.client.run(run).file() for run in runs], await histories(bus, APP, applied, runs)
    keys = {file.info.id: file.keys for file in files}
    then = await states_before(bus, APP, pasts.values(), applied, keys)
    then = await exactly(one.client, pasts.values(), applied, [code.graph], then, keys, same=True)
    return [replace(file, state=then[file.info.id]) for file in files]


def test_of_many_runs_the_state_is_read_in_one_pass_and_is_that_of_each(past: tuple[Lab, list[str]]) -> None:
    one, runs = past
    bus, applied = one.client.bus, one.run(one.client.manifests())

    async def states() -> tuple[dict[str, StateThen], dict[str, StateThen]]:
        pasts = await histories(bus, APP, applied, runs)
        keys = {run: (await one.client.run(run).file()).keys for run in runs}
        apart = {run: (await state_before(bus, APP, pasts[run], applied)).of_keys(keys[run]) for run in runs}
        return await states_before(bus, APP, pasts.values(), applied, keys), apart

    together, apart = one.run(states())
    assert {run: state.of_keys(["card", "rate"]) for run, state in together.items()} == apart
    assert sum(len(state.partitions) for state in together.values()) > len(runs)
