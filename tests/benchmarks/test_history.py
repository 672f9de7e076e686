"""`scripts/bench runs`: it asks what it says, of a stream that engines wrote. How fast anything is, is no matter here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts of that folder import each other by name

from history import runs, stored


@pytest.mark.asyncio
async def test_runs_of_the_begin_the_middle_and_the_end_are_found_whether_done_or_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "CHUNK", 40)
    args = argparse.Namespace(messages=200, rounds=1, store=tmp_path, only="show")
    found = await runs.measure(args)
    shown = {
        f"show {topology} {place} {kind}" for topology in stored.TOPOLOGIES for place in stored.PLACES for kind in stored.KINDS
    }
    assert shown == found["seconds"].keys()
    assert found["stream"]["messages"] >= 200


def test_the_table_of_runs_names_what_takes_too_long() -> None:
    figures = {"stream": {"messages": 5, "runs": 2}, "seconds": {"ls": [0.1, 0.3, 0.2], "@last": [1.2]}, "commands": {}}
    assert [line.split() for line in runs.table(figures)[3:]] == [
        ["ls", "0.200", "s", "0.300", "s"],
        ["@last", "1.200", "s", "1.200", "s", "too", "long"],
    ]
