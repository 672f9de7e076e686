"""Whoever may publish to a sink can fill the application's stream with large messages: what a start takes of memory."""

from __future__ import annotations

import tracemalloc

import pytest
from waiting import until

from dspex.bus import subjects
from dspex.bus.nats import NatsBus
from dspex.bus.port import PAGE_BYTES, NewMessage
from dspex.engine.client.client import Client
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology

MEGABYTE = 1_000_000
LARGE = 100  # messages


@pytest.mark.asyncio
async def test_a_start_holds_no_more_of_what_others_stored_than_a_page(bus: NatsBus, unique: str) -> None:
    topology = Topology("echo")
    topology.source(f"{unique}.in").map(lambda d: d, name="same").sink(f"{unique}.out")
    client = Client(bus=bus, app=unique)
    first = Host(bus, unique, [topology.graph], engine="first")
    await first.start()
    await client.publish(f"{unique}.in", {"n": 1})

    async def arrived(count: int) -> bool:
        return await bus.count(subjects.stream(unique), [f"{unique}.out"]) == count

    await until(lambda: arrived(1))
    await first.drain()
    for _ in range(LARGE):
        await bus.publish(NewMessage(f"{unique}.out", b"x" * MEGABYTE))
    second = Host(bus, unique, [topology.graph], engine="second")
    tracemalloc.start()
    try:
        await second.start()
        await client.publish(f"{unique}.in", {"n": 2})
        await until(lambda: arrived(LARGE + 2))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * PAGE_BYTES < LARGE * MEGABYTE
    await second.drain()
