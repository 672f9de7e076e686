"""A process that stood still, as one that was stopped or on a machine that slept: others have its work by then."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from pool_bench import APP, POOL, SIGNATURE, config, running, work
from waiting import until

from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving import server_clock
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.record_store import RecordStore
from dspex.bus.serving.server_clock import Stillness


def _native(text: str) -> CallRequest:
    return work(text, spec=CallSpec("predict", SIGNATURE, SIGNATURE, route="native"))


@pytest.mark.asyncio
@pytest.mark.parametrize("answered", [True, False], ids=["answered meanwhile", "not answered"])
async def test_a_call_that_waited_for_a_slot_meanwhile_is_made_only_where_nobody_has_answered_it(
    model: Any, answered: bool
) -> None:
    async with running(config(model.url, programs=(), slots=1)) as bench:
        pool, ended = bench.pool, asyncio.get_running_loop().create_future()
        model.fault("first", "gate")
        await bench.put(_native("first"))
        await until(lambda: model.texts["first"])
        waits = _native("second")
        pool.executions.start(waits, waits.pack(), ended.set_result, at=1)
        assert pool.children.slots.waiting == 1
        if answered:
            await RecordStore(bench.bus, APP, POOL).store(replace(CallRecord.of(waits), outputs={"intent": "other"}), waits)
        pool.work.stillness._seen -= 60.0  # pyright: ignore[reportPrivateUsage]
        model.gate.set()
        record = await asyncio.wait_for(ended, 60)
        assert (model.texts["second"], record.outputs is None) == ((0, True) if answered else (1, False))


@pytest.mark.asyncio
async def test_a_machine_that_slept_stood_still_though_its_clock_did_too(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = [1000.0]
    monkeypatch.setattr(server_clock, "_asleep", lambda: slept[0])
    stillness, now = Stillness(5.0), asyncio.get_running_loop().time()
    stillness.begin()
    assert stillness.woke() < now
    slept[0] += 3600.0
    assert now <= stillness.woke() <= asyncio.get_running_loop().time()
