"""Payloads of many megabytes through an engine on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from dspex.bus import nats, subjects
from dspex.bus.errors import PayloadTooLarge
from dspex.bus.port import Bus, Delivery
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.work_loop import Job, WorkLoop
from dspex.engine.client.client import Client
from dspex.engine.graph import manifest
from dspex.engine.hosting.host import Host
from dspex.engine.log.unused_payloads import AGE, UnusedPayloads
from dspex.operators.topology import Topology

MIB = 1 << 20


@asynccontextmanager
async def running(url: str, app: str, topology: Topology) -> AsyncIterator[tuple[Client, Bus]]:
    """An engine, and a worker whose answers are as large as its inputs."""

    async def answer(request: CallRequest) -> CallRecord:
        r, to = request, request.record
        assert to is not None
        outputs = {"answer": str(request.inputs["text"]).upper()}
        return CallRecord(r.call, r.try_number, r.attempt, r.topology, r.node, to.number, to.event, outputs)

    def accept(request: CallRequest, delivery: Delivery) -> Job:
        return partial(answer, request)

    bus, working = await nats.connect(url), await nats.connect(url)
    host = Host(bus, app, [topology.graph], engine="large")
    await host.start()
    worker = WorkLoop(working, app, "lightweight", accept, free=lambda: 4, failed=lambda error: None)
    worker.start()
    try:
        async with Client(bus=await nats.connect(url), app=app) as client, asyncio.timeout(60):
            yield client, bus
            await client.bus.close()
    finally:
        await worker.kill()
        await host.kill()
        await working.close()
        await bus.close()


@pytest.mark.long
@pytest.mark.asyncio
async def test_an_event_of_60_mib_goes_from_publisher_to_sink_and_a_larger_one_is_refused(nats_url: str, unique: str) -> None:
    topology = Topology("large")
    topology.source(f"{unique}.in").map(lambda d: {"text": d["text"] + "!"}, name="shout").sink(f"{unique}.out")
    async with running(nats_url, unique, topology) as (client, _):
        run = await client.publish(f"{unique}.in", {"text": "x" * (60 * MIB)})
        await run.wait("60s")
        (output,) = await run.outputs()
        assert len(output.data["text"]) == 60 * MIB + 1
        with pytest.raises(PayloadTooLarge, match="one payload may have 67,108,864"):
            await client.publish(f"{unique}.in", {"text": "x" * (64 * MIB)})


@pytest.mark.asyncio
async def test_a_call_of_megabytes_dies_is_redriven_and_its_unused_payloads_are_removed(nats_url: str, unique: str) -> None:
    broken = [True]

    def check(data: Any) -> Any:
        if broken[0]:
            raise ValueError("broken")
        return data

    topology = Topology("asking")
    asked = topology.source(f"{unique}.in").predict("text -> answer", name="ask")
    asked.map(check, name="check").sink(f"{unique}.out")
    async with running(nats_url, unique, topology) as (client, bus):
        run = await client.publish(f"{unique}.in", {"text": "x" * (3 * MIB)})
        async for _ in client.follow([run.id]):
            pass
        (letter,) = [d async for d in client.dead_letters("asking")]
        assert len(letter.event.data["text"]) == 3 * MIB
        broken[0] = False
        assert await client.redrive([letter]) == 1
        await run.wait("60s")
        (output,) = await run.outputs()
        assert output.data == {"text": "x" * (3 * MIB), "answer": "X" * (3 * MIB)}
        await _only_named_payloads_are_left(client, bus, unique)


async def _only_named_payloads_are_left(client: Client, bus: Bus, app: str) -> None:
    """The letter is gone, and with it goes its payload, once it is old; all others are named."""
    objects = await bus.objects(subjects.objects(app))
    before, unused = await objects.listing(), UnusedPayloads(bus, app)
    applied = await manifest.of_application(bus, app)
    now = max(before.values())
    assert await unused.remove(applied, now) == 0
    assert await unused.remove(applied, now + AGE + 1) == 1
    left = await objects.listing()
    assert len(left) == len(before) - 1 == 5  # event, request, record, frame and output
    for name in left:
        assert await objects.get(name) is not None
