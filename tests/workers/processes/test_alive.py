"""A pool says by the age of a file whether it makes progress: not where it leaves work that it could take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pool_bench import light, native, running
from waiting import until

from dspex.bus.errors import ConfigError
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.port import BusEvents
from dspex.workers.processes.alive import Alive


class Deaf(MemoryBus):
    """A connection that finds no queue of work, though there is one."""

    async def work(self, stream: str, **options: Any) -> None:
        return None


def age_of(file: Path) -> float:
    """As of the epoch, so that nothing here depends on how fast it is."""
    return file.stat().st_mtime


@pytest.mark.asyncio
async def test_a_pool_that_leaves_work_lying_touches_its_file_no_more(model: Any, tmp_path: Path) -> None:
    async with running(light(model.url), Deaf(MemoryServer(), BusEvents())) as bench:
        alive = Alive(bench.bus, [bench.pool], file := tmp_path / "alive", 0.05)
        os.utime(file, (0, 0))
        assert await alive.look() == ""
        assert age_of(file) > 0, "nothing waits: it does all that there is to do"
        await bench.put(native())
        await until(alive.look)
        os.utime(file, (0, 0))
        assert await alive.look() == "takes no work, though there is some: light"
        assert age_of(file) == 0
        bench.pool.draining = True  # as an operator may have it
        assert await alive.look() == ""
        assert age_of(file) > 0
        bench.pool.draining = False


@pytest.mark.asyncio
async def test_a_pool_whose_slots_are_taken_makes_progress_however_much_waits(model: Any, tmp_path: Path) -> None:
    async with running(light(model.url, slots=1)) as bench:
        await bench.put(native("standin:hang one"), native("two"))
        await until(lambda: model.running == 1)
        alive = Alive(bench.bus, [bench.pool], file := tmp_path / "alive", 0.0)
        await alive.look()
        os.utime(file, (0, 0))
        assert bench.pool.free() == 0
        await alive.look()
        assert age_of(file) > 0


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Alive(MemoryBus(MemoryServer(), BusEvents()), [], tmp_path / "missing" / "alive", 30.0)
