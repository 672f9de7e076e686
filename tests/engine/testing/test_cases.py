"""`dspex test`: YAML cases that pass, fail with their line, are refused with what to do, and are written anew."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from cli_bench import Done, in_this_process

from dspex.engine.cli.topology.testing import wanted

BLOCK = """ # mine
        mail.urgent:
          - intent: found
          - { intent: more }

        # theirs
        mail.queue: 3
        calls: { classify: 1 }"""
Dspex = Callable[..., Done]
TOPOLOGY = """
dspex: 1
topology: triage
sources: { mail.in: {} }
nodes:
  classify: { from: mail.in, predict: "text -> intent, urgency: int" }
  branch: { from: classify, branch: ["urgency >= 4"] }
sinks: { mail.urgent: { from: branch.0 }, mail.queue: { from: branch.rest } }
"""
CASES = """\
topology: triage.yaml
cases:
  urgent mail is told:
    - answer: { classify: { intent: lost, urgency: 5 } }
    - publish: { mail.in: { text: help } }
      key: c1
    - expect: { mail.urgent: [ { intent: lost } ], mail.queue: [], calls: { classify: 1 } }
  it is asked again, also behind a crash:
    - answer: { classify: { intent: other, urgency: 1 } }
      after: 1s
    - fail: { classify: RateLimited }
      times: 2
    - publish: { mail.in: { text: hi } }
    - crash: all
    - advance: 40s
    - expect: { mail.queue: 1, calls: { classify: [ { error: RateLimited }, {}, { error: null } ] }, dead_letters: [] }
  what fails for good is a dead letter:
    - fail: { classify: ProgramError }
      message: no such thing
    - publish: { mail.in: { text: hi } }
    - expect: { dead_letters: [ { node: classify, reason: ProgramError, message: no such thing } ] }
"""


@pytest.fixture
def dspex(tmp_path: Path, no_settings: None, monkeypatch: pytest.MonkeyPatch) -> Dspex:
    """Commands in a folder with a topology and its cases."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("triage.yaml").write_text(TOPOLOGY)
    Path("triage_test.yaml").write_text(CASES)
    return in_this_process


def changed(old: str, new: str) -> None:
    """Another test file."""
    assert old in CASES
    Path("triage_test.yaml").write_text(CASES.replace(old, new, 1))


def test_cases_pass_and_each_is_told(dspex: Dspex) -> None:  # P4
    found = dspex("test")
    assert (found.code, found.err) == (0, "")
    assert found.out.splitlines() == [
        "triage_test.yaml::urgent mail is told PASSED",
        "triage_test.yaml::it is asked again, also behind a crash PASSED",
        "triage_test.yaml::what fails for good is a dead letter PASSED",
        "3 passed, 0 failed",
    ]


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("intent: lost } ]", "intent: found } ]", 7, 'mail.urgent[0].intent: "found" expected, got "lost"'),
        ("mail.queue: []", "mail.queue: [ {} ]", 7, "mail.queue: 1 expected, and there are 0: []"),
        ("calls: { classify: 1 }", "calls: { classify: 2 }", 7, "calls.classify: 2 expected, and there are 1: "),
        ("{ intent: lost } ]", "{ mood: bad } ]", 7, 'mail.urgent[0].mood: "bad" expected, and there is no mood: {'),
        (
            "    - answer: { classify: { intent: lost, urgency: 5 } }\n",
            "",
            4,
            "classify was called with {'text': 'help'} and has",
        ),
        (
            "    - expect: { dead_letters:",
            "    - expect: { mail.queue: [] }\n#",
            17,
            "1 dead letter(s) that the test did not ask",
        ),
    ],
)
def test_what_does_not_hold_fails_the_case_and_says_where(dspex: Dspex, old: str, new: str, line: int, says: str) -> None:
    changed(old, new)
    found = dspex("test", "--json")
    *cases, end = found.objects()
    (failed,) = [case for case in cases if case["outcome"] == "failed"]
    (failure,) = failed["failures"]
    assert (found.code, end["passed"], end["failed"]) == (1, 2, 1)
    assert (failed["file"], failure["line"]) == ("triage_test.yaml", line)
    assert failure["message"].startswith(says)


