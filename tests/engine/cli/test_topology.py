"""`dspex init`, `check` and `show` as a shell sees them; none of them needs a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from dspex import __main__ as cli

PROBLEM = ["v", "code", "level", "topology", "node", "file", "line", "message", "fix"]
GOOD = """
dspex: 1
topology: good
sources: { in.a: {} }
nodes:
  big: { from: in.a, filter: "n > 1" }
  ask: { from: big, predict: "n: int -> word", lm: local }
  split: { from: ask, branch: ["word == 'a'"] }
  both: { from: [split.0, split.rest], merge: {} }
sinks: { out.a: { from: both } }
"""
BAD = """
dspex: 1
topology: bad
sources: { in.a: {} }
nodes:
  one: { from: two, filter: "n > 1" }
  two: { from: one, filter: "n > 1" }
  three: { from: in.a, filtr: "n > 1" }
  ask: { from: in.a, predict: "a -> b", pool: gpu, lm: huge }
sinks: { out.a: { from: ask }, out.b: { from: three } }
"""
Dspex = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def dspex(tmp_path: Path) -> Dspex:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NATS_", "DSPEX_"))}

    def run(*args: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dspex", *args]
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=20)

    return run


@pytest.mark.parametrize("options", [[], ["--yaml", "--no-key"]])
def test_a_new_project_is_valid_and_is_never_written_over_another(dspex: Dspex, tmp_path: Path, options: list[str]) -> None:
    made = dspex("--json", "init", "shop", *options)
    (said,) = map(json.loads, made.stdout.splitlines())
    assert (made.returncode, said["v"], len(said["next"])) == (0, 1, 3)
    assert all((tmp_path / file).is_file() for file in said["files"])
    assert ".dspex/" in (tmp_path / "shop/.gitignore").read_text()
    (tmp_path / "shop/below").mkdir()
    checked = dspex("check", "--strict", cwd=tmp_path / "shop/below")  # settings and what they name are found from below
    assert (checked.returncode, checked.stdout) == (0, "ok support-triage 7 nodes\n"), checked.stdout
    again = dspex("init", "shop")
    assert (again.returncode, "would be overwritten" in again.stderr) == (2, True)


def test_init_leaves_a_gitignore_that_is_there_alone(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("mine\n")
    assert dspex("init").returncode == 0
    assert (tmp_path / ".gitignore").read_text() == "mine\n"


def test_check_prints_every_problem_with_its_line_and_fix(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "good.yaml").write_text(GOOD)
    found = dspex("--json", "check", "bad.yaml", "good.yaml", "none.yaml", "none:x")
    problems: list[dict[str, Any]] = [json.loads(line) for line in found.stdout.splitlines()]
    assert (found.returncode, found.stderr) == (3, "")
    assert all(list(p) == PROBLEM and p["v"] == 1 and p["fix"] for p in problems)
    told = {(p["code"], p["node"], p["line"]) for p in problems}
    assert {("DX213", "two", 7), ("DX204", "three", 8), ("DX221", "none.yaml", None), ("DX221", "none:x", None)} <= told
    people = dspex("check", "good.yaml", "bad.yaml")
    assert people.stdout.splitlines()[0] == "ok good 6 nodes"
    assert "error[DX213] two (bad.yaml:7): node two is part of a cycle: one -> two -> one\n  fix: " in people.stdout


def test_check_knows_the_pools_and_models_of_the_settings(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(GOOD.replace("lm: local", "lm: [huge, local], pool: gpu"))
    found = dspex("check", "t.yaml")
    assert found.returncode == 3
    assert "error[DX133] ask (t.yaml:7): there is no pool 'gpu'" in found.stdout
    assert "error[DX111] ask (t.yaml:7): there is no language model 'huge'" in found.stdout


def test_warnings_are_errors_only_when_asked(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(GOOD.replace("[split.0, split.rest], merge: {}", "split.0, set: { x: n }"))
    mild, strict = dspex("check", "t.yaml"), dspex("check", "t.yaml", "--strict")
    assert (mild.returncode, strict.returncode) == (0, 3)
    assert strict.stdout.startswith("warning[DX321] split (t.yaml:8): nothing uses outlet rest")
    assert mild.stdout == f"{strict.stdout}ok good 6 nodes, 1 warning\n"


def test_a_module_that_raises_is_the_users_error_and_not_ours(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text("import os\nos.nothing\n")
    found = dspex("check", "raises:topology")
    assert found.returncode == 3
    assert "'raises:topology' cannot be imported: AttributeError" in found.stdout
    assert "(raises.py:2)" in found.stdout
    assert "Traceback" not in found.stdout + found.stderr
    nobody = dspex("check")
    assert (nobody.returncode, "error[DX135]" in nobody.stderr) == (2, True)


def test_show_draws_the_tree(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    text = dspex("show", "good.yaml").stdout.splitlines()
    assert text[0].startswith("good ")
    assert text[0].endswith("6 nodes; 1 stage; pools lightweight")
    width = text[1].index("source")
    assert [line[:width].rstrip() for line in text[1:8]] == [
        "in.a",
        "└ big",
        "  └ ask",
        "    └ split",
        "      ├ .0 both",
        "      │ └ out.a",
        "      └ .rest both",
    ]
    assert text[7].endswith("as above")


def test_show_writes_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process: a subprocess for each would only cost time."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(GOOD)

    def show(*args: str) -> str:
        assert cli.main(["show", *args]) == 0
        return capsys.readouterr().out

    (tmp_path / "again.yaml").write_text(show("good.yaml", "--as", "yaml"))
    first, second = (json.loads(show(f, "--as", "json")) for f in ("good.yaml", "again.yaml"))
    assert (first["v"], first["digest"], first["pools"]) == (1, second["digest"], ["lightweight"])
    assert show("good.yaml", "--as", "mermaid").startswith("flowchart LR\n")
    jsonschema_rs.validate(json.loads(show("--schema")), yaml.safe_load(GOOD))
    assert cli.main(["show", "good.yaml", "--as", "asyncapi"]) == 2
