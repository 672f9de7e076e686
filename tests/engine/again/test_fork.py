"""Runs are forked through the command line: a real server, an engine, a pool, and a stand-in for the model's server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from cli_bench import Project, stand_in
from standin import StandIn

import dspex.sync
from dspex import Settings
from dspex.bus.errors import ConfigError

SETTINGS = """
topologies = ["triage.yaml"]
lm.main = {{ model = "openai/stand-in", base_url = "{url}", price = {{ input = 1.0, output = 2.0 }} }}
lm.big = {{ model = "openai/stand-in", base_url = "{url}", price = {{ input = 10.0, output = 20.0 }} }}
"""
TRIAGE = """
dspex: 1
topology: triage
sources: {{ {u}.in: {{}} }}
nodes:
  clean: {{ from: {u}.in, set: {{ text: "{clean}" }} }}
  classify: {{ from: clean, predict: "text -> kind: Literal['good','bad'], urgency: int", retry: {{ attempts: 1 }} }}
  urgent: {{ from: classify, branch: ["urgency >= 3"] }}
  draft: {{ from: urgent.0, predict: "text, kind -> reply", retry: {{ attempts: 1 }} }}
sinks:
  {u}.replies: {{ from: draft }}
  {u}.queue: {{ from: urgent.rest }}
