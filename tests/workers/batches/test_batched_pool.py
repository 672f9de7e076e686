"""A pool whose calls wait for batches: they take no slot, and outlive its processes."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast

import orjson
import pytest
import pytest_asyncio
from broken.batches import BatchServer
from pool_bench import APP, POOL, SIGNATURE, Bench, config, running, work
from standin import urgency
from waiting import until

from dspex.bus import subjects
from dspex.bus.memory.server import MemoryServer
from dspex.bus.message import Message
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.cli.figures import blocks
from dspex.engine.client.status.pools import pool_row
from dspex.workers.config import PoolConfig, Profile

EMPTY: dict[str, Any] = {name: [] for name in ("stages", "operators", "letters", "lms", "routes", "limits")}
BATCHED = CallSpec("predict", SIGNATURE, SIGNATURE, route="auto", lane="batch")


def batched(*texts: str, seconds: float = 3600.0) -> list[CallRequest]:
    return [work(text, spec=BATCHED, batch=seconds, left=7200.0, opened=1e9) for text in texts]


def right(records: list[CallRecord], items: list[CallRequest]) -> bool:
    """Whether each call has one record, with the outputs of a live call."""
    found = {record.call: (record.outputs or {}).get("urgency") for record in records}
    return len(records) == len(items) and found == {i.call: urgency(i.inputs["text"]) for i in items}


@pytest_asyncio.fixture
async def server() -> AsyncIterator[BatchServer]:
    async with BatchServer() as found:
        yield found


def pool_of(server: BatchServer, calls: int, **options: object) -> PoolConfig:
    """A pool whose batches are full with so many calls."""
    rule = {"gather": 60.0, "poll": 0.02, "calls": calls}
    profile = Profile("main", "openai/stand-in", base_url=server.url, batch=rule, limits={"concurrent": (1.0, 0.0)})
    return config(server.url, **{"profiles": {"main": profile}, "programs": (), "slots": 2, "restart_max": 1000, **options})


def runs(bench: Bench) -> Callable[[], bool]:
    """Whether its batch runs at the provider, as the process says that takes calls."""
    return lambda: [row.status for child in bench.pool.children.slots.usable for row in child.batches] == ["in_progress"]


@pytest.mark.long
@pytest.mark.asyncio
async def test_a_batch_outlives_the_processes_that_wait_for_it(server: BatchServer) -> None:
    """A killed one, one that is replaced, and the whole pool: one batch, one record a call, and no slot taken meanwhile."""
    bus, server.held = MemoryServer(), True
    items = batched(*(f"message {n}" for n in range(20)))
    async with running(pool_of(server, 20), bus.connect()) as bench:
        await bench.put(*items)
        await until(runs(bench))
        assert (bench.pool.children.slots.busy, bench.pool.free()) == (0, 2)
        assert bench.pool._load() == (1, 0)  # pyright: ignore[reportPrivateUsage]  so that it is not scaled to nothing
        (live,) = await bench.ask(work("asked live", spec=replace(BATCHED, lane="live")))
        assert live.outputs is not None
        os.kill(bench.pool.children.children[0].pid, signal.SIGKILL)
        await until(lambda: bench.pool.children.restarts == 1 and runs(bench)())
        await bench.pool.children.restart()
        await until(runs(bench))
        assert bench.seen == [live]
        row = pool_row(Message("", orjson.dumps(bench.pool.status.full()), {}))
        (shown,) = [block.rows for block in blocks(cast(Any, EMPTY | {"pools": [row]})) if "batch" in block.columns]
        (id,) = server.batches
        assert shown == [
            {"batch": id, "lm": "lm.main", "pool": "light", "status": "in_progress", "done": "0 of 20", "calls": "20"}
        ]
    async with running(pool_of(server, 20), bus.connect()) as other:
        await until(runs(other))
        server.held = False
        assert right((await other.records(21))[1:], items)
    assert len(server.batches) == 1
    assert server.cancelled == []


@pytest.mark.asyncio
async def test_a_batch_whose_calls_are_cancelled_with_their_runs_is_cancelled(server: BatchServer) -> None:
    """Not as long as one of them waits."""
    server.held = True
    items = batched("one", "two")
    async with running(pool_of(server, 2)) as bench:
        await bench.put(*items)
        await until(runs(bench))
        for item in items:
            assert server.cancelled == []
            order = {"kind": "cancel", "calls": {item.call: item.attempt}}
            await bench.bus.send(subjects.manage(APP, POOL), orjson.dumps(order))
            await until(lambda: len(bench.seen) == 1 + items.index(item))  # noqa: B023
        await until(lambda: server.cancelled == list(server.batches) != [])
        assert {(record.error or {})["type"] for record in bench.seen} == {"Cancelled"}


@pytest.mark.asyncio
async def test_a_call_that_no_batch_answers_in_time_is_told_so_and_then_asked_live(
    server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.held = True
    async with running(pool_of(server, 1)) as bench:
        (item,) = batched("soon", seconds=3.0)
        (late,) = await bench.ask(item)
        assert late.error is not None
        assert late.error["type"] == "NoBatchAnswer"
        await until(lambda: server.cancelled == list(server.batches) != [])
        (live,) = await bench.ask(work("soon", spec=BATCHED, call=item.call, try_number=2))  # as the engine asks again
        assert (live.route, live.error, server.requests) == ("native", None, 1)
        gone = work("late", spec=BATCHED, batch=1e-6, left=60.0)  # its time in a batch was over when it came
        assert (await bench.ask(gone))[0].route == "native"
        monkeypatch.setattr("dspex.workers.pool.executions.MOST_BATCHED", 0)  # more than a process holds
        (refused,) = await bench.ask(*batched("one too many"))
        assert (refused.error or {})["type"] == "Saturated"
