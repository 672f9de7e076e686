"""A pool whose own task dies says so and ends: a process that only looks healthy is the failure nobody finds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pool_bench import light

from dspex.bus.errors import WorkerLost
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.port import BusEvents
from dspex.workers.pool.pool import Pool


class Broken:
    """A work queue with a bug."""

    async def next(self) -> Any:
        raise TypeError("unhashable type: 'Delivery'")

    async def close(self) -> None: ...


class BrokenBus(MemoryBus):
    async def work(self, *args: Any, **kw: Any) -> Any:
        return Broken()


@pytest.mark.asyncio
async def test_a_pool_that_cannot_take_work_any_more_fails_with_the_reason(model: Any) -> None:
    pool = Pool(BrokenBus(MemoryServer(), BusEvents()), light(model.url))
    try:
        await pool.start()
        with pytest.raises(WorkerLost, match="unhashable type") as e:
            await asyncio.wait_for(pool.failed(), 30)
        assert e.value.exit_code not in (0, 2)  # 2 means wrong settings: nobody would start it again
    finally:
        await pool.drain(1.0)
