"""Garbage on the subject of a log and under keys of the bucket, on a real server: an engine goes on, and loses nothing."""

from __future__ import annotations

import json

import msgpack
import pytest
from waiting import until

from dspex.bus import nats, subjects
from dspex.bus.port import Bus, NewMessage
from dspex.engine.client.client import Client
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology

CLAIM = {"v": 2, "kind": "claim", "time": 1.0, "owner": "x", "nonce": "n", "build": {}, "epoch": 2, "older": 0, "after": 0}
GARBAGE = [
    b"\xc1garbage",
    b"",
    msgpack.packb(None),
    msgpack.packb({"v": 1, "kind": "claim", "epoch": 3}),
    msgpack.packb({**CLAIM, "base": 0, "manifest": 10**9}),
    msgpack.packb({**CLAIM, "base": 10**9, "manifest": 1}),
]


def topology(name: str) -> Topology:
    made = Topology("echo")
    made.source(f"{name}.in").map(lambda d: d, name="same").sink(f"{name}.out")
    return made


async def spoil(bus: Bus, name: str) -> None:
    bucket = await bus.bucket(subjects.bucket(name))
    for key in (subjects.member_key("engine", "x"), subjects.manifest_key("other", 1)):
        await bucket.put(key, b"\xffgarbage")
    for data in GARBAGE:
        await bus.publish(NewMessage(subjects.log(name, "echo", "s1", 0), data))


async def numbers(bus: Bus, name: str) -> list[int]:
    info = await bus.stream(subjects.stream(name))
    assert info is not None
    return [json.loads(m.data)["n"] for m in await bus.scan(info.name, [f"{name}.out"], start=1, stop=info.last)]


@pytest.mark.asyncio
async def test_an_engine_passes_over_garbage_while_it_runs_and_when_it_starts(nats_url: str, unique: str) -> None:
    bus = await nats.connect(nats_url)
    client = Client(bus=bus, app=unique)

    async def arrived(count: int) -> None:
        async def there() -> bool:
            return len(await numbers(bus, unique)) >= count

        await until(there)
        assert await numbers(bus, unique) == list(range(count))

    for begin in (0, 20):
        host = Host(bus, unique, [topology(unique).graph], engine=f"engine-{begin}", heartbeat=0.2)
        await host.start()
        for n in range(begin, begin + 10):
            await client.publish(f"{unique}.in", {"n": n})
        await arrived(begin + 10)
        await spoil(bus, unique)
        for n in range(begin + 10, begin + 20):
            await client.publish(f"{unique}.in", {"n": n})
        await arrived(begin + 20)
        assert host.failure is None
        assert host.runners[0].counters["unreadable"] > 0
        assert [row["topology"] for row in (await client.status())["stages"]] == ["echo"]
        await host.drain()
        await spoil(bus, unique)
    await bus.close()
