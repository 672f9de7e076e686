"""`scripts/bench ingest`: each part runs and gives what it compares. How fast anything is, is no matter here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts of that folder import each other by name

import ingest


@pytest.mark.long
@pytest.mark.asyncio
async def test_each_way_to_store_rows_gives_a_figure(nats_url: str, tmp_path: Path) -> None:
    (tmp_path / "dspex.toml").write_text('app = "bench"\n')
    rates = await ingest.measure(nats_url, tmp_path, rows=100, rounds=1)
    assert list(rates) == ["plain", "client", "file", "file, all of it", "limit"]
    assert all(rate > 0 for rate in rates.values())


def test_the_table_of_ingest_shows_each_beside_the_plain_loop() -> None:
    lines = ingest.table({"plain": 2000.0, "file": 20_000.0})
    assert lines[-1].split() == ["file", "20,000", "10.00x", "(goal:", "at", "least", "8)"]
