"""Engines on machines whose clocks are an hour wrong: nothing is decided by them."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from dspex.bus import nats, subjects
from dspex.bus.port import Bus, Delivery
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.work_loop import Job, WorkLoop
from dspex.engine.client.client import Client

HOUR = 3600
WITHIN = 60.0  # seconds until a test gives up
SUPPORT = Path(__file__).parents[2] / "support"


@asynccontextmanager
async def engine(url: str, name: str, clock: int) -> AsyncIterator[None]:
    """An engine whose calls have ten minutes, on a machine whose clock is `clock` seconds ahead; killed at the end."""
    script = (str(SUPPORT / "broken/wrong_clock.py"), str(clock), str(SUPPORT / "engine_process.py"))
    arguments = (url, name, f"{name}.in", f"{name}.out", "2", "calls")
    process = await asyncio.create_subprocess_exec(sys.executable, *script, *arguments, stdout=PIPE, stderr=PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(WITHIN):
            assert await process.stdout.readline(), "it did not start"
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def stored(bus: Bus, name: str, subject: str, count: int) -> list[bytes]:
    """The first messages of a subject in the application's stream."""
    reader = await bus.reader(subjects.stream(name), [subject], after=0, name=f"{name}-test")
    found: list[bytes] = []
    async with asyncio.timeout(WITHIN):
        while len(found) < count:
            found += [m.data for m in await reader.read(count)]
    await reader.close()
    return found


def worker(bus: Bus, app: str) -> WorkLoop:
    async def answer(request: CallRequest) -> CallRecord:
        return CallRecord(
            call=request.call, try_number=request.try_number, attempt=request.attempt, topology=request.topology,
            node=request.node, outputs={"label": str(request.inputs["n"])}, error=None, worker="test",
        )  # fmt: skip

    def accept(request: CallRequest, delivery: Delivery) -> Job:
        return partial(answer, request)

    return WorkLoop(bus, app, "lightweight", accept, free=lambda: 100, failed=lambda error: None)


@pytest.mark.asyncio
@pytest.mark.parametrize("clock", [HOUR, -HOUR])
async def test_open_calls_are_answered_though_the_next_engines_clock_is_an_hour_wrong(
    nats_url: str, unique: str, clock: int
) -> None:
    bus = await nats.connect(nats_url)
    client, work = Client(bus=bus, app=unique), worker(bus, unique)
    try:
        async with engine(nats_url, unique, 0):
            for n in range(4):
                await client.publish(f"{unique}.in", {"n": n}, key=str(n))
            await stored(bus, unique, subjects.work_of(unique, "processed"), 4)
        async with engine(nats_url, unique, clock):
            for n in range(4, 8):
                await client.publish(f"{unique}.in", {"n": n}, key=str(n))
            await stored(bus, unique, subjects.work_of(unique, "processed"), 8)
            work.start()
            outputs = await stored(bus, unique, f"{unique}.out", 8)
        assert sorted(json.loads(data)["label"] for data in outputs) == [str(n) for n in range(8)]
        assert [letter async for letter in client.dead_letters("*")] == []
    finally:
        await work.kill()
        await bus.close()
