"""`dspex eval`: a candidate is judged by recorded runs, on a real server, with a stand-in for the model's server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cli_bench import Done, Project, stand_in
from standin import StandIn, intent

import dspex.sync
from dspex import Settings, Topology
from dspex.bus.errors import ConfigError, Unreachable
from dspex.bus.port import Bus
from dspex.bus.records import CallRecord, CallRequest
from dspex.engine.judge import evaluate

TOPOLOGY = """
dspex: 1
topology: triage
sources: {{ {u}.in: {{}} }}
nodes:
  classify: {{ from: {u}.in, predict: "text -> intent: Literal['card','rate']", retry: {{ attempts: 1 }} }}
  ask: {{ from: classify, {ask} }}
  draft: {{ from: ask, predict: "{draft}", {state}retry: {{ attempts: 1 }} }}
sinks: {{ {u}.out: {{ from: draft }} }}
"""
SAME, POLITE, FEWER = ('set: {{ asked: "text" }}', """set: {{ text: "text + ' please'" }}""", 'filter: "n != 1"')
SETTINGS = """
topologies = ["triage.yaml"]
lm.main = {{ model = "openai/stand-in", base_url = "{url}", price = {{ input = 1.0, output = 2.0 }} }}
"""
METRICS = """
def length(expected, actual):
    if "broken" in str(actual):
        raise RuntimeError("no such thing")
    return len(actual["reply"]) / len(expected["reply"])
