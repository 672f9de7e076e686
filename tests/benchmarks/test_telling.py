"""`scripts/bench telemetry`: it compares an engine and a pool that tell what they do with those that do not."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts of that folder import each other by name

from jobs.telling import costs, silence

from dspex.bus import telemetry


def test_where_nobody_listens_a_run_says_nothing_and_looks_a_few_times() -> None:
    often = silence.per_run(20)
    assert often["said"] == 0
    assert 0 < often["looks"] <= 10
    assert silence.looks_of_a_pool() > 0
    assert type(telemetry).__name__ == "module"  # it is as it was


@pytest.mark.long
@pytest.mark.asyncio
async def test_spans_and_metrics_are_sent_and_each_way_is_measured_beside_the_others() -> None:
    before = dict(os.environ)
    args = argparse.Namespace(seconds=0.3, rounds=1, events=300, parts=["runs", "events"], sampled=1.0)
    found, came = await costs.measure(args)
    assert os.environ == before
    assert {part: list(rows) for part, rows in found.items()} == {part: list(costs.WAYS) for part in ("runs", "events")}
    assert came["spans"] >= 300
    assert came["metrics"] > 0
    assert len(costs.tables(costs.medians(found), {})) == 5


def test_a_table_of_costs_shows_each_way_beside_the_one_that_is_silent() -> None:
    rows = {way: {"engine": cpu, "pool": 100.0} for way, cpu in zip(costs.WAYS, (100.0, 103.0, 150.0))}
    silent = {"said": 0.0, "looks": 4.0, "emit, ns": 90.0, "look, ns": 20.0, "engine": 0.08, "pool": 0.1}
    lines = costs.tables({"runs": rows}, silent)
    assert lines[1].split()[-6:] == ["100.0", "1.00x", "103.0", "1.03x", "150.0", "1.50x"]
    assert "0.08 µs, 0.08 % of what it uses" in lines[-2]
