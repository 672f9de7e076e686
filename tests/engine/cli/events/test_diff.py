"""`dspex diff` and `dspex runs export` as a shell sees them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cli_bench import NATIVE, Project

KEYS = ["same", "first", "steps", "tokens", "cost"]


def test_two_runs_are_compared_with_an_exit_code_for_continuous_integration(native: Project) -> None:
    runs = [one["run"] for one in native.publish("-", stdin='{"text":"abc"}\n{"text":"abcd"}\n{"text":"abc"}\n').objects()]
    same = native.here("--json", "diff", runs[0], runs[2])
    (said,) = same.objects()
    assert (same.code, list(said), said["same"], said["steps"]) == (0, KEYS, True, [])
    other = native.here("--json", "diff", "@last-2", "@last-1")
    (said,) = other.objects()
    assert (other.code, said["same"], said["first"]) == (
        1,
        False,
        {"step": f"{native.input}#0", "field": "text", "a": "abc", "b": "abcd"},
    )
    human = native.here("diff", runs[0], runs[1]).out.splitlines()
    assert human[0].startswith(f"a  …{runs[0][-8:]}  native ")
    assert human[-1] == "     size             3 → 4"
    assert native.here("diff", runs[0], runs[2]).out.splitlines()[-1] == "same"
    assert f"| `{native.output}#0` | size | 3 | 4 |" in native.here("diff", runs[0], runs[1], "--as", "markdown").out
    assert native.here("diff", runs[0], runs[2], "--fields", "size").code == 0
    refused = native.here("--json", "diff", runs[0], runs[1], "--fields", "siez")  # nothing would ever differ in it
    assert (refused.code, refused.error()["code"], refused.error()["fix"]) == (2, "DX105", "did you mean size?")


def test_a_run_is_written_to_a_file_that_says_all_of_it(native: Project, tmp_path: Path) -> None:
    (run,) = (one["run"] for one in native.publish("-", stdin='{"text":"abc"}\n').objects())
    file = tmp_path / "run.jsonl"
    (said,) = native.here("--json", "runs", "export", run, "-o", str(file)).objects()
    assert (said["file"], said["bytes"]) == (str(file), file.stat().st_size)
    head, *rows = (json.loads(line) for line in file.read_text().splitlines())
    assert (head["v"], head["kind"], head["id"], head["topology"]) == (1, "run", run, "native")
    assert [(row["kind"], row["data"]) for row in rows] == [("source", {"text": "abc"}), ("output", {"text": "abc", "size": 3})]
    replayed = native.here("--json", "replay", "--file", str(file))
    assert (replayed.code, replayed.objects()[0]["same"]) == (0, True)
    changed = NATIVE.format(u=native.input.removesuffix(".in")).replace('"len(text)"', '"len(text) + 1"')
    other = native.here("--json", "replay", "--file", str(file), "--with", str(native.write("more.yaml", changed)))
    assert (other.code, other.objects()[0]["diverged"]["field"], other.error()["code"]) == (6, "size", "DX801")
    nowhere = str(tmp_path / "no" / "run.jsonl")
    for wrong in (["runs", "export", run, "-o", nowhere], ["replay", "--file", nowhere]):
        assert f"{nowhere} cannot be" in native.here("--json", *wrong).error()["message"]
    assert native.here("--json", "replay", "--topology", "native", "--until", "soon").error()["code"] == "DX105"
    file.write_text(re.sub(r',"hash":"[^"]*"', "", file.read_text()).replace('"topology":"native"', '"topology":"other"', 1))
    assert native.here("--json", "replay", "--file", str(file)).error()["code"] == "DX235"


def test_several_runs_are_written_to_a_folder_which_is_replayed(native: Project, tmp_path: Path) -> None:
    texts = "".join(f'{{"text":"{"a" * n}"}}\n' for n in range(3, 8))
    runs = [one["run"] for one in native.publish("-", stdin=texts).objects()]
    folder = tmp_path / "runs"
    (said,) = native.here("--json", "runs", "export", "--topology", "native", "-o", str(folder)).objects()
    assert (said["files"], said["running"], said["left_out"]) == (count := len([*folder.iterdir()]), 0, 0)
    native.here("runs", "export", runs[2], "-o", str(tmp_path / "one.jsonl"))
    assert {*runs} <= {file.stem for file in folder.iterdir()}
    assert (folder / f"{runs[2]}.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    whole = native.here("--json", "replay", "--file", str(folder))
    assert whole.code == 0, whole.err
    (said,) = whole.objects()
    assert (said["same"], said["runs"]) == (True, count)
    changed = NATIVE.format(u=native.input.removesuffix(".in")).replace('"len(text)"', '"len(text) * 2 - 3"')
    more = str(native.write("more.yaml", changed))
    other = native.here("--json", "replay", "--file", str(folder), "--with", more)
    assert (other.code, other.error()["code"]) == (6, "DX801")
    (said,) = other.objects()
    differ = [Path(one["file"]).stem for one in said["files"]]
    assert [run for run in differ if run in runs] == runs[1:]  # of three characters it is the same
    assert {(one["step"], one["field"]) for one in said["files"]} == {(f"{native.output}#0", "size")}
    human = native.here("replay", "--file", str(folder), "--with", more).out
    assert f"differs {folder / differ[0]}.jsonl: at {native.output}#0 (size)" in human
    for wrong in (["-o", str(folder)], [runs[0], "--failed", "-o", str(folder)]):
        assert native.here("--json", "runs", "export", *wrong).error()["code"] == "DX105"
    (tmp_path / "empty").mkdir()
    assert native.here("--json", "replay", "--file", str(tmp_path / "empty")).error()["code"] == "DX501"


def test_an_imported_run_is_kept_beyond_the_logs_and_found_by_every_verb(native: Project, tmp_path: Path) -> None:
    (run,) = (one["run"] for one in native.publish("-", stdin='{"text":"abc"}\n').objects())
    file = tmp_path / "run.jsonl"
    native.here("runs", "export", run, "-o", str(file))
    (said,) = native.here("--json", "runs", "import", str(file)).objects()
    assert (said["id"], said["status"], said["kept"]) == (run, "done", "imported")
    assert native.here("runs", "ls", "--limit", "1").out.splitlines()[1].split()[:4] == [run, "native", "done,", "imported"]
    assert native.here("runs", "show", run).out.splitlines()[0].endswith("  imported")
    assert (native.here("replay", run).out.splitlines()[-1], native.here("diff", run, run).code) == ("same", 0)
    assert native.here("runs", "forget", "--run", run, "--yes").out == f"removed: {run}\n"
    assert native.here("--json", "runs", "show", run).objects()[0]["kept"] == ""
    refused = {"DX125": ["--run", run], "DX105": ["--run", run, "--session", "s"]}
    assert {native.here("--json", "runs", "forget", *args, "--yes").error()["code"] for args in refused.values()} == {*refused}
    said = native.here("--json", "runs", "forget", "--session", "s", "--yes").error()
    assert (said["code"], "dead letters, scores and streams of others" in said["message"]) == ("DX125", True)
    file.write_text(file.read_text().replace('"abc"', '"abd"', 1))
    assert "line 2: not the file of a run" in native.here("--json", "runs", "import", str(file)).error()["message"]
    assert native.here("audit", "ls").out.count(" import ") == 1
