"""A pool whose own task dies says so and ends: a process that only looks healthy is the failure nobody finds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pool_bench import light

from dspex.bus.errors import ConfigError, WorkerLost
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.port import BusEvents
from dspex.bus.settings.model import Settings
from dspex.bus.settings.tables import CallDefaults, Defaults, PoolSettings
from dspex.workers.config import resolve
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


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"size": 100_000}, r"pools\.a\.size \(--size\): 100,000 is too much"),
        ({"slots": 1_000_000}, r"pools\.a\.slots \(--slots\): 1,000,000 is too much"),
        ({"size": 2}, "which makes 2, and `devices` has 1"),
        ({"slots": 1}, "no worker has more than 1"),
    ],
)
def test_what_a_flag_asks_for_is_refused_where_the_settings_could_not_have_it(flags: dict[str, int], why: str) -> None:
    settings = Settings(pools={"a": PoolSettings(slots=2, gpus=1, devices=(0,))}, defaults=Defaults(call=CallDefaults(cost=2)))
    assert resolve(settings, "a", slots=3).slots == 3
    with pytest.raises(ConfigError, match=why):
        resolve(settings, "a", **flags)
