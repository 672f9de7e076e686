"""Garbage on the subject of a log and under keys of the bucket, on a real server: an engine goes on, and loses nothing."""

from __future__ import annotations

import asyncio
import json

import msgpack
import pytest
from waiting import until

from dspex.bus import nats, subjects
from dspex.bus.port import Bus, NewMessage
from dspex.engine.client.client import Client
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology

CLAIM = {"v": 3, "kind": "claim", "time": 1.0, "owner": "x", "nonce": "n", "build": {}, "epoch": 2, "older": 0, "after": 0}
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


async def spoil(bus: Bus, name: str, version: int) -> None:
    await (await bus.bucket(subjects.bucket(name))).put(subjects.member_key("engine", "x"), b"\xffgarbage")
    await (await bus.bucket(subjects.applied(name))).put(subjects.manifest_key("other", version), b"\xffgarbage")
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
        await spoil(bus, unique, begin + 1)
        for n in range(begin + 10, begin + 20):
            await client.publish(f"{unique}.in", {"n": n})
        await arrived(begin + 20)
        assert host.failure is None
        assert host.runners[0].counters["unreadable"] > 0
        assert [row["topology"] for row in (await client.status())["stages"]] == ["echo"]
        await host.drain()
        await spoil(bus, unique, begin + 2)
    await bus.close()


ODD = [
    (b"bytes", b"\xff\xfe", b""),
    (b"white space", b"a\x0bb\x0cc", b""),
    (b"a line break in a header", b"a", b"Dspex-Run: a\nb\r\n"),
    (b"no text in a header", b"a", b"Dspex-Key: \xff\xfe\r\n"),
    (b"large headers", b"a", b"Dspex-Run: " + b"r" * 30_000 + b"\r\nDspex-Key: " + b"k" * 35_400 + b"\r\n"),
]


async def publish_raw(url: str, subject: bytes, headers: bytes, data: bytes) -> None:
    """Publish what the libraries of NATS refuse, and the server takes."""
    host, _, port = url.removeprefix("nats://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = b"NATS/1.0\r\n%b\r\n" % headers
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
    writer.write(b"HPUB %b %d %d\r\n%b%b\r\nPING\r\n" % (subject, len(head), len(head) + len(data), head, data))
    while not (line := await reader.readline()).startswith(b"PONG"):
        assert not line.startswith(b"-ERR"), line
    writer.close()


@pytest.mark.asyncio
async def test_an_event_that_only_a_server_would_take_stops_nothing(nats_url: str, unique: str) -> None:
    made = Topology("echo")
    made.source(f"{unique}.in.>").map(lambda d: d, name="same").sink(f"{unique}.out")
    bus = await nats.connect(nats_url)
    host = Host(bus, unique, [made.graph], engine="engine", heartbeat=0.2)
    await host.start()
    client = Client(bus=bus, app=unique)
    for n, (_, subject, headers) in enumerate(ODD):
        await publish_raw(nats_url, f"{unique}.in.".encode() + subject, headers, b'{"n": %d}' % n)
        await client.publish(f"{unique}.in.last", {"n": 100 + n})

    async def done() -> bool:
        return len(await numbers(bus, unique)) + len([d async for d in client.dead_letters("echo")]) == 2 * len(ODD)

    await until(done)
    assert set(await numbers(bus, unique)) >= {100, 101, 102, 103, 104, 0, 1, 3}
    assert host.failure is None
    await host.drain()
    await bus.close()
