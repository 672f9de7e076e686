"""Who does the job of `pipeline.py`: change each event of a stream, and store the result. Each takes a URL and a number of
events, and gives the seconds that it took.

* limit: a hand-written nats-py loop with raw pulls, atomic batches and compare-and-set on its position. It is what this client
  and this server can do at all, and promises what dspex promises for this one job.
* dspex: a topology `source → map → sink`, run by the real engine.
* nats-py: pull, `js.publish`, `ack` per message: what people write first; at least once.
* faststream: FastStream on JetStream with a pull subscriber; at least once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable

import nats
import orjson
from nats.aio.client import Client as NATS

from dspex.bus.message import new_id

SOURCE, TARGET = "BENCH_IN", "BENCH_OUT"
PAD = "x" * 120


def event(i: int) -> bytes:
    """An event of 220 bytes."""
    body = {"id": i, "customer": f"c{i % 1000:04}", "text": "My card was stolen and I need a new one", "pad": PAD}
    return orjson.dumps(body).ljust(220)


def change(data: dict[str, object]) -> dict[str, object]:
    """The work of the stage."""
    return {**data, "seen": True}


async def preload(url: str, count: int, *, bare: bool = False) -> None:
    """Store `count` events in the source stream, once for all peers and rounds. `bare`: without ids, so without headers."""
    nc = await nats.connect(url)
    js = nc.jetstream()
    await js.add_stream(name=SOURCE, subjects=["bench.in"], allow_direct=True)
    for i in range(count):
        await nc.publish("bench.in", event(i), headers=None if bare else {"Nats-Msg-Id": new_id()})
        if i % 5000 == 4999:
            await nc.flush()
    await nc.flush()
    while (await js.stream_info(SOURCE)).state.messages < count:
        await asyncio.sleep(0.05)
    await nc.close()


async def fresh_target(nc: NATS, **options: object) -> None:
    js = nc.jetstream()
    try:
        await js.delete_stream(TARGET)
    except nats.js.errors.NotFoundError:
        pass
    await js.add_stream(name=TARGET, subjects=["bench.out", "bench.pos"], **options)


async def stored(nc: NATS, stream: str, subject: str, count: int) -> None:
    """Wait until `count` results are in the stream, as an onlooker would; it costs the server one question in 20 ms."""
    js = nc.jetstream()
    while True:
        info = await js.stream_info(stream, subjects_filter=subject)
        if (info.state.subjects or {}).get(subject, 0) >= count:
            return
        await asyncio.sleep(0.02)


async def limit(url: str, count: int) -> float:
    """Raw pulls, atomic batches of 1,000 with the position under compare-and-set; the next batch is made while one flies."""

    def work(events: list[bytes]) -> tuple[list[bytes], bytes]:
        return [orjson.dumps(change(orjson.loads(data))) for data in events], b""

    return await loop(url, count, SOURCE, "bench.in", work)


async def loop(
    url: str, count: int, stream: str, subject: str, work: Callable[[list[bytes]], tuple[list[bytes], bytes]]
) -> float:
    """Seconds that a loop takes for some events. `work`: events → what is sent, and what is stored with the position."""
    nc = await nats.connect(url, pending_size=64 << 20)
    await fresh_target(nc, allow_atomic=True)
    inbox, waiting, arrived = nc.new_inbox(), deque[nats.aio.msg.Msg](), asyncio.Event()

    async def take(m: nats.aio.msg.Msg) -> None:
        if m.reply:  # else a status
            waiting.append(m)
            arrived.set()

    await nc.subscribe(inbox, cb=take, pending_msgs_limit=-1, pending_bytes_limit=-1)
    name = f"limit{uuid.uuid4().hex[:6]}"
    config = {"name": name, "ack_policy": "none", "deliver_policy": "all", "filter_subject": subject, "mem_storage": True}
    body = {"stream_name": stream, "config": config, "action": "create"}
    await nc.request(f"$JS.API.CONSUMER.CREATE.{stream}.{name}.{subject}", json.dumps(body).encode(), timeout=5)
    pull = json.dumps({"batch": 4000, "expires": 30_000_000_000}).encode()
    began = time.perf_counter()
    asked, got, position = 0, 0, 0
    flying: asyncio.Task[int] | None = None
    while got < count:
        if asked - got < 4000:
            await nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}", pull, reply=inbox)
            asked += 4000
        while not waiting:
            arrived.clear()
            await arrived.wait()
        taken = [waiting.popleft() for _ in range(min(len(waiting), 999, count - got))]
        batch, state = work([m.data for m in taken])
        got += len(taken)
        for start in range(0, len(batch) or 1, 999):  # results of many windows may be more than a batch takes
            last = start + 999 >= len(batch)
            if flying is not None:
                position = await flying
            said = taken[-1].reply.split(".")[5].encode() + b" " + state if last else b""
            flying = asyncio.create_task(_commit(nc, batch[start : start + 999], said, position))
    if flying is not None:
        await flying
    took = time.perf_counter() - began
    await nc.close()
    return took


async def _commit(nc: NATS, batch: list[bytes], said: bytes, position: int) -> int:
    id = uuid.uuid4().hex[:12]
    for n, data in enumerate(batch, 1):
        await nc.publish("bench.out", data, headers={"Nats-Batch-Id": id, "Nats-Batch-Sequence": str(n)})
    headers = {
        "Nats-Batch-Id": id,
        "Nats-Batch-Sequence": str(len(batch) + 1),
        "Nats-Batch-Commit": "1",
        "Nats-Expected-Last-Subject-Sequence": str(position),
    }
    reply = await nc.request("bench.pos", said, timeout=10, headers=headers)
    answer = json.loads(reply.data)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return int(answer["seq"])


async def plain(url: str, count: int) -> float:
    """Fetch 500, publish and ack one by one."""
    nc = await nats.connect(url)
    await fresh_target(nc)
    js = nc.jetstream()
    sub = await js.pull_subscribe("bench.in", durable=f"plain{uuid.uuid4().hex[:6]}", stream=SOURCE)
    began, done = time.perf_counter(), 0
    while done < count:
        for m in await sub.fetch(500, timeout=5):
            await js.publish("bench.out", orjson.dumps(change(orjson.loads(m.data))))
            await m.ack()
            done += 1
    took = time.perf_counter() - began
    await nc.close()
    return took


async def faststream(url: str, count: int) -> float:
    """A pull subscriber in batches of 500, a JetStream publish a result."""
    from faststream.nats import JStream, NatsBroker, PullSub

    nc = await nats.connect(url)
    await fresh_target(nc)
    broker = NatsBroker(url, log_level=logging.ERROR, logger=None)
    done = asyncio.Event()
    seen = 0

    @broker.subscriber(
        "bench.in",
        stream=JStream(SOURCE, declare=False),
        durable=f"fs{uuid.uuid4().hex[:6]}",
        pull_sub=PullSub(batch_size=500),
        max_workers=1,
    )
    async def handle(data: dict) -> None:  # type: ignore[type-arg]
        nonlocal seen
        await broker.publish(change(data), "bench.out", stream=TARGET)
        seen += 1
        if seen == count:
            done.set()

    began = time.perf_counter()
    await broker.start()
    await done.wait()
    took = time.perf_counter() - began
    await broker.stop()
    await nc.close()
    return took


async def dspex(url: str, count: int) -> float:
    """The engine, from its start until the last result is stored; the time of its start is reported apart."""
    from dspex.bus.settings.model import Settings
    from dspex.engine.hosting.engine import Engine
    from dspex.operators.topology import Topology

    app = f"bench{uuid.uuid4().hex[:6]}"
    topology = Topology("bench")
    topology.source("bench.in", stream=SOURCE).map(change).sink(f"{app}.out")
    settings = Settings.load(server__url=url, app=app)
    nc = await nats.connect(url)
    async with Engine(topology, settings=settings, pools="none"):
        began = time.perf_counter()
        await stored(nc, f"DSPEX_{app}", f"{app}.out", count)
        took = time.perf_counter() - began
    await nc.jetstream().delete_stream(f"DSPEX_{app}")
    await nc.close()
    return took


PEERS: dict[str, tuple[Callable[[str, int], Awaitable[float]], float]] = {
    "limit": (limit, 1.0),
    "dspex": (dspex, 1.0),
    "nats-py": (plain, 0.2),
    "faststream": (faststream, 0.1),
}
