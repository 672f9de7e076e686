"""Engines that reach the server over a slow wire: a short form. `scripts/chaos "slow wire"` is the long one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from broken.wire_cutter import WireCutter
from waiting import until

from dspex.bus import nats, subjects
from dspex.bus.port import Bus
from dspex.engine.client.client import Client
from dspex.engine.hosting.host import Host
from dspex.engine.runtime.inputs import position
from dspex.operators.topology import Topology

EVENTS = 600
WITHIN = 60.0  # seconds until the test gives up


@pytest_asyncio.fixture
async def wire(nats_url: str) -> AsyncIterator[WireCutter]:
    proxy = WireCutter(nats_url)
    await proxy.start()
    yield proxy
    await proxy.stop()


async def outputs(bus: Bus, name: str) -> list[int]:
    """What the engines send to the sink, until it is as much as it should be."""
    reader = await bus.reader(subjects.stream(name), [f"{name}.out"], after=0, name=f"{name}-test")
    found: list[int] = []
    try:
        async with asyncio.timeout(WITHIN):
            while len(found) < EVENTS:
                found += [json.loads(m.data)["n"] for m in await reader.read(EVENTS)]
    except TimeoutError:
        pass  # what is missing is shown by the caller
    await reader.close()
    return found


async def somebodys_stream(bus: Bus, name: str) -> None:
    """A source stream that dspex did not make, so an engine moves its positions on to what was read at each look."""
    config = {"name": name, "subjects": [f"{name}.in"], "storage": "memory"}
    await bus.request(f"$JS.API.STREAM.CREATE.{name}", json.dumps(config).encode())


@pytest.mark.asyncio
@pytest.mark.parametrize(("partitions", "round_trip"), [(4, 0.1), (64, 0.02)])
async def test_what_a_dead_engine_has_not_walked_is_walked_by_one_on_a_slow_wire(
    nats_url: str, unique: str, wire: WireCutter, monkeypatch: pytest.MonkeyPatch, partitions: int, round_trip: float
) -> None:
    monkeypatch.setattr(position, "WATCH", 0.02)  # seconds: it looks at the source while the take-over is under way
    topology = Topology("slow")
    topology.source(f"{unique}.in", partitions=partitions).map(lambda d: d, name="same").sink(f"{unique}.out")
    near, far, looking = await nats.connect(nats_url), await nats.connect(wire.url), await nats.connect(nats_url)
    hosts = [Host(bus, unique, [topology.graph], engine=name, heartbeat=0.2) for name, bus in (("near", near), ("far", far))]
    client = Client(bus=looking, app=unique)

    def shared() -> bool:
        return all(len(host.runners[0].partitions) == partitions // 2 for host in hosts)

    try:
        await somebodys_stream(looking, unique)
        for host in hosts:
            await host.start()
        await until(shared)
        await hosts[0].kill()
        wire.round_trip = round_trip
        for n in range(EVENTS):
            await client.publish(f"{unique}.in", {"n": n}, key=f"k{n}")
        assert sorted(await outputs(looking, unique)) == list(range(EVENTS))
    finally:
        wire.round_trip = 0.0
        for host in hosts:
            await host.kill()
        for bus in (near, far, looking):
            await bus.close()
