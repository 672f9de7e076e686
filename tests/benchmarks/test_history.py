"""`scripts/bench runs` and `replay`: they do what they say with what engines wrote. How fast that is, is no matter here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts of that folder import each other by name

from history import banking, replay, runs, stored


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.asyncio
@pytest.mark.skipif(banking.topology is None, reason="there is no banking77")
async def test_a_replay_gives_the_same_bytes_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "LATENCY", 0.01)
    monkeypatch.setattr(replay, "_replayed", lambda found: 0.5)
    found = await replay.measure(argparse.Namespace(runs=20, rounds=1))
    assert found["live"]["requests"] == 20
    assert found["only nats-server"]
    for what in replay.WAYS:
        assert (found[what][0]["same"], found[what][0]["runs"]) == (True, 20)


def test_the_table_of_replays_says_how_much_faster_they_are_and_what_is_not_the_same() -> None:
    one = {"seconds": 0.2, "same": True, "runs": 1000, "ports": [4222]}
    figures = {"live": {"seconds": 20.0, "requests": 1000}, "server": [one], "files": [{**one, "same": False, "seconds": 10.0}]}
    figures |= {"processes": [one], "alone": [one]}
    figures |= {"command": [0.9], "export": 1.5, "only nats-server": True, "no network": True}
    lines = replay.table(figures)
    assert "100.0x live, byte by byte the same, 0 requests  (goal: at least 50x)" in lines[2]
    assert "2.0x live, NOT THE SAME" in lines[4]
    assert not replay.good(figures)