@pytest.mark.parametrize(
    ("old", "new", "line", "message", "fix"),
    [
        ("- crash: all", "- crsh: all", 14, "there is no step 'crsh'", "did you mean crash?"),
        ("- crash: all", "- crash: everything", 14, "crash cannot be 'everything'", "one of: engine, workers, all"),
        ("key: c1", "keey: c1", 6, "publish takes no 'keey'", "did you mean key?"),
        ("- publish: { mail.in", "- publish: { mail.inn", 5, "there is no source 'mail.inn'", "did you mean mail.in?"),
        ("mail.urgent: [", "mail.urgnt: [", 7, "there is no sink 'mail.urgnt'", "did you mean mail.urgent?"),
        ("answer: { classify:", "answer: { clasify:", 4, "there is no recorded node 'clasify'", "did you mean classify?"),
        ("calls: { classify: 1", "calls: { clasify: 1", 7, "there is no recorded node 'clasify'", "did you mean classify?"),
        ("RateLimited", "RateLimit", 11, "there is no error 'RateLimit'", "did you mean RateLimited?"),
        ("RateLimited", "{ a: 1 }", 11, "there is no error {'a': 1}", "one of: "),
        ("mail.queue: 1", "mail.queue: yes", 16, "mail.queue is a list of what it should have, and this is True", "expect: {"),
        ("key: c1", "at: tomorrow", 6, "at cannot be 'tomorrow'", "at: 2026-01-01T12:00:00Z"),
        ("advance: 40s", "advance: soon", 15, "'soon' is not a duration", 'write "10s"'),
        ("times: 2", "times: many", 12, "times cannot be 'many'", "times: 2"),
        ("topology: triage.yaml", "topolgy: triage.yaml", 1, "there is no key 'topolgy'", "did you mean topology?"),
        ("cases:\n", "cases: [\n", 2, "this is not YAML", "correct the syntax"),
    ],
)
def test_a_mistake_in_a_test_file_is_refused_with_its_line_before_any_case_runs(
    dspex: Dspex, old: str, new: str, line: int, message: str, fix: str
) -> None:
    changed(old, new)
    found = dspex("test", "--json")
    error = found.error()
    assert (found.code, found.out, error["code"]) == (2, "", "DX139")
    problem = next(p for p in error["problems"] if message in p["message"])
    assert problem["file"].endswith("triage_test.yaml")
    assert problem["fix"].startswith(fix)
    if "YAML" not in message:
        assert problem["line"] == line


def test_what_there_is_to_run_is_chosen_by_paths_and_by_an_expression(dspex: Dspex) -> None:
    Path("sub").mkdir()
    Path("sub/other_test.yaml").write_text(CASES.replace("triage.yaml", "../triage.yaml"))
    assert len(dspex("test", "-k", "urgent mail").out.splitlines()) == 3
    assert dspex("test", "sub", "-k", "not (urgent or crash)").out.splitlines()[0].startswith("sub/other_test.yaml::what fails")
    for args, says in (
        (["-k", "nothing"], "no case of 2 files is to be run"),
        (["missing_test.yaml"], "missing_test.yaml cannot be read"),
        (["x_test.py"], "x_test.py is Python"),
        (["-k", "a and or"], "-k 'a and or' cannot be read at or"),
        (["--faults", "crsh=0.1"], "there is no fault 'crsh'"),
        (["--faults", "crash=often"], "Faults(crash='often'): it is a rate"),
    ):
        found = dspex("test", "--json", *args)
        assert (found.code, found.error()["message"].startswith(says)) == (2, True), found.err


@pytest.mark.parametrize(
    ("expression", "right"),
    [
        ("", True),
        ("Urgent", True),
        ("a b", False),
        ("mail and not x", True),
        ("x or (told and mail)", True),
        ("not mail", False),
    ],
)
def test_an_expression_takes_a_case_as_pytest_would(expression: str, right: bool) -> None:
    assert wanted(expression)("triage_test.yaml::urgent mail is told") is right


def test_update_writes_what_came_and_leaves_the_rest_of_the_file(dspex: Dspex) -> None:
    text = CASES.replace("{ mail.urgent: [ { intent: lost } ], mail.queue: [], calls: { classify: 1 } }", BLOCK)
    Path("triage_test.yaml").write_text(text)
    found = dspex("test", "--update")
    assert (found.code, found.out.splitlines()[0]) == (0, "triage_test.yaml::urgent mail is told UPDATED")
    expected = text.replace("- intent: found\n          - { intent: more }", "[{intent: lost}]").replace("queue: 3", "queue: 0")
    assert Path("triage_test.yaml").read_text() == expected
    assert dspex("test").code == 0


STATEFUL = """
from dspex import Topology


def add(total, data, ctx):
    return {"sum": total["sum"] + data["n"], "last": data["n"]}, []


topology = Topology("sums")
topology.source("in").key_by("who").stateful(add, init=lambda: {"sum": 0}, name="total").sink("out")
"""
SUMS = """\
topology: "sums_of_test:topology"
cases:
  sums:
    - publish: { in: { who: a, n: 2 } }
    - publish: { in: { who: a, n: 3 } }
    - crash:
    - expect: { state: { total: { a: { sum: 5 }, b: null } } }
"""


