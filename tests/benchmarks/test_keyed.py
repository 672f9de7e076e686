"""`scripts/bench keyed`: it gives what it compares. How fast anything is, is no matter here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts of that folder import each other by name

import keyed


@pytest.mark.long
@pytest.mark.asyncio
async def test_a_hop_gives_a_figure_for_many_events_and_for_one_by_one(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed, "HOPS", (1,))
    monkeypatch.setattr(keyed, "ONE_BY_ONE", 3)
    found = await keyed.hops(nats_url, lambda: 1.0, argparse.Namespace(events=100, rounds=1))
    assert list(found) == ["1"]
    assert {key: len(rounds) for key, rounds in found["1"].items()} == {"rate": 1, "cpu": 1, "server": 1, "ms": 1}
    assert all(found["1"][key][0] > 0 for key in ("rate", "cpu", "ms"))


def test_the_table_of_keyed_shows_each_beside_the_first() -> None:
    row = {"rate": 10_000.0, "cpu": 60.0, "server": 40.0}
    hops = {"0": {**row, "ms": 1.0}, "1": {**row, "rate": 5000.0, "ms": 2.0}}
    lines = keyed.table({"hops": hops, "processes": {"1": row, "2": {**row, "rate": 18_000.0}}})
    assert lines[2].split() == ["1", "5,000", "0.50x", "60.0", "40.0", "2.00", "ms"]
    assert lines[-1].split() == ["2", "18,000", "1.80x", "60.0", "40.0", "(goal:", "at", "least", "1.7)"]
