"""`scripts/bench pipeline --against REF`: what it refuses, and what it says of what it compared. Nothing is measured here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))  # scripts of that folder import each other by name

import against  # noqa: E402

Refused = Callable[..., tuple[object, str, str]]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command with these arguments: its exit code, output and errors."""

    def run(*args: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["against.py", *args])
        with pytest.raises(SystemExit) as ended:
            against.main()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in place of this one."""
    monkeypatch.setattr(against, "ROOT", tmp_path)
    who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    for args in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "One"]):
        subprocess.run(["git", *args], cwd=tmp_path, check=True)
    return tmp_path


def test_an_unknown_commit_is_refused_in_words_of_our_own(refused: Refused) -> None:
    said = "bench: there is no commit, branch or tag 'no-such-branch' in this repository\n"
    assert refused("--against", "no-such-branch") == (2, "", said)


@pytest.mark.parametrize(("option", "number"), [("--events", "0"), ("--rounds", "-1"), ("--events", "many")])
def test_a_number_below_one_is_refused(refused: Refused, option: str, number: str) -> None:
    code, _, said = refused("--against", "HEAD", f"{option}={number}")
    assert code == 2
    assert f"argument {option}: '{number}' is not a number of at least 1" in said


def test_uncommitted_changes_are_mentioned(repository: Path) -> None:
    commit = against.commit_of("HEAD")
    assert against.compared(commit, "HEAD") == f"working tree: {commit[:10]}; HEAD: {commit[:10]}"
    (repository / "new.py").touch()
    assert against.compared(commit, "HEAD") == f"working tree: {commit[:10]}, with uncommitted changes; HEAD: {commit[:10]}"


def test_more_than_fifteen_per_cent_is_slower_and_one_round_proves_little() -> None:
    lines, slow = against.verdict({against.NOW: [1.16], "main": [1.0]}, "main", 100)
    assert (slow, lines[-2]) == (True, "SLOWER: 1.16 times as long as main; allowed are 1.15")
    assert "one round proves little" in lines[-1]
    lines, slow = against.verdict({against.NOW: [1.1, 9.0, 1.1], "main": [1.0, 1.0, 1.0]}, "main", 100)
    assert (slow, lines[-1]) == (False, "ok: 1.10 times as long as main; allowed are 1.15")
