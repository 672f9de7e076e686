"""`dspex runs ls`, `show` and `wait` as a shell sees them, on a real server with a running engine."""

from __future__ import annotations

import json

import pytest
from cli_bench import Project

INFO = ["id", "topology", "digest", "parent", "status", "started", "finished", "calls", "usage", "dead_letters", "kept"]
TOLD = ["kind", "id", "cause", "node", "label", "time", "where", "data", "error", "attempts", "recorded"]
SCORED = [*INFO, "scores"]


def publish(project: Project, *texts: str) -> list[str]:
    """The runs of texts, when they have ended."""
    found = project.publish("-", stdin="".join(f"{json.dumps({'text': text})}\n" for text in texts))
    return [one["run"] for one in found.objects()]


def test_runs_are_listed_the_latest_first_for_people_and_machines(native: Project) -> None:
    runs = publish(native, "abc", "x", "abcd")
    infos = native.here("--json", "runs", "ls", "--limit", "3").objects()
    assert [list(info) for info in infos] == [SCORED] * 3
    assert [info["id"] for info in infos] == runs[::-1]
    assert [(info["status"], info["dead_letters"]) for info in infos] == [("done", 0), ("failed", 1), ("done", 0)]
    (failed,) = native.here("--json", "runs", "ls", "--failed", "--limit", "1").objects()
    assert failed["id"] == runs[1]
    table = native.here("runs", "ls", "--limit", "3").out.splitlines()
    assert table[0].split() == ["run", "topology", "status", "started", "took", "spent", "letters"]
    assert [line.split()[0] for line in table[1:]] == runs[::-1]
    assert native.here("runs", "ls", "--since", "0s").err == "no runs\n"
    assert native.here("--json", "runs", "ls", "--topology", "nativ").error()["code"] == "DX235"


def test_runs_are_listed_by_what_has_become_of_them(native: Project) -> None:
    good, bad = publish(native, "abc", "x")
    for status, run in (("done", good), ("failed", bad)):
        infos = native.here("--json", "runs", "ls", "--status", status).objects()
        assert (infos[0]["id"], {info["status"] for info in infos}) == (run, {status})
    assert native.here("runs", "ls", "--status", "cancelled").err == "no runs with status cancelled\n"
    unknown = native.here("--json", "runs", "ls", "--status", "finished")
    assert (unknown.code, unknown.error()["code"], "'running', 'done'" in unknown.error()["message"]) == (2, "DX105", True)
    assert native.here("--json", "runs", "ls", "--failed", "--status", "done").error()["code"] == "DX105"


def test_a_run_is_shown_with_what_came_of_it(native: Project) -> None:
    good, bad = publish(native, "abc", "x")
    info, source, check, size, output = native.here("--json", "runs", "show", good).objects()
    assert (list(info), info["status"]) == ([*SCORED, "builds"], "done")
    assert [list(one) for one in (source, output)] == [TOLD] * 2
    assert [list(one) for one in (check, size)] == [[*TOLD, "note", "gives"]] * 2
    assert [one["recorded"] for one in (source, check, size, output)] == [True, False, False, True]
    assert [(one["label"], one["note"]) for one in (check, size)] == [("check#0", "passes"), ("count#0", "")]
    assert size["gives"] == [{"outlet": 0, "data": {"text": "abc", "size": 3}}]
    assert (source["kind"], source["data"], source["cause"]) == ("source", {"text": "abc"}, "")
    assert (output["kind"], output["cause"], output["data"]) == ("output", good, {"text": "abc", "size": 3})
    human = native.here("runs", "show", good[-8:]).out.splitlines()
    assert human[0].startswith(f"run {good}  native  done in ")
    assert human[2] == "~ is made again with the code that is here; all else is recorded"
    assert human[-3:-1] == ["└─ ~ check#0  passes", '   ~ count#0  {"text":"abc","size":3}']
    assert human[-1].startswith("   +")
    assert human[-1].endswith('out  {"text":"abc","size":3}')
    shown = native.here("runs", "show", "@last").out
    assert bad in shown
    assert "dead letter at check" in shown
    assert "InvalidInput[DX502]" in shown


def test_the_causes_of_a_step_are_explained_back_to_the_source(native: Project) -> None:
    (run,) = publish(native, "abc")
    chain = native.here("--json", "runs", "explain", run, native.output).objects()
    assert [(one["step"], one["cause"], one["recorded"]) for one in chain] == [
        (native.input, "", True),
        ("check#0", run, False),
        ("count#0", "check#0", False),
        (native.output, run, True),
    ]
    lines = native.here("runs", "explain", run, native.output).out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["└─", "~"], ["└─", "~"], ["└─", "→"]]
    error = native.here("--json", "runs", "explain", run, "outt").error()
    assert (error["code"], "no step" in error["message"]) == ("DX622", True)


def test_who_waits_for_a_run_gets_its_end_and_an_exit_code(native: Project) -> None:
    good, bad = publish(native, "abc", "x")
    waited = native.here("--json", "runs", "wait", good)
    assert (waited.code, [one["status"] for one in waited.objects()]) == (0, ["done"])
    assert native.here("--json", "runs", "wait", bad).code == 1


@pytest.mark.parametrize("run", ["nothing", "@last-9999999", "00000000-0000-7000-8000-000000000000", "@first"])
def test_a_run_that_is_not_there_is_an_error(native: Project, run: str) -> None:
    for verb in ("show", "wait"):
        found = native.here("--json", "runs", verb, run)
        assert (found.code, found.error()["code"]) == (1, "DX622")


def test_without_its_code_or_with_another_one_a_run_is_shown_as_it_is_recorded(native: Project) -> None:
    (run,) = publish(native, "abc")
    text = (native.folder / "native.yaml").read_text()
    native.write("louder.yaml", text.replace('"len(text)"', '"len(text) + 1"'))
    native.write("other.yaml", text.replace("topology: native", "topology: another"))
    settings = (native.folder / "dspex.toml").read_text()
    try:
        for file, why in (("louder", "gives something else at s1.0@"), ("other", "no topology 'native'")):
            native.write("dspex.toml", settings.replace("native.yaml", f"{file}.yaml"))
            found = native.here("--json", "runs", "show", run)
            assert [one["kind"] for one in found.objects()[1:]] == ["source", "output"]
            assert "values between are not shown: " in found.err
            assert why in found.err
    finally:
        native.write("dspex.toml", settings)
    forced = native.here("runs", "show", run, "--with", str(native.folder / "louder.yaml")).out.splitlines()
    assert "here, which is not that of then;" in forced[2]
    assert "other build: graph: " in forced[3]
    assert '   ~ count#0  {"text":"abc","size":4}' in forced
    assert native.here("--json", "runs", "show", run, "--with", str(native.folder / "other.yaml")).error()["code"] == "DX235"


def test_a_dry_run_of_forgetting_says_what_there_is_and_removes_nothing(native: Project) -> None:
    native.publish("-", "--session", "ann", stdin='{"text": "abc"}\n')
    for _ in range(2):
        rows = native.here("--json", "runs", "forget", "--session", "ann", "--dry-run").objects()
        assert {(row["what"], row["count"], row["removed"]) for row in rows} == {
            ("events of sources", 1, False),
            ("events of sinks", 1, True),
        }
    assert "stays, unreadable" in native.here("runs", "forget", "--session", "ann", "--dry-run").out
    refused = native.here("--json", "runs", "forget", "--session", "ann", "--yes").error()
    assert (refused["code"], "1 events of sinks in" in refused["message"]) == ("DX125", True)
    assert native.here("--json", "runs", "forget", "--run", "x", "--dry-run").error()["code"] == "DX105"
