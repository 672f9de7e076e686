"""What a call with a cost takes of a pool: in a real pool, with a stand-in for the model."""

from __future__ import annotations

from typing import Any

import pytest
from pool_bench import SIGNATURE, config, running, work

from dspex.bus.serving.call_spec import CallSpec


def costly(cost: int) -> CallSpec:
    return CallSpec("predict", SIGNATURE, SIGNATURE, route="native", cost=cost)


@pytest.mark.asyncio
async def test_a_call_takes_as_many_slots_as_it_costs_and_no_more_than_there_are(model: Any) -> None:
    async with running(config(model.url, programs=(), slots=4)) as bench:
        records = await bench.ask(*[work(f"standin:slow=0.05 {n}", spec=costly(2)) for n in range(6)])
        assert [record.error for record in records] == [None] * 6
        assert model.peak == 2
        (record,) = await bench.ask(work(spec=costly(5)))
        assert record.error is not None
        assert (record.error["type"], record.error["code"], record.error["retryable"]) == ("ConfigError", "DX105", False)
        assert "takes 5 slots, and each process of this pool has 4" in record.error["message"]
        assert bench.pool.children.slots.busy == 0
