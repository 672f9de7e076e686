"""What takes seconds is left out by `scripts/test`, which says so, and is run by continuous integration."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_cover  # it runs none of our code
ROOT = Path(__file__).parents[2]
PYTHON = f"""#!/bin/sh
[ "$1" = -m ] || exec '{sys.executable}' "$@"
shift
echo "$*"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One that scripts/setup takes for ready, whose Python says what it would run."""
    made_from = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "requirements.lock"))
    (tmp_path / "ready-dev").write_text(f"{hashlib.sha256(made_from).hexdigest()} {sys.version}\n")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return {**os.environ, "SETUP_VENV": str(tmp_path), "SETUP_LATEST": ""}


@pytest.mark.parametrize(
    ("given", "pytests"),
    [
        ("", "pytest -n # --dist worksteal -m not long"),
        ("--cov", "pytest --cov --cov-fail-under=0 -n # --dist worksteal -m not long"),
        ("--long", "pytest -n CORES --dist worksteal"),
        ("--cov --long", "pytest --cov -n CORES --dist worksteal"),
        ("tests/bus -k server", "pytest tests/bus -k server"),
        ("--cov tests/bus", "pytest --cov --cov-fail-under=0 tests/bus"),
        ("--long tests/bus", "pytest tests/bus"),
    ],
)
def test_the_script_leaves_out_long_tests_only_where_no_test_is_named(
    environment: dict[str, str], given: str, pytests: str
) -> None:
    cores = os.cpu_count() or 1
    done = subprocess.run([ROOT / "scripts/test", *given.split()], env=environment, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (
        pytests.replace("#", str(cores + (cores + 1) // 2)).replace("CORES", str(cores)),
        "",
    )


def test_continuous_integration_leaves_out_no_test() -> None:
    assert "scripts/test --cov --long\n" in (ROOT / ".ci/run").read_text()


@pytest.mark.long
@pytest.mark.parametrize("processes", [["-n", "2"], []], ids=["in several processes", "in one"])
def test_it_is_told_how_many_tests_are_left_out_and_how_to_run_them(processes: list[str]) -> None:
    command = [sys.executable, "-m", "pytest", *processes, "-m", "not long", "tests/chaos/test_processes.py"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=80).stdout
    assert "2 passed" in told
    assert "3 long tests were left out: scripts/test --long runs them too" in told
