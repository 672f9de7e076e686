"""The same events give the same results on a real server: straight, with kills, with 1, 3, then 2 processes."""

from __future__ import annotations

import asyncio

import pytest
from golden_run import WAYS, events, expected, run


@pytest.mark.asyncio
async def test_kills_and_processes_that_come_and_go_change_no_result_of_keyed_and_timed_work(
    nats_url: str, unique: str
) -> None:
    given = events(90)
    wanted = expected(given)
    assert set(wanted) == {"count", "window", "session", "join", "dedupe", "gather"}
    ways = [run(nats_url, f"{unique}{n}", given, way) for n, way in enumerate(WAYS.values())]
    for name, found in zip(WAYS, await asyncio.gather(*ways)):
        assert found == wanted, name
