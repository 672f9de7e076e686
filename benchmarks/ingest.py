"""Storing rows: `dspex publish -f`, and `client.publish` awaited one by one, beside a plain `await js.publish` a row.

    python benchmarks/ingest.py [--rows 40000] [--rounds 3] [--json]

All store the same rows in one stream of one server, each with an id. They run by turns; those that go one by one take turns
every 50 rows, so that what else the machine does falls on both. The middle of all turns counts, and only the ratios travel.

* plain: nats-py, `await js.publish` a row. client: `await client.publish` a row.
* file: the command `dspex publish -f rows.csv`, as it says itself; and with all of it: its start, and the check of the file.
* limit: nats-py with as many messages in flight as the command has, prepared before the clock runs. Whoever stores rows one by
  one, each with an acknowledgement of its own, cannot be faster with this client: the rest is what reading rows costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import orjson
from arguments import positive
from nats.aio.client import Client as NATS

from dspex.bus.local.server import LocalServer
from dspex.bus.message import new_id
from dspex.bus.nats import NatsBus, connect
from dspex.bus.port import WINDOW, StreamConfig
from dspex.engine.cli.events.sending import FLYING
from dspex.engine.client.client import Client

STREAM, SUBJECT = "INGEST", "ingest.rows"
ROW = {"text": "My card was stolen and I need a new one. " * 4, "customer": "c17"}
TURN = 50  # rows that are stored one by one before the other one's turn
ONE_BY_ONE = 2000
GOALS = {"file": 8.0, "client": 1 / 1.5}


async def _timed(count: int, store: Callable[[], Awaitable[object]]) -> float:
    """Seconds a row."""
    began = time.perf_counter()
    for _ in range(count):
        await store()
    return (time.perf_counter() - began) / count


async def one_by_one(nc: NATS, bus: NatsBus, count: int) -> dict[str, float]:
    """Rows a second of the plain loop and of the client: the middle of their turns."""
    js, client, body = nc.jetstream(), Client(bus=bus, app="bench"), orjson.dumps(ROW)
    turns: dict[str, list[float]] = {"plain": [], "client": []}
    for _ in range(max(2, count // TURN)):
        plain = _timed(TURN, lambda: js.publish(SUBJECT, body, headers={"Nats-Msg-Id": new_id()}))
        turns["plain"].append(await plain)
        turns["client"].append(await _timed(TURN, lambda: client.publish(SUBJECT, ROW)))
    return {name: 1 / statistics.median(found) for name, found in turns.items()}


async def limit(nc: NATS, count: int) -> float:
    """Rows a second of nats-py with WINDOW * FLYING messages in flight."""
    body, most = orjson.dumps(ROW), WINDOW * FLYING
    room, done, answered = asyncio.Semaphore(most), asyncio.Event(), 0
    headers = [{"Nats-Msg-Id": new_id()} for _ in range(count)]

    async def take(_: Any) -> None:
        nonlocal answered
        answered += 1
        room.release()
        if answered == count:
            done.set()

    inbox = nc.new_inbox()
    subscription = await nc.subscribe(f"{inbox}.*", cb=take)
    began = time.perf_counter()
    for i in range(count):
        await room.acquire()
        await nc.publish(SUBJECT, body, reply=f"{inbox}.{i}", headers=headers[i])
    await done.wait()
    took = time.perf_counter() - began
    await subscription.unsubscribe()
    return count / took


async def file(url: str, folder: Path, count: int, number: int) -> tuple[float, float]:
    """Rows a second of the command: as it says itself, and with its start and the check."""
    rows = folder / "rows.csv"
    rows.write_text("text,customer,n\n" + "".join(f"{ROW['text']},{ROW['customer']},{number}-{i}\n" for i in range(count)))
    command = [sys.executable, "-m", "dspex", "--no-progress", "--server", url, "publish", SUBJECT, "-f", str(rows)]
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    took = time.perf_counter() - began
    said = re.match(rf"{count:,} published to .*, 0 duplicates, in .* \(([\d,]+)/s\)", out.decode())
    if process.returncode or said is None:
        raise SystemExit(f"bench: dspex publish failed: {out.decode()}")
    return float(said[1].replace(",", "")), count / took


async def measure(url: str, folder: Path, rows: int, rounds: int) -> dict[str, float]:
    """Rows a second of each, the middle of all rounds."""
    nc, bus = await nats.connect(url), await connect(url)
    await bus.ensure_stream(StreamConfig(STREAM, [SUBJECT]))
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        some = await one_by_one(nc, bus, min(rows, ONE_BY_ONE))
        some["file"], some["file, all of it"] = await file(url, folder, rows, number)
        some["limit"] = await limit(nc, rows)
        for name, rate in some.items():
            found.setdefault(name, []).append(rate)
    await bus.close()
    await nc.close()
    return {name: statistics.median(rates) for name, rates in found.items()}


async def on_a_server(folder: Path, rows: int, rounds: int) -> dict[str, float]:
    """`measure`, on a server of its own."""
    (folder / "dspex.toml").write_text('app = "bench"\n')
    async with LocalServer(folder / "jetstream", port=None) as server:
        return await measure(server.url, folder, rows, rounds)


def table(rates: dict[str, float]) -> list[str]:
    """The figures for people."""
    lines = [f"{'rows stored':24}{'a second':>10}{'beside plain':>14}"]
    for name, rate in rates.items():
        ratio = rate / rates["plain"]
        goal = f"  (goal: at least {GOALS[name]:.2g})" if name in GOALS else ""
        lines.append(f"{name:24}{rate:10,.0f}{ratio:13.2f}x{goal}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=positive, default=40_000)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rates = asyncio.run(on_a_server(Path(folder), given.rows, given.rounds))
    print(json.dumps(rates) if given.json else "\n".join(table(rates)))


if __name__ == "__main__":
    main()
