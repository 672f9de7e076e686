"""Sources on a real server whose streams are not what they were: what was read never hides what is new."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from waiting import until

from dspex.bus import nats, subjects
from dspex.bus.nats import NatsBus
from dspex.bus.port import NewMessage
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology


@pytest_asyncio.fixture
async def bus(nats_url: str) -> AsyncIterator[NatsBus]:
    opened = await nats.connect(nats_url)
    yield opened
    await opened.close()


async def somebodys_stream(bus: NatsBus, name: str) -> None:
    config = {"name": name, "subjects": [f"{name}.in"], "storage": "file"}
    await bus.request(f"$JS.API.STREAM.CREATE.{name}", json.dumps(config).encode())


async def engine(bus: NatsBus, name: str, policy: Any) -> Host:
    topology = Topology("reading")
    topology.source(f"{name}.in", on_gap=policy).map(lambda d: d, name="same").sink(f"{name}.out")
    host = Host(bus, name, [topology.graph], engine="a")
    await host.start()
    return host


async def publish(bus: NatsBus, name: str, *numbers: int) -> None:
    for n in numbers:
        await bus.publish(NewMessage(f"{name}.in", json.dumps({"n": n}).encode()))


async def outputs(bus: NatsBus, name: str) -> list[int]:
    info = await bus.stream(subjects.stream(name))
    assert info is not None
    return [json.loads(m.data)["n"] for m in await bus.scan(info.name, [f"{name}.out"], start=1, stop=info.last)]


@pytest.mark.asyncio
@pytest.mark.parametrize("policy", ["stop", "skip"])
async def test_a_stream_that_is_deleted_made_again_and_refilled_at_once_under_a_live_engine_loses_no_event(
    bus: NatsBus, unique: str, policy: Any
) -> None:
    await somebodys_stream(bus, unique)
    await publish(bus, unique, 1, 2, 3)
    host = await engine(bus, unique, policy)

    async def are(*numbers: int) -> bool:
        return await outputs(bus, unique) == list(numbers)

    try:
        await until(lambda: are(1, 2, 3))
        await bus.request(f"$JS.API.STREAM.DELETE.{unique}", b"")
        await somebodys_stream(bus, unique)
        await publish(bus, unique, *range(4, 10))
        if policy == "skip":
            await until(lambda: are(*range(1, 10)))
            await publish(bus, unique, 10)
            await until(lambda: are(*range(1, 11)))
        else:
            await until(lambda: "made anew" in (host.runners[0].stopped or ""))
            assert await outputs(bus, unique) == [1, 2, 3]
    finally:
        await host.kill()


@pytest.mark.asyncio
@pytest.mark.parametrize("policy", ["stop", "skip"])
async def test_a_stream_whose_unread_events_were_all_purged_while_no_engine_ran_is_a_gap(
    bus: NatsBus, unique: str, policy: Any
) -> None:
    await somebodys_stream(bus, unique)
    await publish(bus, unique, 1, 2, 3)
    host = await engine(bus, unique, policy)

    async def are(*numbers: int) -> bool:
        return await outputs(bus, unique) == list(numbers)

    await until(lambda: are(1, 2, 3))
    await host.drain()
    await publish(bus, unique, *range(4, 10))
    await bus.request(f"$JS.API.STREAM.PURGE.{unique}", b"")
    host = await engine(bus, unique, policy)
    try:
        if policy == "skip":
            await publish(bus, unique, 10)
            await until(lambda: are(1, 2, 3, 10))
        else:
            await until(lambda: "trimmed" in (host.runners[0].stopped or ""))
    finally:
        await host.kill()
