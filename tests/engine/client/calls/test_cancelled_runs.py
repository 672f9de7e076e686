"""A run that somebody cancels: its calls end in their workers, and everybody else's go on."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_bench import Project, Running, stand_in
from standin import StandIn
from waiting import eventually

SETTINGS = """
topologies = ["two.yaml"]
server.local = {{ port = -1 }}
lm.main = {{ model = "openai/stand-in", base_url = "{url}" }}
pools.lightweight = {{ size = 1, slots = 2 }}
"""
TWO = """
dspex: 1
topology: two
sources: {{ {u}.in: {{}} }}
nodes:
  ask: {{ from: {u}.in, predict: "text -> label", retry: {{ attempts: 3 }} }}
  again: {{ from: ask, predict: "text, label -> reply" }}
sinks: {{ {u}.out: {{ from: again }} }}
"""


@pytest.fixture(scope="module")
def model() -> StandIn:
    return StandIn()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, model: StandIn) -> Iterator[Project]:
    app = f"t{uuid.uuid4().hex[:12]}"
    with stand_in(model) as url:
        made = Project(tmp_path_factory.mktemp("project"), app, SETTINGS.format(url=url))
        made.write("two.yaml", TWO.format(u=app))
        yield made


@pytest.fixture(scope="module")
def running(project: Project) -> Iterator[Running]:
    """One for all tests, each of which leaves its pool idle: a start costs two seconds of a core."""
    with project.start("run") as run:
        run.until("ready in")
        yield run
        assert run.end() == 0, run.errors()


def published(project: Project, text: str) -> str:
    (said,) = project.here("--json", "publish", project.input, f"text={text}").objects()
    return str(said["run"])


def letter_of(project: Project, run: str) -> dict[str, Any]:
    (letter,) = [one for one in project.here("--json", "dlq", "ls").objects() if one["run"] == run]
    return letter


def status(project: Project, run: str) -> str:
    return str(project.here("--json", "runs", "show", run).objects()[0]["status"])


def test_cancelling_a_run_closes_the_connection_to_its_model_and_leaves_other_runs_alone(
    project: Project, running: Running, model: StandIn
) -> None:
    model.gate.clear()
    run, other = published(project, "standin:hang"), published(project, "standin:gate")
    eventually(lambda: model.running == 2)
    (said,) = project.here("--json", "runs", "cancel", run).objects()
    assert said == {"run": said["run"], "topology": "two", "status": "cancelled", "calls": 1, "approvals": 0}
    model.go_on()
    assert project.here("runs", "wait", other, "--timeout", "60s").code == 0
    eventually(lambda: model.running == 0)
    letter = letter_of(project, said["run"])
    assert (letter["reason"], letter["node"], letter["event"]["data"]) == ("Cancelled", "ask", {"text": "standin:hang"})
    assert (status(project, run), status(project, other)) == ("cancelled", "done")
    cancelled = [e["what"] for e in project.here("--json", "audit", "ls").objects() if e["verb"] == "cancel"]
    assert {"run": said["run"], "calls": 1, "approvals": 0} in cancelled


def test_a_cancelled_call_is_not_retried_and_can_be_redriven(project: Project, running: Running, model: StandIn) -> None:
    model.fault("once", "hang")
    run = published(project, "once")
    eventually(lambda: model.running == 1)
    (said,) = project.here("--json", "runs", "cancel", run).objects()
    asked = model.requests
    model.fault("once", "ok")
    assert project.here("dlq", "redrive", str(letter_of(project, said["run"])["sequence"])).code == 0
    assert project.here("runs", "wait", run, "--timeout", "60s").code == 0
    assert status(project, run) == "done"
    assert model.requests == asked + 2


def test_calls_that_wait_for_a_slot_are_not_made(project: Project, running: Running, model: StandIn) -> None:
    model.gate.clear()
    busy = [published(project, "standin:gate"), published(project, "standin:gate")]
    eventually(lambda: model.running == 2)
    waiting = published(project, "never asked")
    told = project.here("runs", "cancel", waiting)
    assert (told.code, "a call ends when it would begin" in told.err) == (0, True)
    model.go_on()
    for run in busy:
        assert project.here("runs", "wait", run, "--timeout", "60s").code == 0
    eventually(lambda: status(project, waiting) == "cancelled")
    assert model.texts["never asked"] == 0


def test_a_run_that_is_over_is_left_as_it_is(project: Project, running: Running) -> None:
    run = published(project, "hello")
    assert project.here("runs", "wait", run, "--timeout", "60s").code == 0
    assert json.loads(project.here("--json", "runs", "cancel", run).out)["calls"] == 0
    assert status(project, run) == "done"


def test_where_no_worker_is_there_to_end_a_call_that_is_said(tmp_path: Path, unique: str) -> None:
    project = Project(tmp_path, unique, SETTINGS.format(url="http://127.0.0.1:9"))
    project.write("two.yaml", TWO.format(u=unique))
    with project.start("run", "--pools", "none") as run:
        run.until("ready in")
        found = project.here("--json", "runs", "cancel", published(project, "hello")).error()
        assert (found["code"], found["node"]) == ("DX601", "lightweight")
        assert run.end() == 0
