"""An engine whose server is cut off from its cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from broken.cluster import Cluster

from dspex.bus import nats, subjects
from dspex.bus.errors import BusError
from dspex.bus.port import Bus, BusEvents
from dspex.engine.client.client import Client
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology

T = TypeVar("T")
WITHIN = 60.0  # seconds without progress, at most


async def insist(do: Callable[[], Awaitable[T]]) -> T:
    """Do something until the cluster lets it: it elects leaders."""
    async with asyncio.timeout(WITHIN):
        while True:
            try:
                return await do()
            except BusError:
                await asyncio.sleep(0.2)


async def at_the_first(cluster: Cluster) -> nats.NatsBus:
    """A bus that knows all servers, and is connected to the first."""
    names: list[str] = []
    events = BusEvents(state=lambda state, name: names.append(name))
    while True:
        bus = await nats.connect(",".join(cluster.urls), events=events)
        if names[-1] == "first":
            return bus
        await bus.close()


async def publish(client: Client, numbers: range) -> None:
    for n in numbers:
        await insist(partial(client.publish, "in", {"n": n}, key=str(n), id=str(n)))


async def outputs(bus: Bus, app: str, count: int) -> list[int]:
    reader = await insist(lambda: bus.reader(subjects.stream(app), ["out"], after=0, name="test"))
    found: list[int] = []
    try:
        async with asyncio.timeout(WITHIN):
            while len(found) < count:
                found += [json.loads(m.data)["n"] for m in await reader.read(count)]
    except TimeoutError:
        pass  # what is missing is shown by the caller
    await reader.close()
    return found


@pytest.mark.asyncio
@pytest.mark.timeout(200)
async def test_an_engine_on_an_isolated_node_goes_on_at_another_one(tmp_path: Path, unique: str) -> None:
    topology = Topology("cut")
    topology.source("in", partitions=2).map(lambda d: d, name="same").sink("out")
    async with Cluster(tmp_path) as cluster:
        theirs, ours = await insist(lambda: nats.connect(cluster.urls[1])), await insist(lambda: at_the_first(cluster))
        host = Host(ours, unique, [topology.graph], engine="a", replicas=3)
        client = Client(bus=theirs, app=unique)
        try:
            await insist(lambda: _started(host))
            await publish(client, range(10))
            assert sorted(await outputs(theirs, unique, 10)) == list(range(10))
            await cluster.isolate_first()
            await publish(client, range(10, 20))
            assert sorted(await outputs(theirs, unique, 20)) == list(range(20))
        finally:
            await host.kill()
            await ours.close()
            await theirs.close()


async def _started(host: Host) -> None:
    try:
        await host.start()
    except BusError:
        await host.kill()
        raise
