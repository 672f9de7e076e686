"""Keyed work: what a hop costs, and what a second engine process gives. On one server, over the same events of 220 bytes.

* hops: events a second, and the CPU of the engine for an event, over no hop, one and two (`key_by`, one behind the other), of
  events that are stored before the engine takes them; and the milliseconds from publishing one event to reading its result, one
  after another, when nothing else is there.
* processes: the same with one hop and a source of 4 partitions, of one engine process and of two, with the CPU of the server.

    python benchmarks/keyed.py [--events 40000] [--rounds 3] [--parts hops,processes] [--json]

The middle of all rounds counts. What a hop costs one event by itself is mostly another commit, and a wait for the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import running
from arguments import one_of, positive
from jobs.peers import event

from dspex.bus import subjects
from dspex.bus.local.server import LocalServer
from dspex.bus.nats import NatsBus, connect
from dspex.bus.port import NewMessage
from dspex.engine.graph.nodes import KEYED_PARTITIONS

PARTS = ("hops", "processes")
HOPS = (0, 1, 2)
GOAL = 1.7  # times as many events a second, of two processes
ONE_BY_ONE = 300
Figures = dict[str, dict[str, list[float]]]


async def measure(args: argparse.Namespace) -> dict[str, Figures]:
    """The parts that are wanted: by what was run, each figure by round."""
    with tempfile.TemporaryDirectory() as folder:
        async with LocalServer(Path(folder) / "jetstream", port=None) as server:
            process = psutil.Process(server.pid)

            def used() -> float:
                times = process.cpu_times()
                return times.user + times.system

            made = {"hops": hops, "processes": processes}
            return {part: await made[part](server.url, used, args) for part in PARTS if part in args.parts}


async def hops(url: str, used: Callable[[], float], args: argparse.Namespace) -> Figures:
    """One engine, over no hop, one and two."""
    found: Figures = {}
    for number in range(args.rounds):
        for count in HOPS if number % 2 else reversed(HOPS):
            done = await running.race(url, args.events, processes=1, partitions=1, number=count, server=used)
            await running.forget(url, done.app)
            _note(found, str(count), {**_rates(done, args.events), "ms": await one_by_one(url, count)}, "hops")
    return {str(count): found[str(count)] for count in HOPS}


async def processes(url: str, used: Callable[[], float], args: argparse.Namespace) -> Figures:
    """One engine process and two. Who begins changes with every round."""
    found: Figures = {}
    for number in range(args.rounds):
        for count in (1, 2) if number % 2 else (2, 1):
            done = await running.race(url, args.events, processes=count, partitions=4, number=1, server=used)
            await running.forget(url, done.app)
            _note(found, str(count), _rates(done, args.events), "engine process(es)")
    return {count: found[count] for count in ("1", "2")}


def _rates(done: running.Race, events: int) -> dict[str, float]:
    return {"rate": events / done.seconds, "cpu": 1e6 * done.cpu / events, "server": 1e6 * done.server / events}


def _note(found: Figures, name: str, figures: Mapping[str, float], of: str) -> None:
    for key, value in figures.items():
        found.setdefault(name, {}).setdefault(key, []).append(value)
    print(f"  {name} {of}: " + ", ".join(f"{key} {value:,.1f}" for key, value in figures.items()), file=sys.stderr)


async def one_by_one(url: str, hops: int) -> float:
    """Milliseconds from an event to its result, the middle: each is published when the one before has come out."""
    app = running.new_app()
    await running.empty(url)
    bus = await connect(url)
    async with running.engine(url, app, running.STREAM, running.SUBJECT, number=hops) as engine:
        await running.shared([engine], 1 + hops * KEYED_PARTITIONS)
        took = await _turns(bus, app)
    await bus.close()
    await running.forget(url, app)
    return 1000 * took


async def _turns(bus: NatsBus, app: str) -> float:
    reader, turns = await bus.reader(subjects.stream(app), [f"{app}.out"], after=0, name=f"{app}-results"), list[float]()
    for number in range(ONE_BY_ONE):
        began = time.perf_counter()
        await bus.publish(NewMessage(running.SUBJECT, event(number)))
        while not await reader.read(1):
            pass
        turns.append(time.perf_counter() - began)
    await reader.close()
    return statistics.median(turns)


def table(middle: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """The figures for people."""
    lines: list[str] = []
    for part, first in (("hops", "0"), ("processes", "1")):
        if rows := middle.get(part):
            last = f"{'one by one':>13}" if part == "hops" else ""
            lines += ["", f"{part:<12}{'events/s':>12}{'beside ' + first:>10}{'CPU, µs':>10}{'server, µs':>12}{last}"]
        for name, row in (rows or {}).items():
            ratio = row["rate"] / rows[first]["rate"]
            goal = f"  (goal: at least {GOAL:g})" if (part, name) == ("processes", "2") else ""
            ms = f"{row['ms']:>10.2f} ms" if "ms" in row else ""
            lines.append(f"{name:<12}{row['rate']:>12,.0f}{ratio:>9.2f}x{row['cpu']:>10.1f}{row['server']:>12.1f}{ms}{goal}")
    return lines[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=positive, default=40_000)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--parts", type=one_of(PARTS), default=PARTS, help=f"of {','.join(PARTS)}; all by default")
    parser.add_argument("--json", action="store_true", help="an object instead of tables")
    args = parser.parse_args()
    figures = asyncio.run(measure(args))
    middle = {
        part: {name: {key: statistics.median(rounds) for key, rounds in row.items()} for name, row in rows.items()}
        for part, rows in figures.items()
    }
    whole = {"events": args.events, "rounds": args.rounds, "figures": figures, "medians": middle}
    print(json.dumps(whole) if args.json else "\n".join(table(middle)))


if __name__ == "__main__":
    main()
