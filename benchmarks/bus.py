"""The bus alone, beside hand-written nats-py: reading, and committing batches of 1000. Medians of several runs.

    python benchmarks/bus.py [--messages 100000] [--runs 5] [--json]

The server, the bus and nats-py share one machine, so only the ratios travel. CPU time is of the client's process alone,
and steadier than the clock where other processes run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
from arguments import positive
from nats.aio.client import Client

from dspex.bus.nats import NatsBus, connect
from dspex.bus.port import NewMessage, StreamConfig

BATCH = 1000
DATA = b'{"text": "' + b"x" * 180 + b'", "n": 1}'
HEADERS = {
    "Dspex-Id": "019a0000-0000-7000-8000-000000000000",
    "Dspex-Run": "019a0000-0000-7000-8000-000000000000",
    "Content-Type": "application/json",
}


def server(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A nats-server on a free port, and its URL."""
    config, log = folder / "nats.conf", folder / "log"
    config.write_text(
        f'listen: "127.0.0.1:-1"\njetstream {{ store_dir: "{folder}/js" }}\nfeature_flags {{ js_ack_fc_v2: false }}\n'
    )
    with log.open("wb") as out:
        process = subprocess.Popen([Path(sys.executable).parent / "nats-server", "-c", config], stderr=out)
    while "Server is ready" not in log.read_text():
        time.sleep(0.01)
    found = re.search(r"client connections on (\S+)", log.read_text())
    assert found is not None
    return process, f"nats://{found[1]}"


# -- reading ---------------------------------------------------------------------------------------------------------
async def read(bus: NatsBus, subject: str, count: int) -> None:
    reader = await bus.reader("B", [subject], after=0, name="bench")
    got = 0
    while got < count:
        got += len(await reader.read(500))
    await reader.close()


async def read_plain(nc: Client, subject: str, count: int) -> None:
    """nats-py with raw pulls and its own callback: the fastest that it can do."""
    config = {"name": "plain", "ack_policy": "none", "filter_subject": subject, "mem_storage": True, "num_replicas": 1}
    body = json.dumps({"stream_name": "B", "config": config}).encode()
    await nc.request(f"$JS.API.CONSUMER.CREATE.B.plain.{subject}", body, timeout=5)
    inbox, got, done = nc.new_inbox(), 0, asyncio.Event()
    pull = json.dumps({"batch": 1000, "expires": int(30e9)}).encode()

    async def take(message: Any) -> None:
        nonlocal got
        got += 1
        if got % 1000 == 0 and got < count:
            await nc.publish("$JS.API.CONSUMER.MSG.NEXT.B.plain", pull, reply=inbox)
        if got == count:
            done.set()

    sub = await nc.subscribe(inbox, cb=take)
    for _ in range(2):
        await nc.publish("$JS.API.CONSUMER.MSG.NEXT.B.plain", pull, reply=inbox)
    await done.wait()
    await sub.unsubscribe()
    await nc.request("$JS.API.CONSUMER.DELETE.B.plain", b"", timeout=5)


# -- committing ------------------------------------------------------------------------------------------------------
async def commit(bus: NatsBus, subject: str, count: int) -> None:
    last = None
    for _ in range(count // BATCH):
        drafts = [NewMessage(subject, DATA, HEADERS) for _ in range(BATCH - 1)]
        last = await bus.commit([*drafts, NewMessage("b.log", b"", expect=last or await last_of(bus))])


async def last_of(bus: NatsBus) -> int:
    message = await bus.last("B", "b.log")
    return message.sequence if message else 0


async def commit_plain(nc: Client, bus: NatsBus, subject: str, count: int) -> None:
    expect = await last_of(bus)
    for _ in range(count // BATCH):
        id = f"plain{time.perf_counter_ns()}"
        for i in range(1, BATCH):
            headers = {**HEADERS, "Nats-Batch-Id": id, "Nats-Batch-Sequence": str(i)}
            if i == 1:
                await nc.request(subject, DATA, headers=headers, timeout=5)
            else:
                await nc.publish(subject, DATA, headers=headers)
        headers = {"Nats-Batch-Id": id, "Nats-Batch-Sequence": str(BATCH), "Nats-Batch-Commit": "1"}
        headers["Nats-Expected-Last-Subject-Sequence"] = str(expect)
        answer = json.loads((await nc.request("b.log", b"", headers=headers, timeout=5)).data)
        expect = answer["seq"]


async def measure(url: str, messages: int, runs: int) -> dict[str, tuple[float, float]]:
    """By name: messages a second, and microseconds of CPU a message in this process."""
    bus, nc = await connect(url), await nats.connect(url)
    await bus.ensure_stream(StreamConfig("B", ["b.>"]))
    wall: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}

    async def run(name: str, what: Callable[[], Awaitable[None]]) -> None:
        start, busy = time.perf_counter(), time.process_time()
        await what()
        wall.setdefault(name, []).append(messages / (time.perf_counter() - start))
        cpu.setdefault(name, []).append((time.process_time() - busy) / messages * 1e6)

    for start in range(0, messages, BATCH):
        await asyncio.gather(*[bus.publish(NewMessage("b.bare", DATA)) for _ in range(min(BATCH, messages - start))])
        await bus.commit([NewMessage("b.head", DATA, HEADERS)] * min(BATCH, messages - start))
    for _ in range(runs):
        await run("commit", lambda: commit(bus, "b.out", messages))
        await run("commit, plain", lambda: commit_plain(nc, bus, "b.out", messages))
        await bus.purge("B", "b.out", below=1 << 40)
        await run("read", lambda: read(bus, "b.head", messages))
        await run("read bare", lambda: read(bus, "b.bare", messages))
        await run("read bare, plain", lambda: read_plain(nc, "b.bare", messages))
        await run("read, plain", lambda: read_plain(nc, "b.head", messages))
    await nc.close()
    await bus.close()
    return {name: (statistics.median(wall[name]), statistics.median(cpu[name])) for name in wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=positive, default=100_000)
    parser.add_argument("--runs", type=positive, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, url = server(Path(folder))
        try:
            results = asyncio.run(measure(url, arguments.messages, arguments.runs))
        finally:
            process.terminate()
            process.wait()
    if arguments.json:
        print(json.dumps(results))
        return
    print(f"{arguments.messages} messages of {len(DATA)} B with {len(HEADERS)} headers, median of {arguments.runs} runs\n")
    for name in ("commit", "read bare", "read"):
        (rate, cpu), (plain_rate, plain_cpu) = results[name], results[f"{name}, plain"]
        print(
            f"{name:10} {rate:9,.0f}/s {cpu:6.2f} µs   plain nats-py {plain_rate:9,.0f}/s {plain_cpu:6.2f} µs   "
            f"ratio {rate / plain_rate:.2f}, {plain_cpu / cpu:.2f} of CPU"
        )


if __name__ == "__main__":
    main()
