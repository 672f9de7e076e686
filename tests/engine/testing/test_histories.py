"""Exported runs as tests, in a pytest of its own, as a project has it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_lab import Lab

from dspex.engine.testing import plugin

MakeLab = Callable[..., Lab]

MODULE = """
from dspex import Topology

topology = Topology("sized")
topology.source("in").map(lambda d: {{**d, "size": len(d["text"]){more}}}, name="size").sink("out")
"""
CONFIG = "[pytest]\ndspex_histories = runs\ndspex_topologies = sized:topology\npythonpath = .\n"


def pytest_of(folder: Path, *more: str, config: str = CONFIG, module: str = MODULE) -> subprocess.CompletedProcess[str]:
    (folder / "sized.py").write_text(module.format(more="".join(more)))
    (folder / "pytest.ini").write_text(config)
    command = [sys.executable, "-B", "-m", "pytest", "-p", plugin.__name__, "-p", "no:cacheprovider", "--no-header"]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.long
def test_each_run_of_a_folder_is_a_test_that_fails_with_the_diff(lab: MakeLab, tmp_path: Path) -> None:
    space: dict[str, Any] = {}
    exec(MODULE.format(more=""), space)
    one = lab(space["topology"])
    one.start()
    (tmp_path / "runs").mkdir()
    for text in ("ab", "abcd"):
        run = one.client.run(one.publish("in", {"text": text}))
        one.advance(1)
        one.run(run.export(tmp_path / "runs" / f"{text}.jsonl"))
    (tmp_path / "other.jsonl").write_text("no run, and in no folder of runs")
    good = pytest_of(tmp_path)
    assert "2 passed" in good.stdout, good.stdout
    changed = pytest_of(tmp_path, ' + (d["text"] == "abcd")')
    assert "1 failed, 1 passed" in changed.stdout, changed.stdout
    assert "!  out#0" in changed.stdout
    assert "size             4 → 5" in changed.stdout
    assert "Traceback" not in changed.stdout
    harmless = pytest_of(tmp_path, " + 1", config=f"{CONFIG}dspex_harmless = size\n")
    assert "2 passed" in harmless.stdout, harmless.stdout
    nothing = pytest_of(tmp_path, config=CONFIG.replace("sized:topology", "sized:topologie"))
    assert "give module:attr" in nothing.stdout + nothing.stderr


ASKING = """
from dspex import Topology

topology = Topology("sized")
read = topology.source("in").map(lambda d: {{"text": d["text"]{more}, "size": 1}}, name="size")
read.predict("text -> label", name="ask").sink("out")
"""


@pytest.mark.long
def test_a_call_that_has_no_answer_and_a_damaged_file_fail_with_what_is_wrong_alone(lab: MakeLab, tmp_path: Path) -> None:
    space: dict[str, Any] = {}
    exec(ASKING.format(more=""), space)
    one = lab(space["topology"])
    one.answers["ask"] = lambda inputs, work: {"label": "L"}
    one.start()
    one.work()
    (folder := tmp_path / "runs" / "of" / "june").mkdir(parents=True)
    for text in ("ab", "abcd"):
        run = one.client.run(one.publish("in", {"text": text}))
        one.advance(1)
        one.run(run.export(folder / f"{text}.jsonl"))
    good = pytest_of(tmp_path, module=ASKING)  # of folders below, too
    assert "2 passed" in good.stdout, good.stdout
    other = pytest_of(tmp_path, ' + "!"', config=f"{CONFIG}dspex_harmless = text size\n", module=ASKING)
    assert "2 failed" in other.stdout, other.stdout  # what a model is asked is never harmless
    assert "stopped at ask#0: its input is not the recorded one" in other.stdout
    assert "text: ab → ab!" in other.stdout
    file = folder / "ab.jsonl"
    file.write_text(file.read_text().replace('"label":"L"', '"label":"M"'))
    damaged = pytest_of(tmp_path, module=ASKING)
    assert "1 failed, 1 passed" in damaged.stdout, damaged.stdout
    assert "line 3: not the file of a run: it was changed" in damaged.stdout
    assert "Traceback" not in other.stdout + damaged.stdout


def test_what_is_harmless_hides_nothing_else(lab: MakeLab, tmp_path: Path) -> None:
    space: dict[str, Any] = {}
    exec(MODULE.format(more=""), space)
    one = lab(space["topology"])
    one.start()
    run = one.client.run(one.publish("in", {"text": "ab"}))
    one.advance(1)
    (tmp_path / "runs").mkdir()
    one.run(run.export(tmp_path / "runs" / "ab.jsonl"))
    changed = ', "more": len(d["text"])'
    found = pytest_of(tmp_path, changed, config=f"{CONFIG}dspex_harmless = size\n")
    assert "1 failed" in found.stdout, found.stdout
    assert "more             nothing → 2" in found.stdout
    both = pytest_of(tmp_path, " + 1" + changed, config=f"{CONFIG}dspex_harmless = size more\n")
    assert "1 passed" in both.stdout, both.stdout


def test_a_topology_is_needed_to_replay_with(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one.jsonl").write_text("{}")
    found = pytest_of(tmp_path, config=CONFIG.replace("dspex_topologies = sized:topology\n", ""))
    assert 'dspex_topologies = ["module:attr"]' in found.stdout + found.stderr
