"""The gateway beside an app: each part is asked and measured, and the table says what is beside what."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts of that folder import each other by name

from jobs.over_http import beside


@pytest.mark.long
@pytest.mark.asyncio
async def test_each_part_is_asked_over_http_and_each_process_has_its_part_of_the_cpu() -> None:
    found = await beside.measure(0.3, 1, beside.PARTS, rate=20.0)
    assert list(found) == ["publish", "call", "stream"]
    for rows in found.values():
        assert list(rows["dspex"]["cpu"]) == ["gateway", "server", "engine", "pool", "children"]
        assert rows["dspex"]["p50"] > 0


@pytest.mark.long
@pytest.mark.asyncio
async def test_the_model_s_server_sees_that_who_asked_has_gone_in_a_call_and_in_a_stream() -> None:
    found = await beside.measure_gone(2)
    assert {part: row["times"] for part, row in found.items()} == {"call": 2, "stream": 2}
    assert all(0 < row["p50"] <= row["most"] for row in found.values())
    assert len(beside.table_gone(found)) == 2


def test_a_table_says_how_much_later_the_gateway_answers() -> None:
    app = {"rate": 90.0, "p50": 2.0, "p99": 4.0, "kept": 1.0, "cpu": {"app": 5000.0}}
    ours = {**app, "p50": 5.5, "kept": 0.5, "cpu": {"gateway": 700.0}}
    _, first, second = beside.table({"call": {"fastapi": app, "dspex": ours}})
    assert first.split() == ["call", "fastapi", "90", "2.00", "4.00", "app", "5,000"]
    assert second.split()[:7] == ["call", "dspex", "90", "5.50", "4.00", "3.50", "ms"]
    assert second.endswith("requests were left over")