"""
FIELDS = [{"prefix": f"{name}:", "description": f"${{{name.lower()}}}"} for name in ("Text", "Reply")]
STATE: dict[str, object] = {"demos": []}
TEXTS = ["my card was stolen", "what is the rate", "lost it", "broken beyond repair"]


class Past(Project):
    """A project with runs that have ended. `model`: the stand-in. `runs`: their ids, in the order of TEXTS."""

    model: StandIn
    runs: list[str]

    def candidate(self, name: str, ask: str = SAME, draft: str = "text -> reply", state: str = "writer@1") -> str:
        saved = f"state: {state}, " if state else ""
        return self.write(f"{name}.yaml", TOPOLOGY.format(u=self.u, ask=ask.format(), draft=draft, state=saved))

    def eval(self, *args: str, candidate: str | None = None) -> Done:
        return self.here("eval", *args, *(["--with", candidate] if candidate is not None else []))

    def judged(self, *args: str, candidate: str | None = None) -> tuple[Done, list[dict[str, object]], dict[str, object]]:
        """What it says with --json: all, cases, summary."""
        done = self.eval("--json", *args, candidate=candidate)
        *cases, summary = done.objects()
        return done, sorted(cases, key=lambda case: self.runs.index(str(case["run"]))), summary


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory, nats_url: str) -> Iterator[Past]:
    model = StandIn()
    with stand_in(model) as url:
        one = Past(tmp_path_factory.mktemp("eval"), f"e{os.urandom(5).hex()}", SETTINGS.format(url=url), NATS_URL=nats_url)
        one.model = model
        for instructions in ("Answer.", "Answer in short."):
            one.write("state.json", json.dumps(STATE | {"signature": {"instructions": instructions, "fields": FIELDS}}))
            assert one.here("programs", "put", "writer", "state.json").code == 0
        one.candidate("triage")
        one.write("metrics_of_mine.py", METRICS)
        with one.start("run") as run:
            run.until("ready")
            rows = [{"text": text, "n": n, "label": "card"} for n, text in enumerate(TEXTS)]
            found = one.publish("-", stdin="".join(f"{json.dumps(row)}\n" for row in rows))
            one.runs = [row["run"] for row in found.objects()]
            yield one
            assert run.end() == 0, run.errors()


def test_what_has_not_changed_is_read_back_and_costs_nothing(past: Past) -> None:
    asked = past.model.stats()["requests"]
    done, cases, found = past.judged("--metric", "f1", "--policy", "no worse than 0")
    assert (done.code, found["passed"], found["before"], found["mean"], found["missing"]) == (0, True, 1.0, 1.0, 0)
    assert (found["served"], found["called"], found["tokens"], found["cost"]) == (8, 0, 0, 0.0)
    assert ([case["run"] for case in cases], {case["after"] for case in cases}) == (past.runs, {1.0})
    assert past.model.stats()["requests"] == asked


def test_only_what_changed_is_paid(past: Past) -> None:
    asked = past.model.stats()["requests"]
    more = past.candidate("more", draft="text -> reply, tone", state="")
    done, cases, found = past.judged("--metric", "f1", "--field", "reply", candidate=more)
    assert (done.code, found["mean"], found["served"], found["called"]) == (0, 1.0, 4, 4)
    assert past.model.stats()["requests"] == asked + 4
    assert found["tokens"] == sum(int(str(case["tokens"])) for case in cases) > 0
    assert float(str(found["cost"])) > 0
    _, _, found = past.judged("--metric", "f1", "--field", "reply", candidate=past.candidate("saved", state="writer@2"))
    assert (found["passed"], found["served"], found["called"]) == (True, 4, 4)
    for version, called in (("2", 4), ("1", 0)):  # an alias is what it names when it is judged
        assert past.here("programs", "promote", "writer", version, "best").code == 0
        best = past.candidate("best", state="writer@best")
        _, _, found = past.judged("--metric", "f1", "--field", "reply", candidate=best)
        assert (found["passed"], found["served"], found["called"]) == (True, 8 - called, called)


def test_a_metric_that_cannot_be_imported_is_the_users_error_whatever_it_raises(past: Past) -> None:
    for name, line, said in (("leaves", "raise SystemExit(0)", "SystemExit: 0"), ("raises", "1 / 0", "ZeroDivisionError")):
        past.write(f"{name}_of_mine.py", f"{line}\n")
        done = past.eval("--metric", f"{name}_of_mine:fn")
        assert (done.code, f"cannot be imported: {said}" in done.err) == (3, True), done


def test_what_got_worse_is_told_the_worst_first_and_a_policy_decides(past: Past) -> None:
    polite = past.candidate("polite", POLITE)
    done, cases, found = past.judged("--metric", "f1", "--policy", "no worse than 0.02", candidate=polite)
    assert (done.code, found["held"], found["passed"], found["regressions"], found["missing"]) == (1, False, False, 4, 0)
    assert 0 < float(str(found["mean"])) < 1
    human = past.eval("--metric", "f1", "--policy", "no worse than 90%", candidate=polite)
    assert human.code == 0
    worst = min(cases, key=lambda case: float(str(case["after"])))
    lines = human.out.splitlines()
    assert lines[0].startswith("f1 of triage  4 runs since 7d, 4 judged, 4 worse")
    assert lines[3].startswith(f"worse   {worst['run']}  1.0000 → 0.")
    assert lines[-1] == "passed: no worse than 0.9: held"
    assert past.eval("--metric", "f1", "--policy", "at least 0.99", candidate=polite).code == 1


def test_a_label_of_the_event_says_what_is_right(past: Past) -> None:
    right = [float(intent(text, ["card", "rate"]) == "card") for text in TEXTS]
    _, cases, _ = past.judged("--metric", "exact_match", "--expected", "label", "--field", "intent")
    assert [case["after"] for case in cases] == [case["before"] for case in cases] == right
    done, cases, found = past.judged("--metric", "exact_match", "--expected", "label", "--field", "intend")
    assert (done.code, found["judged"]) == (1, 0)
    assert {case["missing"] for case in cases} == {"no output has a field 'intend': say which is compared (--field)"}
    _, cases, _ = past.judged("--metric", "exact_match", "--expected", "tag", "--field", "intent")
    assert {case["missing"] for case in cases} == {"its event has no tag"}


def test_a_case_that_cannot_be_judged_fails_and_is_named(past: Past, tmp_path: Path) -> None:
    fewer, file = past.candidate("fewer", FEWER), tmp_path / "junit.xml"
    done, cases, found = past.judged("--metric", "f1", "--policy", "at least 0.5", "--junit", str(file), candidate=fewer)
    assert (done.code, found["held"], found["passed"], found["missing"]) == (1, True, False, 1)
    assert cases[1]["missing"] == f"not sent any more: {past.output}#0"
    (suite,) = ElementTree.parse(file).getroot()
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("5", "1")
    failed = [case.attrib["name"] for case in suite if case.find("failure") is not None]
    assert failed == [past.runs[1]]
    review = past.eval("--metric", "f1", "--field", "reply", "--as", "markdown", candidate=fewer).out
    assert review.startswith("**failed: 1 could not be judged**, `f1` of `triage`: 4 runs since 7d, 3 judged, 0 worse")
    assert f"| `{past.runs[1]}` | 1.0000 | - |  | not sent any more: {past.output}#0 |" in review


def test_a_function_is_a_metric_and_where_it_fails_the_case_is_missing(past: Past) -> None:
    done, cases, _ = past.judged("--metric", "metrics_of_mine:length")
    assert (done.code, [case["after"] for case in cases]) == (1, [1.0, 1.0, 1.0, None])
    assert "metrics_of_mine:length raised RuntimeError: no such thing" in str(cases[3]["missing"])


def test_an_earlier_evaluation_is_a_baseline_and_a_run_of_it_that_is_gone_is_missing(past: Past, tmp_path: Path) -> None:
    polite, file = past.candidate("polite", POLITE), tmp_path / "before.jsonl"
    file.write_text(past.eval("--json", "--metric", "f1", candidate=polite).out)
    policy = ["--baseline", str(file), "--policy", "no worse than 0.001"]
    _, cases, found = past.judged("--metric", "f1", *policy, candidate=polite)
    assert (found["passed"], found["change"], found["before"]) == (True, 0.0, found["mean"])
    assert {case["before"] for case in cases} != {1.0}
    text = file.read_text().replace(past.runs[0], "00000000-0000-7000-8000-000000000000")
    file.write_text(text)
    done = past.eval("--json", "--metric", "f1", *policy, candidate=polite)
    (missing,) = (case for case in done.objects() if case.get("missing") and case["kind"] == "case")
    assert (done.code, missing["run"]) == (1, "00000000-0000-7000-8000-000000000000")


def test_a_budget_ends_the_asking_and_says_so(past: Past) -> None:
    asked = past.model.stats()["requests"]
    more = past.candidate("again", draft="text -> reply, mood", state="")
    done, cases, found = past.judged("--metric", "f1", "--field", "reply", "--budget", "1", "-c", "1", candidate=more)
    assert (done.code, found["called"], found["stopped"]) == (1, 1, "the budget of 1 tokens is spent")
    assert past.model.stats()["requests"] == asked + 1
    assert sum("budget" in str(case["missing"]) for case in cases) == 3
    _, cases, found = past.judged("--metric", "f1", "--limit", "2", candidate="triage.yaml")
    assert ([case["run"] for case in cases], found["more"]) == (past.runs[2:], True)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--metric", "f2"], "no metric 'f2'"),
        (["--metric", "nowhere:f"], "cannot be imported"),
        (["--metric", "f1", "--policy", "better"], "is no policy"),
        (["--metric", "f1", "--baseline", "nothing.jsonl"], "cannot be read"),
        (["--metric", "f1", "--baseline", "metrics_of_mine.py"], "is no evaluation"),
        (["--metric", "f1", "--topology", "triag"], "no topology 'triag'"),
        (["--metric", "f1", "--expected", "a", "--field", "b,c"], "one label"),
        (["--metric", "f1", "--expected", "a"], "which field of outputs"),
    ],
)
def test_what_is_no_evaluation_is_refused_before_anything_is_done(past: Past, args: list[str], said: str) -> None:
    assert said in past.here("--json", "eval", *args).error()["message"]


def test_what_is_no_fault_of_a_run_ends_it(past: Past) -> None:
    same = (past.folder / past.candidate("there", state="writer@2")).read_text()
    file = past.write("gpu.yaml", same.replace("state: writer@2", "state: writer@2, pool: gpu"))
    done = past.eval("--json", "--metric", "f1", candidate=file)
    assert (done.code, done.error()["message"], done.out) == (5, "pool gpu has no worker", "")


def test_where_the_server_goes_in_the_middle_what_was_paid_is_told(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = evaluate.made, list[CallRequest]()

    async def twice(bus: Bus, app: str, pool: str, request: CallRequest) -> CallRecord:
        asked.append(request)
        if len(asked) > 2:
            raise Unreachable("it is gone")
        return await made(bus, app, pool, request)

    monkeypatch.setattr(evaluate, "made", twice)
    other = past.candidate("other", draft="text -> reply, way", state="")
    done, cases, found = past.judged("--metric", "f1", "--field", "reply", "-c", "1", candidate=other)
    assert (done.code, found["judged"], found["missing"], found["stopped"]) == (1, 2, 2, "it is gone")
    assert [case["missing"] for case in cases] == ["it is gone", "it is gone", "", ""]
    assert int(str(found["tokens"])) > 0


def test_what_people_say_is_credited_to_the_saved_state_that_answered(past: Past) -> None:
    for run, value in zip(past.runs, ("1", "0")):
        assert past.here("runs", "score", run, "helpful", value, "--node", "draft").code == 0
    (credit,) = past.here("--json", "runs", "scores", "--topology", "triage").objects()
    assert (credit["program"], credit["node"], credit["lm"]) == ("writer@1", "draft", "main")
    assert (credit["runs"], credit["mean"], credit["lowest"]) == (2, 0.5, 0.0)
    assert past.here("--json", "programs", "show", "writer@1").objects()[0]["scores"] == [credit]
    assert (
        past.here("programs", "show", "writer@1").out.splitlines()[-1]
        == "score helpful of draft  mean 0.5 of 2, lowest 0  main"
    )
    assert past.here("--json", "programs", "show", "writer@2").objects()[0]["scores"] == []


def test_a_client_judges_a_topology_of_its_program(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if Path(folder) != past.folder])
    settings = Settings.load(past.folder / "dspex.toml", server__url=past.env["NATS_URL"])
    candidate = Topology.load(str(past.folder / past.candidate("client", POLITE)))
    with dspex.sync.connect(settings=settings) as client:
        found = client.evaluate(candidate, lambda expected, actual: float(expected == actual), since="1h")
        assert (found.mean, len(found.cases), len(found.regressions), found.passed) == (0.0, 4, 4, True)
        assert client.evaluate(candidate, "f1", since="0s").passed is False
        text = f'from dspex import Topology\ntopology = Topology.load("{past.folder}/client.yaml")\n'
        past.write("candidate_of_mine.py", text)
        assert client.evaluate("candidate_of_mine:topology", "f1", since="1h").regressions
        with pytest.raises(ConfigError, match="no metric"):
            client.evaluate(candidate, "f2", since="1h")
