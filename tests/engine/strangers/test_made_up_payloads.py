"""Whoever may publish can name payloads that never were: on a real server they hold up nobody."""

from __future__ import annotations

import math

import pytest
from waiting import until

from dspex.bus import subjects
from dspex.bus.nats import NatsBus
from dspex.bus.port import NewMessage
from dspex.engine.client.client import Client
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology

AT_ONCE = 5.0  # seconds: one look for a payload that a new leader may not show yet takes 7.8


@pytest.mark.asyncio
async def test_events_that_name_payloads_that_never_were_hold_up_nobody(bus: NatsBus, unique: str) -> None:
    topology = Topology("echo")
    topology.source(f"{unique}.in").map(lambda d: d, name="same").sink(f"{unique}.out")
    host, client = Host(bus, unique, [topology.graph], engine="engine"), Client(bus=bus, app=unique)
    await host.start()
    for digit in "abcdef":
        await bus.publish(NewMessage(f"{unique}.in", b"", {subjects.CLAIM_CHECK: digit * 64}))
    await client.publish(f"{unique}.in", {"n": 1})

    async def arrived() -> bool:
        return await bus.count(subjects.stream(unique), [f"{unique}.out"]) == 1

    await until(arrived, AT_ONCE)
    assert [d.code async for d in client.dead_letters("echo")] == ["DX511"] * 6
    await host.drain()


@pytest.mark.asyncio
async def test_the_only_server_of_an_object_store_shows_all_that_was_put(bus: NatsBus, unique: str) -> None:
    await bus.objects(unique)
    assert await bus.led_for("objects", unique) == math.inf
