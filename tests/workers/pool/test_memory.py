"""What becomes of worker processes, and of the calls in them, that take more memory than their pool allows."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from pool_bench import Bench, config, program, running, work
from waiting import until

from dspex.workers.processes.devices import FOLDER

ALLOWED = 400 << 20
GPU = 10 * os.getpid() + 2  # a number that no machine has, and no other run of these tests


def children(bench: Bench) -> list[int]:
    return [c.pid for c in bench.pool.children.children]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limited(shared_model: Any) -> AsyncIterator[Bench]:
    """A pool with a limit, for all tests here: each child imports DSPy. It goes on when one of them has ended."""
    async with running(config(shared_model.url, memory=ALLOWED, restart_max=1000)) as found:
        yield found


@pytest.mark.skipif(sys.platform != "linux", reason="no other system refuses memory")
@pytest.mark.asyncio(loop_scope="module")
async def test_memory_that_nobody_may_have_is_refused_before_it_is_taken(limited: Bench) -> None:
    process = await limited.answering()
    neighbour = asyncio.create_task(limited.ask(work("5", spec=program("echo"))))
    (fat,) = await limited.ask(work("4000", spec=program("eats_memory")))
    assert fat.error is not None
    assert (fat.error["type"], fat.error["retryable"]) == ("WorkerLost", True)
    assert "pools.*.memory" in fat.error["message"]
    assert (await neighbour)[0].error is None
    assert await limited.answering() == process
    assert limited.pool.status.full()["memory"] == {"allowed": ALLOWED, "by": "system"}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_child_over_its_memory_is_replaced_and_ends_its_calls_first(limited: Bench) -> None:
    process, restarts = await limited.answering(), limited.pool.children.restarts
    has = limited.pool.status.full()["children"][0]["rss"]  # type: ignore[index]
    more = (ALLOWED - has >> 20) + 30
    (fat,) = await limited.ask(work(f"{more} 3", spec=program("eats_memory")))
    assert fat.outputs == {"reply": process}
    await until(lambda: process not in children(limited) and limited.pool.children.ready == 1)
    assert (await limited.ask(work()))[0].error is None
    assert limited.pool.children.restarts == restarts


@pytest.mark.asyncio(loop_scope="module")
async def test_a_child_far_over_its_memory_is_ended_at_once(limited: Bench) -> None:
    """Its calls do not go on until their timeouts: the machine, with all other pools on it, would be out of memory before."""
    (fat,) = await limited.ask(work("600 300", spec=program("eats_memory"), timeout=300))
    assert fat.error is not None
    assert (fat.error["type"], fat.error["retryable"]) == ("WorkerLost", True)
    assert "was ended: it has taken" in fat.error["message"]
    assert fat.error["retry_after"] == 0.0, "to wait would change nothing"
    assert fat.elapsed < 8
    assert (await limited.ask(work()))[0].error is None


@pytest.mark.asyncio
async def test_processes_with_a_gpu_are_watched_because_its_driver_maps_as_much_as_it_likes(model: Any) -> None:
    async with running(config(model.url, programs=(), memory=ALLOWED, gpus=1, devices=(GPU,))) as bench:
        memory = bench.pool.status.full()["memory"]
        assert memory in [{"allowed": ALLOWED, "by": by} for by in ("watch", "cgroup")]
    (FOLDER / f"dspex-gpu-{GPU}.lock").unlink()


@pytest.mark.asyncio
async def test_a_pool_without_a_limit_says_so(model: Any) -> None:
    async with running(config(model.url, programs=())) as bench:
        assert bench.pool.status.full()["memory"] == {"allowed": None, "by": None}
