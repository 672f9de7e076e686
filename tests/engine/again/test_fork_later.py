"""What a fork leads to in other runs: of windows and batches that closed later, and of events that found another state."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_bench import Project
from engine_lab import Lab

from dspex.bus.errors import RunNotFound
from dspex.bus.records import CallRecord, CallRequest
from dspex.engine.again.change import ForkChange
from dspex.engine.again.fork import Forked, delivered, forked
from dspex.engine.client.runs.then.later import LaterDiff
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
_START = 1_767_225_600


def added(state: int, data: dict[str, Any], ctx: object) -> tuple[int, list[dict[str, Any]]]:
    return state + data["n"], [{"k": data["k"], "sum": state + data["n"]}]


def plus(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {"n": one["n"] + other["n"]}


def later() -> Topology:
    """A sum; a window, with an operator, a call, and another stage behind it; a batch, and windows that overlap."""
    topology = Topology("later")
    read = topology.source("in", time="at").filter("n < 50", name="small")
    by_k = read.key_by("k", name="by_k")
    by_k.stateful(added, init=int, name="total").sink("sums")
    closed = by_k.window("10s").reduce(plus, name="window")
    shown = closed.map(lambda w: {"k": w.key, "n": w.value["n"]}, name="shown")
    shown.sink("windows")
    shown.predict("n -> grade", name="grade", pool="p").sink("grades")
    shown.key_by("k", name="again").stateful(added, init=int, name="of_windows").sink("sums_of_windows")
    by_k.batch(2, within="1h", name="two").sink("twos")
    by_k.window("20s", every="10s").reduce(plus, name="wide").map(lambda w: w.value, name="wider").sink("wides")
    return topology


@pytest.fixture
def done(lab: MakeLab) -> tuple[Lab, list[str]]:
    """Ten events of two keys, 3 s apart, all of whose windows but the last ones are closed."""
    one, runs = lab(later()), list[str]()

    def graded(inputs: dict[str, Any], request: CallRequest) -> dict[str, Any]:
        return {"grade": f"is {inputs['n']}"}

    one.answers["grade"] = graded
    one.start()
    one.work("p")
    for n in range(10):
        runs.append(one.publish("in", {"k": "ab"[n % 2], "n": n, "at": _START + 3 * n}))
        one.advance(3)
    one.advance(60)
    return one, runs


def fork(done: tuple[Lab, list[str]], number: int, at: str, how: dict[str, Any] | None = None, **change: Any) -> Forked:
    one, runs = done
    made: Forked = one.run(forked(one.client, runs[number], at, ForkChange(**change), [later().graph], **(how or {})))
    return made


def graded_now(calls: list[tuple[str, Any]]) -> Callable[[str, CallRequest], Any]:
    """Who makes calls for a fork, and is told of them."""

    async def make(pool: str, request: CallRequest) -> CallRecord:
        calls.append((pool, request.inputs["n"]))
        return CallRecord(
            request.call, 1, 1, "", "", outputs={"grade": f"now {request.inputs['n']}"}, usage={"input_tokens": 7}
        )

    return make


def of(found: Forked, step: str) -> list[tuple[str | None, Any, Any]]:
    assert found.later is not None
    return [(one.field, one.a, one.b) for one in found.later.diffs if one.step == step]


def test_a_window_gives_something_else_when_it_closes_and_so_does_what_hangs_on_it(done: tuple[Lab, list[str]]) -> None:
    made = fork(done, 2, "window", inputs={"n": 20})
    assert (made.diff.same, made.changed) == (True, True)
    assert of(made, "windows") == [("n", 2, 20)]
    assert of(made, "sums_of_windows") == [("sum", 2, 20), ("sum", 12, 30), ("sum", 20, 38)]
    assert of(made, "grade") == [("n", 2, 20)]
    assert made.later is not None
    assert made.later.open == (
        "grade is asked something else, and not called (pool p has no worker): what follows has the answers of then",
        "at the end of the log of_windows is not as it was",
    )
    assert made.later.as_dict()["diffs"][0]["run"] not in done[1]
    assert made.as_dict()["later"] == made.later.as_dict()


def test_a_call_of_another_run_is_made_once_where_it_is_asked_something_else_and_what_follows_has_its_answer(
    done: tuple[Lab, list[str]],
) -> None:
    calls = list[tuple[str, Any]]()
    made = fork(done, 2, "window", {"make": graded_now(calls)}, inputs={"n": 20})
    assert calls == [("p", 20)]
    assert of(made, "grades") == [("n", 2, 20), ("grade", "is 2", "now 20")]
    assert (made.called, made.tokens) == (1, 7)
    assert made.later is not None
    assert made.later.open == ("at the end of the log of_windows is not as it was",)


def test_a_call_of_another_run_is_not_made_in_mode_strict_and_named(done: tuple[Lab, list[str]]) -> None:
    calls = list[tuple[str, Any]]()
    made = fork(done, 2, "window", {"make": graded_now(calls), "mode": "strict"}, inputs={"n": 20})
    assert (calls, made.called, of(made, "grades")) == ([], 0, [("n", 2, 20)])
    assert made.later is not None
    assert made.later.open[0].startswith("grade is asked something else, and not called (no record answers it, and no call is ")


@pytest.mark.long
def test_what_behind_windows_comes_again_to_what_it_was_is_not_looked_at_any_further(done: tuple[Lab, list[str]]) -> None:
    found = fork(done, 2, "wide", inputs={"n": 20}).later
    diffs = tuple(LaterDiff(one.run, "wides", "n", *values) for one, values in zip(wides(done), [(2, 20), (10 + 2, 30)]))
    assert found is not None
    assert (found.diffs, found.open) == (diffs, ())


def test_what_follows_in_other_runs_is_kept_with_the_fork_and_delivered_with_it_once(done: tuple[Lab, list[str]]) -> None:
    one, before = done[0], done[0].outputs("sums_of_windows")
    made = fork(done, 2, "window", {"make": graded_now([])}, inputs={"n": 20})
    kept = one.run(one.client.run(made.run).file()).later
    assert kept is not None
    assert (kept, [out.data["sum"] for out in kept.outputs if out.subject == "sums_of_windows"]) == (made.later, [20, 30, 38])
    told = one.run(one.client.diff(done[1][2], made.run))
    assert (told.same, told.steps, told.later) == (False, [], made.later)
    assert one.run(delivered(one.client, made.run, [later().graph])) == (made.run, 5)
    assert [out["sum"] for out in one.outputs("sums_of_windows")[len(before) :]] == [20, 30, 38]
    assert one.run(delivered(one.client, made.run, [later().graph])) == (made.run, 0)


def wides(done: tuple[Lab, list[str]]) -> Sequence[LaterDiff]:
    found = fork(done, 2, "wide", inputs={"n": 49}).later
    assert found is not None
    return found.diffs


def test_what_a_changed_event_does_not_come_to_is_without_it_also_where_it_was_the_first(done: tuple[Lab, list[str]]) -> None:
    made = fork(done, 4, "small", inputs={"n": 99})
    assert of(made, "windows") == [("n", 10, 6)]
    assert of(made, "sums") == [("sum", 12, 8), ("sum", 20, 16)]
    assert of(made, "sums_of_windows") == [("sum", 12, 8), ("sum", 20, 16)]
    assert of(made, "grade") == [("n", 10, 6)]
    assert of(fork(done, 0, "small", inputs={"n": 99}), "grades") == []  # 0 + 2 is 2: its answer is that of then


def test_the_event_of_a_source_is_changed_and_what_other_runs_make_of_it_follows(done: tuple[Lab, list[str]]) -> None:
    made = fork(done, 2, "in", inputs={"n": 20})
    assert of(made, "sums") == [("sum", 6, 24), ("sum", 12, 30), ("sum", 20, 38)]
    assert [[item["n"] for item in items] for _, *both in of(made, "twos") for items in both] == [[0, 2], [0, 20]]


SUMS = [("sum", 2, 7), ("sum", 12, 17), ("sum", 20, 25)]


@pytest.mark.parametrize(
    ("at", "change", "step", "differs"),
    [
        ("shown", {"outputs": {"n": 7}}, "windows", [("n", 2, 7)]),
        ("shown#0", {"outputs": {"n": 7}}, "sums_of_windows", SUMS),
        pytest.param("of_windows", {"inputs": {"n": 7}}, "sums_of_windows", SUMS, marks=pytest.mark.long),
        pytest.param("window", {"outputs": {"value": {"n": 9}}}, "windows", [("n", 2, 9)], marks=pytest.mark.long),
        ("wider", {"inputs": {"value": {"n": 9}}}, "wides", [("n", 2, 9), ("n", 12, 9)]),
    ],
)
def test_a_run_is_forked_behind_the_window_that_its_event_is_in(
    done: tuple[Lab, list[str]], at: str, change: dict[str, Any], step: str, differs: list[tuple[str, int, int]]
) -> None:
    assert of(fork(done, 2, at, **change), step) == differs


def test_what_neither_the_run_nor_its_window_came_to_is_refused(done: tuple[Lab, list[str]]) -> None:
    with pytest.raises(RunNotFound, match=r"shown#7 gave nothing in run .* that can be changed"):
        fork(done, 2, "shown#7", outputs={"n": 1})
    with pytest.raises(RunNotFound, match="grade was not called in run") as refused:
        fork(done, 2, "grade", lm="big")
    assert "behind a window or a batch" in str(refused.value.fix)


FLOW = """
from dspex import Topology

