"""Runs and topologies are replayed with the code of today: every call answered by its record, with the state of then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from engine_lab import APP, Lab

from dspex.bus import codecs, subjects
from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.engine.client.following.many import histories
from dspex.engine.client.following.progress import RunInfo
from dspex.engine.client.runs.then.recorded import taken_by
from dspex.engine.log import commit_log
from dspex.engine.log.build import build
from dspex.engine.replay.marks import outcome
from dspex.engine.replay.topology import Replayed, replayed, replayed_run
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def totals(step: int = 1, *, from_: int = 0) -> Topology:
    """Counts what a model says. `step`: by how much, where there are more than `from_` already."""

    def total(state: int, data: dict[str, Any], ctx: object) -> tuple[int, list[dict[str, Any]]]:
        now = state + (step if state >= from_ else 1)
        return now, [{"intent": data["intent"], "n": now}]

    topology = Topology("totals")
    asked = topology.source("in").predict("text -> intent", name="classify")
    by_intent = asked.key_by("intent", name="by_intent")
    by_intent.stateful(total, init=int, name="total").sink("sums")
    by_intent.window("10s").count(name="counted").sink("windows")
    return topology


@pytest.fixture
def past(lab: MakeLab) -> tuple[Lab, list[str]]:
    """What happened, through a kill of engine and workers; and its runs."""
    one = lab(totals())
    one.answers["classify"] = lambda inputs, work: {"intent": str(inputs["text"]).split()[0]}
    one.start()
    one.work()
    runs = []
    for n in range(20):
        runs.append(one.publish("in", {"text": f"{'card' if n % 3 else 'rate'} {n}"}))
        one.advance(2)
        if n == 9:
            one.kill()
            one.kill_workers()
            one.start("b")
            one.work()
    one.advance(60)
    return one, runs


def again(one: Lab, topology: Topology, run: str | None = None, build: Mapping[str, str] = MappingProxyType({})) -> Replayed:
    async def found() -> Replayed:
        applied = (await one.client.manifests())["totals"]
        if run is None:
            return await replayed(one.client.bus, APP, topology.graph, applied, build)
        history, _ = await one.client.run(run).history()
        taken: dict[tuple[str, int], set[int]] = {}
        for commit in history.taken:
            taken.setdefault(commit.partition[1:], set()).add(commit.sequence)
        return await replayed_run(one.client.bus, APP, topology.graph, applied, build, taken, history.run)

    result: Replayed = one.run(found())
    return result


@pytest.mark.parametrize("step", [1, 2])
def test_many_runs_together_are_the_same_or_not_as_each_by_itself(past: tuple[Lab, list[str]], step: int) -> None:
    one, runs = past

    async def found() -> Replayed:
        applied = await one.client.manifests()
        some = [*(await histories(one.client.bus, APP, applied, runs[2:])).values()]
        taken = taken_by(some)["totals"]
        assert max(map(len, taken.values())) > 16  # so they are read together
        graph = totals(step, from_=3).graph
        return await replayed_run(one.client.bus, APP, graph, applied["totals"], {}, taken, runs[2:])

    together: Replayed = one.run(found())
    apart = [again(one, totals(step, from_=3), run) for run in runs[2:]]
    assert together.same == all(each.same for each in apart) == (step == 1)
    assert {run for what in together.diverged for run in what.runs} == {r for e in apart for d in e.diverged for r in d.runs}


def test_each_build_that_wrote_what_is_replayed_is_named_beside_that_of_today(
    lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_log, "LEAST", 1_000)  # snapshots, so that the claim of a run lies before what is read
    one = lab(totals())
    one.answers["classify"] = lambda inputs, work: {"intent": "card"}
    one.work()
    runs, wrote = list[str](), dict[str, str]()
    for name, topology in (("a", totals()), ("b", totals(2, from_=100))):
        one.start(name, topology)
        wrote[name] = topology.graph.functions
        runs += [one.publish("in", {"text": "x"}) for _ in range(30)]
        one.advance(60)
        one.kill(name)
    assert wrote["a"] != wrote["b"]
    today = build(totals().graph) | {"functions": "those of today"}
    functions = {run: again(one, totals(), run, today).builds for run in (runs[29], runs[59])}
    assert functions[runs[29]] == {"functions": (wrote["a"], "those of today")}
    assert functions[runs[59]] == {"functions": (wrote["b"], "those of today")}
    assert again(one, totals(), None, {**today, "functions": wrote["b"]}).builds == {"functions": (wrote["a"], wrote["b"])}


def test_all_that_a_topology_did_is_the_same_and_asks_nobody(past: tuple[Lab, list[str]]) -> None:
    one, _ = past
    asked, last = len(one.asked), one.run(one.client.bus.stream("DSPEX_lab")).last
    found = again(one, totals())
    assert (found.same, found.taken["source"], found.taken["records"]) == (True, 20, 20)
    assert (len(one.asked), one.run(one.client.bus.stream("DSPEX_lab")).last) == (asked, last)
    assert len(one.outputs("windows")) > 4


def test_each_run_is_the_same_by_itself_with_the_state_that_there_was(past: tuple[Lab, list[str]]) -> None:
    one, runs = past
    assert [again(one, totals(), run).diverged for run in runs] == [[]] * 20


def test_only_the_runs_that_a_change_touches_differ(past: tuple[Lab, list[str]]) -> None:
    one, runs = past
    changed = totals(2, from_=10)  # of "card", from the eleventh on
    differ = [run for run in runs if not again(one, changed, run).same]
    cards = [run for n, run in enumerate(runs) if n % 3]
    assert differ == cards[10:]
    assert not again(one, changed).same


def test_of_runs_that_share_a_commit_only_the_one_that_changed_differs(lab: MakeLab) -> None:
    def sized(most: int) -> Topology:
        topology = Topology("totals")
        topology.source("in").map(lambda d: {**d, "size": min(len(d["text"]), most)}, name="size").sink("out")
        return topology

    one = lab(sized(9))
    drafts = [NewMessage("in", f'{{"text":"{text}"}}'.encode()) for text in ("abc", "abcd")]
    one.start()
    one.run(one.client.bus.publish_all(drafts))
    one.advance(1)
    runs = [info.id for info in one.run(listed(one))][::-1]
    commits = {commit.sequence for run in runs for commit in one.run(one.client.run(run).history())[0].taken}
    assert len(commits) == 1
    found = [again(one, sized(3), run) for run in runs]
    assert [(each.same, each.taken["source"]) for each in found] == [(True, 1), (False, 1)]


def test_source_events_are_counted_once_whatever_commits_take_them_and_wherever_partitions_stand(lab: MakeLab) -> None:
    topology = Topology("totals")
    many = topology.source("in", partitions=2).flat_map(lambda data: [{"n": n} for n in range(data["count"])], name="many")
    many.sink("out")
    one = lab(topology)
    one.start()
    for count in (1, 2500, 1):
        one.publish("in", {"count": count})
    one.advance(60)
    assert len(one.outputs("out")) == 2502
    found = again(one, topology)
    assert (found.same, found.taken["source"]) == (True, 3)


async def listed(one: Lab) -> list[RunInfo]:
    return [info async for info in one.client.runs()]


def failing(where: str) -> Topology:
    """Fails at "x". `where`: in which of two functions, which differ by their lines."""

    def above(data: dict[str, Any]) -> dict[str, Any]:
        if data["text"] == "x":
            raise ValueError("x is not known")
        return data

    def below(data: dict[str, Any]) -> dict[str, Any]:
        if data["text"] == "x":
            why = "x is not known"
            raise ValueError(why)
        return data

    topology = Topology("totals")
    topology.source("in").map({"above": above, "below": below}[where], name="fail").sink("out")
    return topology


def test_a_dead_letter_that_names_other_lines_of_code_is_no_difference(lab: MakeLab) -> None:
    one = lab(failing("above"))
    one.start()
    drafts = [NewMessage("in", f'{{"text":"{text}"}}'.encode()) for text in ("a", "x")]
    one.run(one.client.bus.publish_all(drafts))
    one.advance(1)
    runs = [info.id for info in one.run(listed(one))]
    assert [letter.traceback for letter in one.letters()] != [""]
    assert again(one, failing("below")).diverged == []
    assert [again(one, failing("below"), run).same for run in runs] == [True, True]


def test_a_dead_letter_of_another_error_is_a_difference_that_names_its_run(lab: MakeLab) -> None:
    one = lab(failing("above"))
    one.start()
    run = one.publish("in", {"text": "x"})
    one.advance(1)
    other = Topology("totals")
    other.source("in").map(lambda data: data["none"], name="fail").sink("out")
    (differs,) = again(one, other).diverged
    assert (differs.excused, differs.runs) == (True, (run,))
    assert "KeyError" in differs.what


def test_what_another_run_failed_at_in_the_same_commit_is_no_excuse(lab: MakeLab) -> None:
    one = lab(failing("above"))
    one.start()
    drafts = [NewMessage("in", f'{{"text":"{text}"}}'.encode()) for text in ("a", "x")]
    one.run(one.client.bus.publish_all(drafts))
    one.advance(1)

    def louder(data: dict[str, Any]) -> dict[str, Any]:
        if data["text"] == "x":
            why = "x is not known"
            raise ValueError(why)
        return {"text": data["text"].upper()}

    other = Topology("totals")
    other.source("in").map(louder, name="fail").sink("out")
    (differs,) = again(one, other).diverged
    assert (len(differs.runs), differs.excused) == (1, False)


def test_a_request_of_a_version_that_knew_fewer_options_is_the_same(past: tuple[Lab, list[str]]) -> None:
    one, _ = past
    now = one.run(first_request(one))
    raw = codecs.decode(now.data, codecs.MSGPACK)
    spec = {k: v for k, v in codecs.decode(raw["spec"], codecs.MSGPACK).items() if k not in ("choose", "lane")}

    def older(**changed: Any) -> NewMessage:
        there = {k: v for k, v in raw.items() if k not in ("batch", "required")} | changed
        return NewMessage(now.subject, codecs.msgpack_bytes(there | {"spec": codecs.msgpack_bytes(spec)}))

    assert older().data != now.data
    assert outcome(older()) == outcome(now)
    assert outcome(older(inputs={"text": "other"})) != outcome(now)


async def first_request(one: Lab) -> Message:
    """A request that an engine stored."""
    run = (await listed(one))[0].id
    past, _ = await one.client.run(run).history()
    return next(m for taken in past.taken for m in taken.messages if subjects.is_work(m.subject))
