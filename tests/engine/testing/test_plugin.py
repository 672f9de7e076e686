"""The fixture `dspex_driver`, in a pytest of its own, as a project has it that installs dspex."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from dspex.engine.testing import plugin

TESTS = """
import sys

import pytest


def topology():
    from dspex import Topology
    t = Topology("small")
    t.source("in").predict("text -> label", name="ask").sink("out")
    return t


def test_nothing_is_imported_before_it_is_used():
    assert [name for name in sys.modules if name.startswith("dspex.") and "testing" not in name] == ["dspex.engine"]


def test_it_makes_drivers(dspex_driver):
    for seed in (1, 2):
        d = dspex_driver(topology(), seed=seed)
        d.answer("ask", {"label": "a"})
        d.publish("in", {"text": "hi"})
        assert d.outputs("out")[0]["label"] == "a"


def test_a_letter_that_nobody_asked_for_fails_the_test(dspex_driver):
    d = dspex_driver(topology())
    d.fail("ask", ValueError("no"))
    d.publish("in", {"text": "hi"})


def test_that_fails_is_told_alone(dspex_driver):
    d = dspex_driver(topology())
    d.fail("ask", ValueError("no"))
    d.publish("in", {"text": "hi"})
    assert d.outputs("out") == [1]


@pytest.fixture
def broken(dspex_driver):
    dspex_driver(topology())
    raise ValueError("a fixture")


def test_whose_fixture_fails(broken):
    pass
"""


def test_the_fixture_makes_drivers_that_end_with_their_test(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", plugin.__name__, "-p", "no:cacheprovider", "-rA", "--no-header"]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200"}
    found = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    outcomes = dict(re.findall(r"^[A-Z]+ test_it.py::(\w+) ?-? ?(.*)$", found.stdout, re.MULTILINE))
    assert outcomes.keys() >= {"test_nothing_is_imported_before_it_is_used", "test_it_makes_drivers"}, found.stdout
    assert outcomes["test_it_makes_drivers"] == ""
    assert outcomes["test_a_letter_that_nobody_asked_for_fails_the_test"].startswith("AssertionError: 1 dead letter(s)")
    assert outcomes["test_that_fails_is_told_alone"].startswith("assert [] == [1]")
    assert "2 failed, 2 passed, 1 error in" in found.stdout


def test_pytest_finds_the_fixture_where_dspex_is_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"dspex": plugin.__name__}
