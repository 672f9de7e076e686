"""What becomes of worker processes, and of the calls in them, that take more memory than their pool allows."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from pool_bench import Bench, config, program, running, work
from waiting import until

ALLOWED = 400 << 20


def children(bench: Bench) -> list[int]:
    return [c.pid for c in bench.pool.children.children]


@pytest.mark.asyncio
async def test_a_child_over_its_memory_is_replaced_and_ends_its_calls_first(model: Any) -> None:
    async with running(config(model.url, memory=ALLOWED)) as bench:
        process = await bench.answering()
        has = bench.pool.status.full()["children"][0]["rss"]  # type: ignore[index]
        more = (ALLOWED - has >> 20) + 30
        (fat,) = await bench.ask(work(f"{more} 3", spec=program("eats_memory")))
        assert fat.outputs == {"reply": process}
        await until(lambda: process not in children(bench) and bench.pool.children.ready == 1)
        assert (await bench.ask(work()))[0].error is None
        assert bench.pool.children.restarts == 0


@pytest.mark.asyncio
async def test_a_child_far_over_its_memory_is_ended_at_once(model: Any) -> None:
    """Its calls do not go on until their timeouts: the machine, with all other pools on it, would be out of memory before."""
    async with running(config(model.url, memory=ALLOWED)) as bench:
        (fat,) = await bench.ask(work("600 300", spec=program("eats_memory"), timeout=300))
        assert fat.error is not None
        assert (fat.error["type"], fat.error["retryable"]) == ("WorkerLost", True)
        assert fat.elapsed < 8
        assert (await bench.ask(work()))[0].error is None


@pytest.mark.skipif(sys.platform != "linux", reason="no other system refuses memory")
@pytest.mark.asyncio
async def test_memory_that_nobody_may_have_is_refused_before_it_is_taken(model: Any) -> None:
    async with running(config(model.url, memory=ALLOWED)) as bench:
        process = await bench.answering()
        neighbour = asyncio.create_task(bench.ask(work("5", spec=program("echo"))))
        (fat,) = await bench.ask(work("4000", spec=program("eats_memory")))
        assert fat.error is not None
        assert (fat.error["type"], fat.error["retryable"]) == ("WorkerLost", True)
        assert "pools.*.memory" in fat.error["message"]
        assert (await neighbour)[0].error is None
        assert await bench.answering() == process
        assert bench.pool.status.full()["memory"] == {"allowed": ALLOWED, "by": "system"}


@pytest.mark.asyncio
async def test_processes_with_a_gpu_are_watched_because_its_driver_maps_as_much_as_it_likes(model: Any) -> None:
    async with running(config(model.url, programs=(), memory=ALLOWED, gpus=1, devices=(0,))) as bench:
        assert bench.pool.status.full()["memory"] == {"allowed": ALLOWED, "by": "watch"}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_pool_without_a_limit_says_so(shared: Bench) -> None:
    assert shared.pool.status.full()["memory"] == {"allowed": None, "by": None}