def test_cases_look_at_state_behind_a_crash(dspex: Dspex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sums_of_test", None)  # is as before at the end
    del sys.modules["sums_of_test"]
    Path("sums_of_test.py").write_text(STATEFUL)
    Path("sums_test.yaml").write_text(SUMS)
    assert dspex("test", "sums_test.yaml").out.splitlines()[-1] == "1 passed, 0 failed"
    Path("sums_test.yaml").write_text(SUMS.replace("sum: 5", "sum: 6").replace("total:", "\n       total:"))
    assert "sums_test.yaml:8: state.total.a.sum: 6 expected, got 5" in dspex("test", "sums_test.yaml").out
    assert dspex("test", "--update", "sums_test.yaml").code == 0
    assert "{a: {sum: 5}" in Path("sums_test.yaml").read_text().replace("{ a", "{a")
    Path("sums_test.yaml").write_text(SUMS.replace("total:", "totl:"))
    problem = dspex("test", "--json", "sums_test.yaml").error()["problems"][0]
    assert (problem["message"].partition(";")[0], problem["fix"]) == (
        "there is no node with state 'totl'",
        "did you mean total?",
    )


ASKED = """
dspex: 1
topology: refunds
sources: { pay.in: {} }
nodes:
  ok: { from: pay.in, approve: {}, show: [amount] }
sinks: { pay.out: { from: ok } }
"""
DECIDED = """\
topology: refunds.yaml
cases:
  what waits longest is decided first:
    - publish: { pay.in: { amount: 5, who: a } }
    - publish: { pay.in: { amount: 7, who: b } }
    - expect: { approvals: [ { node: ok, shown: { amount: 5 } }, { shown: { amount: 7 } } ], pay.out: [] }
    - decide: { ok: accept }
      edit: { amount: 4 }
    - decide: { ok: reject }
      note: too much
    - expect:
        pay.out: [ { amount: 4, who: a } ]
        approvals: 0
        dead_letters: [ { node: ok, reason: Reject } ]
"""


def test_a_function_that_gives_something_else_is_told_with_what_to_do_about_that(
    dspex: Dspex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "by_chance.py").write_text(
        "import itertools\nfrom dspex import Topology\nnumbers = itertools.count()\ntopology = Topology('t')\n"
        "topology.source('in').map(lambda d: next(numbers)).sink('out')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    Path("chance_test.yaml").write_text("topology: 'by_chance:topology'\ncases:\n  one:\n    - publish: { in: 1 }\n")
    done = dspex("test", "chance_test.yaml")
    assert done.code == 1
    assert "chance_test.yaml:3: t: what in took gives something else when it is processed again" in done.out
    assert done.out.splitlines()[-2].startswith("  fix: take ctx.now, ctx.random and ctx.uuid()")
    assert "\\n" not in done.out


def test_cases_decide_about_what_waits_for_a_person(dspex: Dspex) -> None:
    Path("refunds.yaml").write_text(ASKED)
    cases = Path("refunds_test.yaml")
    cases.write_text(DECIDED)
    found = dspex("test", "refunds_test.yaml")
    assert found.out.splitlines()[-1] == "1 passed, 0 failed", found.out
    cases.write_text(DECIDED.replace("reason: Reject", "message: none"))
    assert ': too much"' in dspex("test", "refunds_test.yaml").out
    once = DECIDED.replace("    - publish: { pay.in: { amount: 7, who: b } }\n", "").replace(", { shown: { amount: 7 } }", "")
    cases.write_text(once)
    assert "refunds_test.yaml:8: nothing waits for a decision at ok" in dspex("test", "refunds_test.yaml").out
    cases.write_text(DECIDED.replace("ok: reject", "oke: rejekt"))
    problems = dspex("test", "--json", "refunds_test.yaml").error()["problems"]
    assert [(p["line"], p["message"].partition(";")[0], p["fix"]) for p in problems] == [
        (9, "there is no approve 'oke'", "did you mean ok?"),
        (9, "oke cannot be decided as 'rejekt'", "did you mean reject?"),
    ]
    valid = jsonschema_rs.validator_for(json.loads(dspex("test", "--schema").out)).is_valid
    assert [valid(yaml.safe_load(text)) for text in (DECIDED, DECIDED.replace("reject", "rejekt"))] == [True, False]


def test_cases_run_on_a_server_as_they_do_in_memory(dspex: Dspex) -> None:
    found = dspex("test", "--bus", "nats", "-k", "letter")
    assert (found.code, found.out.splitlines()[-1]) == (0, "1 passed, 0 failed"), found.out


def test_the_same_faults_come_of_the_same_seed_and_change_no_outcome(dspex: Dspex) -> None:
    for seed in ("2", "3"):
        found = dspex("test", "--seed", seed, "--faults", "duplicate=0.2,delay=50ms,crash=0.01", "-k", "crash")
        assert (found.code, found.out.splitlines()[-1]) == (0, "1 passed, 0 failed"), found.out


def test_the_schema_takes_what_is_right_and_no_misspelt_step(dspex: Dspex) -> None:
    schema = json.loads(dspex("test", "--schema").out)
    valid = jsonschema_rs.validator_for(schema).is_valid
    assert valid(yaml.safe_load(CASES))
    wrong: list[dict[str, Any]] = [
        yaml.safe_load(CASES.replace(old, new)) for old, new in (("crash:", "crsh:"), ("key:", "kay:"))
    ]
    assert [valid(w) for w in wrong] == [False, False]
