"""What keyed state costs, on one server, over events of 220 bytes of 1,000 keys.

* fused: events a second, and the CPU of the engine for an event, with more and more maps in one stage.
* peers: events a second of a number for each event (`count`), and of counts by key and minute (`window`): of dspex, of a loop
  written by hand with the same durability (jobs/by_hand.py), and of Bytewax in process, which
  stores nothing (jobs/in_bytewax.py).
* nexmark: events a second of eight queries of Nexmark (jobs/nexmark.py).
* recovery: seconds from the start of an engine to its first commit, with `--keys` keys of state in snapshots.
* memory: the memory of the engine while it takes `--long` events, tenth by tenth.
* idle: CPU, memory and messages of an engine with 20 keyed stages (1,280 partitions) that has nothing to do: before any event
  came, and behind events, when the clock moves the watermarks.

    python benchmarks/stateful.py [--events 60000] [--rounds 3] [--parts fused,peers] [--json]

Figures of one run compare with each other, and with nothing else. The load of the machine stands beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import psutil
import running
from arguments import one_of, positive
from jobs import by_hand, in_bytewax, nexmark, starts
from jobs.topologies import MINUTE

from dspex.bus.local.launch import free_port
from dspex.bus.local.server import LocalServer
from dspex.engine.graph.nodes import KEYED_PARTITIONS
from dspex.engine.log.tables import Tables

MAPS = (0, 10, 50)
KEYS = 1000
STAGES = 20
Figures = dict[str, Any]


async def measure(args: argparse.Namespace) -> Figures:
    """The parts that are wanted, each by its name."""
    with tempfile.TemporaryDirectory() as folder:
        monitor = free_port(None)
        async with LocalServer(Path(folder) / "jetstream", port=None, extra_config=f'http: "127.0.0.1:{monitor}"') as server:
            found: Figures = {}
            for part in PARTS:
                if part in args.parts:
                    before = os.getloadavg()[0]
                    found[part] = await PARTS[part](server.url, f"http://127.0.0.1:{monitor}", args)
                    found[part] |= {"load": [before, os.getloadavg()[0]]}
                    print(f"  {part}: {found[part]}", file=sys.stderr)
            return found


async def fused(url: str, monitor: str, args: argparse.Namespace) -> Figures:
    """Microseconds of CPU an event, by the number of maps."""
    rounds: dict[int, list[float]] = {maps: [] for maps in MAPS}
    for _ in range(args.rounds):
        for maps in MAPS:
            done = await running.race(url, args.events, processes=1, partitions=1, job="maps", number=maps)
            await running.forget(url, done.app)
            rounds[maps].append(1e6 * done.cpu / args.events)
    middle = {str(maps): statistics.median(of) for maps, of in rounds.items()}
    return {"cpu": middle, "an operator": (middle[str(MAPS[-1])] - middle["0"]) / MAPS[-1]}


async def peers(url: str, monitor: str, args: argparse.Namespace) -> Figures:
    """Events a second, by job and by who does it."""
    found: Figures = {}
    for job in ("count", "window"):
        # The last event is later than the end of all windows; it is in none that gives a result.
        windows = -(-args.events // MINUTE) * KEYS
        results, last = (args.events, None) if job == "count" else (windows, args.events + 2 * MINUTE)
        rates: dict[str, list[float]] = {"dspex": [], "by hand": [], "bytewax": []}
        cpu: dict[str, list[float]] = {"dspex": [], "by hand": [], "bytewax": []}
        for _ in range(args.rounds):
            done = await running.race(url, args.events, processes=1, partitions=1, job=job, results=results, last=last)
            await running.forget(url, done.app)
            hand = await by_hand.run(url, running.STREAM, running.SUBJECT, args.events + (last is not None), job)
            alone = await asyncio.to_thread(in_bytewax.run, args.events, job)
            for who, (seconds, used) in {"dspex": (done.seconds, done.cpu), "by hand": hand, "bytewax": alone}.items():
                rates[who].append(args.events / seconds)
                cpu[who].append(1e6 * used / args.events)
        found[job] = {"rate": _medians(rates), "cpu": _medians(cpu)}
    return found


async def queries(url: str, monitor: str, args: argparse.Namespace) -> Figures:
    """Events a second, and microseconds of CPU of the engine for an event, by query of Nexmark."""
    found: Figures = {}
    for name, query in nexmark.QUERIES.items():
        rates, cpu = list[float](), list[float]()
        for _ in range(args.rounds):
            results, last = nexmark.results(name, args.events), nexmark.LATER if query.ends else None
            more = {"results": results, "last": last, "make": nexmark.event}
            done = await running.race(url, args.events, processes=1, partitions=1, job=name, **more)
            await running.forget(url, done.app)
            rates.append(args.events / done.seconds)
            cpu.append(1e6 * done.cpu / args.events)
        found[name] = {"rate": statistics.median(rates), "cpu": statistics.median(cpu), "results": results}
        print(f"  {name}: {found[name]}", file=sys.stderr)
    return found


async def recovery(url: str, monitor: str, args: argparse.Namespace) -> Figures:
    """Seconds to the first result, of the process and of the engine in it."""
    app = running.new_app()
    await running.empty(url)
    await running.fill(url, KEYS)
    async with running.engine(url, app, running.STREAM, running.SUBJECT, job="count") as one:
        while sum(line["events"] for line in one.lines("commit")) < KEYS:
            await one.more()
    share = args.keys // KEYED_PARTITIONS
    row = msgpack.packb([time.time(), msgpack.packb(7)])
    for partition in range(KEYED_PARTITIONS):
        tables = Tables()
        for number in range(share):
            tables.keyed.put(("count", f"customer {partition:02} {number:06}", ""), row)
        await starts.write_entries(url, app, 1, "s2", partition, tables)
    await running.fill(url, KEYS)
    async with running.engine(url, app, running.STREAM, running.SUBJECT, job="count") as one:
        end = (await one.heard("commit"))["at"]
        while one.owned < 1 + KEYED_PARTITIONS:
            await one.more()
        owns = one.lines("owns")[-1]["at"]
        memory = psutil.Process(one.process.pid).memory_info().rss
        began = one.lines("began")[0]["at"]
    await running.forget(url, app)
    return {"keys": share * KEYED_PARTITIONS, "first result": end - began, "all owned": owns - began, "MB": memory / 1e6}


async def memory(url: str, monitor: str, args: argparse.Namespace) -> Figures:
    """MB of the engine and events a second, tenth by tenth."""
    app, curve, tenth = running.new_app(), list[float](), args.long // 10
    await running.empty(url)
    began = time.monotonic()
    async with running.engine(url, app, running.STREAM, running.SUBJECT, job="count", longest=None) as one:
        process, done, filled, seen = psutil.Process(one.process.pid), 0, 0, 0
        while done < args.long:
            if filled <= done:
                await running.fill(url, tenth)
                filled += tenth
            while done < filled:
                if seen == len(one.said):
                    await one.more()
                heard, seen = one.said[seen:], len(one.said)
                done += sum(line["events"] for line in heard if line["what"] == "commit")
            curve.append(process.memory_info().rss / 1e6)
            print(f"  memory: {done:,} events, {curve[-1]:.1f} MB", file=sys.stderr)
        rate = done / (time.monotonic() - began)
    await running.forget(url, app)
    return {"events": args.long, "MB": curve, "events/s, with the publisher": rate}


async def idling(url: str, monitor: str, args: argparse.Namespace) -> Figures:
    """Seconds of CPU and messages to the server in a minute, and MB: with no event yet, and behind events."""
    found: Figures = {}
    for name, events in {"no event yet": 0, "behind events": KEYS}.items():
        seconds = args.idle_seconds
        found[name] = await starts.idle_cost(url, monitor, 1, seconds, job="stages", number=STAGES, events=events)
    return found


PARTS = {"fused": fused, "peers": peers, "nexmark": queries, "recovery": recovery, "memory": memory, "idle": idling}


def _medians(rounds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(of) for name, of in rounds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=positive, default=60_000)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--parts", type=one_of(PARTS), default=tuple(PARTS), help=f"of {','.join(PARTS)}; all by default")
    parser.add_argument("--keys", type=positive, default=1_000_000, help="of state that is recovered")
    parser.add_argument("--long", type=positive, default=1_000_000, help="events of the part memory")
    parser.add_argument("--idle-seconds", type=positive, default=60)
    parser.add_argument("--json", action="store_true", help="an object on one line")
    args = parser.parse_args()
    print(json.dumps(asyncio.run(measure(args)), indent=None if args.json else 2))


if __name__ == "__main__":
    main()