topology = Topology("flow")
topology.source("UNIQUE.in").batch(2, within="1h", name="two").sink("UNIQUE.out")
"""


@pytest.mark.long
def test_the_command_prints_what_follows_in_other_runs(tmp_path: Path, nats_url: str) -> None:
    project = Project(tmp_path, f"l{os.urandom(5).hex()}", 'topologies = ["flow:topology"]', NATS_URL=nats_url)
    project.write("flow.py", FLOW.replace("UNIQUE", project.u))
    with project.start("run", "--pools", "none") as run:
        run.until("ready")
        first, _ = (project.here("--json", "publish", project.input, f"n:={n}").objects()[0]["run"] for n in (1, 2))
        (closed,) = project.here("--json", "watch", f"{project.u}.out", "--start", "all", "--count", "1").objects()
        assert run.end() == 0, run.errors()
    out = project.here("fork", first, "--at", "two", "--input", "n:=5").out
    assert "later, in other runs:" in out
    assert f"…{closed['run'][-8:]}  {project.u}.out data" in out
    (said,) = project.here("--json", "fork", first, "--at", "two", "--set", "1.n:=5").objects()
    assert [one["b"] for one in said["later"]["diffs"]] == [[{"n": 1}, {"n": 5}]]
    assert said["later"]["open"] == []
    for command in (("runs", "show", said["run"]), ("diff", first, said["run"])):
        assert f"…{closed['run'][-8:]}  {project.u}.out data" in project.here(*command).out
        assert project.here("--json", *command).objects()[0]["later"] == said["later"]
    assert project.here("diff", first, said["run"]).code == 1
