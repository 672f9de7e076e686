"""An engine whose server is cut off from its cluster: a short form. `scripts/chaos "node isolated"` is the long one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from broken.cluster import Node
from waiting import until

from dspex.bus import nats, subjects
from dspex.bus.errors import BusError
from dspex.bus.nats import isolation
from dspex.bus.port import BusEvents
from dspex.engine.client.client import Client
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology

EVENTS = 10
WITHIN = 60.0  # seconds until the test gives up


@pytest_asyncio.fixture
async def cut_off(tmp_path: Path) -> AsyncIterator[Node]:
    """A node of a cluster that reaches no other node."""
    node = Node(tmp_path, "cut-off")
    node.start(routes=["nats://127.0.0.1:1"])
    yield node
    await node.kill()


@pytest_asyncio.fixture
async def ours(cut_off: Node, nats_url: str) -> AsyncIterator[nats.NatsBus]:
    """A bus that knows two servers, and is connected to the one that is cut off."""
    names: list[str] = []
    events = BusEvents(state=lambda state, name: names.append(name))
    while True:
        bus = await nats.connect(f"{cut_off.url},{nats_url}", events=events)
        if names[-1] == cut_off.name:
            break
        await bus.close()
    yield bus
    await bus.close()


@pytest.mark.asyncio
async def test_an_engine_on_an_isolated_node_goes_on_at_another_one(
    ours: nats.NatsBus, nats_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "_ELECTION", 0.5)
    monkeypatch.setattr(isolation, "_PROBE", 0.2)
    theirs, topology = await nats.connect(nats_url), Topology("cut")
    topology.source(f"{unique}.in", partitions=2).map(lambda d: d, name="same").sink(f"{unique}.out")
    host, client = Host(ours, unique, [topology.graph], engine="a"), Client(bus=theirs, app=unique)
    try:
        async with asyncio.timeout(WITHIN):
            await until(lambda: is_started(host))
            for n in range(EVENTS):
                await client.publish(f"{unique}.in", {"n": n}, key=str(n))
            reader = await theirs.reader(subjects.stream(unique), [f"{unique}.out"], after=0, name=unique)
            found = [json.loads(m.data)["n"] for _ in range(EVENTS) for m in await reader.read(1)]
            await reader.close()
        assert sorted(found) == list(range(EVENTS))
    finally:
        await host.kill()
        await theirs.close()


async def is_started(host: Host) -> bool:
    """Start it; where the server does not let it, it is to be started again, as the command does."""
    try:
        await host.start()
    except BusError:
        await host.kill()
        return False
    return True