"""


@pytest.fixture(scope="module")
def server() -> StandIn:
    return StandIn()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, nats_url: str, server: StandIn) -> Iterator[Project]:
    """A project whose topology and pool run."""
    with stand_in(server) as url:
        made = Project(tmp_path_factory.mktemp("fork"), f"f{os.urandom(5).hex()}", SETTINGS.format(url=url), NATS_URL=nats_url)
        made.write("triage.yaml", TRIAGE.format(u=made.u, clean="strip(text)"))
        with made.start("--json", "run") as run:
            run.until('"ready"')
            yield made
            assert run.end() == 0, run.errors()


@pytest.fixture(scope="module")
def run(project: Project) -> str:
    """A run that was urgent: two calls."""
    for text in ("a", "b", "c", "d", "e", "f"):
        (said,) = project.here("--json", "publish", project.input, f"text=word {text}", "--wait", "60s").objects()
        if said["calls"] == 2:
            return str(said["run"])
    raise AssertionError("none was urgent")


def fork(project: Project, *args: str) -> dict[str, Any]:
    found = project.here("--json", "fork", *args)
    assert found.code == 0, found.err
    return found.objects()[0]


def test_with_another_model_that_call_is_made_and_what_hangs_on_it(project: Project, run: str, server: StandIn) -> None:
    before = server.stats()["requests"]
    made = fork(project, run, "--at", "classify", "--lm", "big", "--diff")
    assert (made["parent"], made["at"], made["served"], made["called"]) == (run, "classify", 1, 1)  # the answer is the same
    assert made["tokens"] > 0
    assert server.stats()["requests"] == before + 1
    assert [(s["step"], s["field"]) for s in made["diff"]["steps"]] == [("classify#0", "lm")]
    (kept, *_) = project.here("--json", "runs", "show", made["run"]).objects()
    assert (kept["id"], kept["parent"], kept["calls"]) == (made["run"], run, 2)
    assert f"fork of …{run[-8:]} at classify" in project.here("runs", "show", "@last").out
    different = project.here("diff", run, made["run"])
    assert different.code == 1
    assert f"fork of …{run[-8:]} at classify" in different.out


def test_with_another_output_what_depends_on_it_follows(project: Project, run: str) -> None:
    made = fork(project, run, "--at", "classify#0", "--set", "urgency:=1", "--diff")
    assert (made["served"], made["called"], made["tokens"]) == (1, 0, 0)
    steps = {(s["step"], s["field"]) for s in made["diff"]["steps"]}
    assert {("classify#0", "urgency"), ("draft#0", None), (f"{project.u}.queue#0", None)} <= steps
    replayed = project.here("--json", "replay", made["run"])
    assert (replayed.code, replayed.objects()[0]["same"]) == (0, True), replayed.out + replayed.err


@pytest.mark.parametrize("at", ["classify", "clean"])
def test_with_another_input_of_a_call_or_of_an_operator(project: Project, run: str, at: str) -> None:
    made = fork(project, run, "--at", at, "--input", "text=something new", "--diff")
    assert made["called"] >= 1
    assert ("classify#0", "in.text") in {(s["step"], s["field"]) for s in made["diff"]["steps"]}


def test_with_other_code_and_calls_that_ask_the_same_are_read_back(project: Project, run: str) -> None:
    other = project.write("loud.yaml", TRIAGE.format(u=project.u, clean="upper(text)"))
    made = fork(project, run, "--at", "clean", "--with", str(project.folder / other))
    assert (made["served"], made["called"] >= 1) == (0, True)
    same = project.write("same.yaml", TRIAGE.format(u=project.u, clean="text"))
    made = fork(project, run, "--at", "clean", "--with", str(project.folder / same))
    assert (made["served"], made["called"], made["tokens"], made["changed"]) == (2, 0, 0, False)
    assert "changed nothing: " in project.here("fork", run, "--at", "clean", "--with", str(project.folder / same)).out


def test_a_replay_with_calls_has_an_exit_code_and_a_table_for_continuous_integration(project: Project, run: str) -> None:
    other = str(project.folder / project.write("noisy.yaml", TRIAGE.format(u=project.u, clean="upper(text)")))
    hybrid = ("replay", run, "--with", other, "--mode", "hybrid")
    differs = project.here("--json", *hybrid, "--exit-code")
    (said,) = differs.objects()
    assert (differs.code, said["same"], said["tokens"] > 0, said["cost"] > 0) == (1, False, True, True)
    assert ("classify#0", "in.text") in {(step["step"], step["field"]) for step in said["steps"]}
    assert project.here(*hybrid).code == 0
    assert "| `classify#0` | in.text |" in project.here(*hybrid, "--as", "markdown").out
    assert project.here("replay", run, "--mode", "hybrid", "--exit-code").code == 0
    assert project.here("replay", run, "--as", "markdown").out.endswith("**same**\n")


def test_its_outputs_reach_the_sinks_only_where_that_is_asked_for(project: Project, run: str) -> None:
    def queue() -> list[Any]:
        found = project.here("--json", "watch", f"{project.u}.queue", "--start", "all", "--count", str(count)).objects()
        return [one["data"]["urgency"] for one in found]

    project.here("--json", "publish", project.input, "text=word a", "--wait", "60s")
    assert "delivered" in (made := fork(project, run, "--at", "classify", "--set", "urgency:=-7"))
    assert made["delivered"] == 0
    assert fork(project, run, "--at", "classify", "--set", "urgency:=-8", "--deliver")["delivered"] == 1
    count = 1
    while queue()[-1] != -8:
        count += 1
    assert -7 not in queue()


def test_what_cannot_be_forked_says_so(project: Project, run: str) -> None:
    def refused(*args: str) -> tuple[int, str]:
        found = project.here("--json", "fork", *args)
        return found.code, found.error()["code"]

    assert refused(run, "--at", "classify") == (2, "DX105")
    assert refused(run, "--at", "classify", "--lm", "big", "--set", "kind=bad") == (2, "DX105")
    assert refused(run, "--at", "classify", "--lm", "bigg") == (2, "DX105")
    assert refused(run, "--at", "clean", "--lm", "big") == (2, "DX105")
    assert refused(run, "--at", "classify#7", "--lm", "big")[1] == "DX622"
    assert refused(run, "--at", "classify", "--program", "draft@9")[1] == "DX627"


def test_from_python_a_fork_is_a_run(project: Project, run: str) -> None:
    settings = Settings.load(project.folder / "dspex.toml", server__url=project.env["NATS_URL"])
    with dspex.sync.connect(settings=settings) as client:
        made = client.fork(run, "classify", outputs={"urgency": 1})
        assert made.info().parent == run
        assert client.diff(run, made).steps
        with pytest.raises(ConfigError, match="one thing, and this is lm, inputs"):
            client.fork(run, "classify", lm="big", inputs={"text": "x"})
        found = client.replay(run, mode="hybrid")
        assert (found.same, found.live) == (True, 0)


@pytest.mark.long
def test_who_is_killed_while_it_forks_leaves_no_half_of_one(project: Project, run: str, server: StandIn) -> None:
    before = {one["id"] for one in project.here("--json", "runs", "ls").objects()}
    command = [sys.executable, "-m", "dspex", "fork", run, "--at", "classify", "--input", "text=standin:hang"]
    process = subprocess.Popen(command, cwd=project.folder, env=project.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    asked = server.stats()["requests"]
    while server.stats()["requests"] == asked and process.poll() is None:
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert {one["id"] for one in project.here("--json", "runs", "ls").objects()} == before
    assert fork(project, run, "--at", "classify", "--lm", "big")["called"] == 1


@pytest.mark.parametrize(("change", "said"), [("--set", "has no output 'urgncy'"), ("--input", "has no input 'urgncy'")])
def test_a_field_that_a_call_has_not_got_is_refused_and_nothing_is_kept(
    project: Project, run: str, change: str, said: str
) -> None:
    before = project.here("--json", "runs", "ls").objects()[0]["id"]
    error = project.here("--json", "fork", run, "--at", "classify", change, "urgncy:=1").error()
    assert (error["code"], said in error["message"]) == ("DX105", True), error
    assert project.here("--json", "runs", "ls").objects()[0]["id"] == before


@pytest.mark.parametrize(
    ("at", "change", "said", "fix"),
    [
        ("classify", ("--set", "urgency=five"), 'classify: urgency: int, and "five" is none', "urgency:=1, as JSON"),
        ("classify#0", ("--set", "kind=god"), "classify: kind: Literal['good', 'bad']", "kind=good, of bad, good"),
        ("draft", ("--set", "reply:=5"), "draft: reply: str, and 5 is none", "reply=5, as text"),
        ("draft", ("--set", 'reply:={"a": 1}'), "draft: reply: str", "reply=text"),
    ],
)
def test_a_value_that_no_program_could_have_given_is_refused_and_nothing_is_kept(
    project: Project, run: str, at: str, change: tuple[str, str], said: str, fix: str
) -> None:
    before = project.here("--json", "runs", "ls").objects()[0]["id"]
    error = project.here("--json", "fork", run, "--at", at, *change).error()
    assert (error["code"], said in error["message"], fix in str(error)) == ("DX105", True, True), error
    assert project.here("--json", "runs", "ls").objects()[0]["id"] == before


def test_a_value_in_words_is_kept_as_its_type_has_it(project: Project, run: str) -> None:
    made = fork(project, run, "--at", "classify", "--set", "urgency=1", "--diff")
    assert [s["b"] for s in made["diff"]["steps"] if s["field"] == "urgency"] == [1]


def test_a_replay_of_many_runs_goes_on_without_those_that_still_run_and_says_which(project: Project, run: str) -> None:
    (begun,) = project.here("--json", "publish", project.input, "text=standin:hang").objects()
    runs = project.here("--json", "runs", "ls").objects()[0]
    span = f"{begun['seq'] - 1}:{begun['seq']}"
    found = project.here("--json", "replay", "--range", span, "--mode", "hybrid")
    (said,) = found.objects()
    assert (said["runs"], said["same"], said["running"]) == (1, True, [runs["id"]])
    assert (found.code, found.error()["code"]) == (6, "DX802")
    told = project.here("replay", "--range", span, "--mode", "hybrid").out
    assert f"left out, not over: …{runs['id'][-8:]}" in told
    (whole,) = project.here("--json", "replay", "--topology", "triage", "--mode", "hybrid").objects()
    assert (whole["runs"] > 1, whole["running"]) == (True, [runs["id"]])
    (listed,) = project.here("--json", "runs", "ls", "--status", "running").objects()
    assert listed["id"] == runs["id"]
    assert project.here("runs", "cancel", runs["id"]).code == 0
