"""Durable → durable: one stage that reads a stream, changes each event, and stores the result. What it costs, in ratios.

All in one run, on one server, over the same preloaded events (220 bytes of JSON):

* throughput: events a second, beside the peers (jobs/peers.py).
* cpu: the engine's CPU time for an event, beside that of the bus alone (beside_bus.py).
* processes: two engine processes on a source of 4 partitions, beside one (running.py).
* sealed: the same engine with payloads that are sealed, of 1,000 sessions, beside payloads in clear text (running.py).
* start, idle: seconds until the first commit; CPU and requests of an engine with nothing to do (jobs/starts.py).

    python benchmarks/pipeline.py --events 60000 --rounds 3 [--parts throughput,cpu] [--json]

Prints medians and ratios; --out writes them as JSON. Figures of one machine and one run compare with each other, and with
nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import beside_bus
import running
from arguments import one_of, positive
from jobs import starts
from jobs.peers import PEERS, preload

from dspex.bus.local.launch import free_port
from dspex.bus.local.server import LocalServer

PARTS = ("throughput", "cpu", "processes", "sealed", "start", "idle")
IDLE = (4, 64)  # partitions of an engine with nothing to do
GOAL = 1.5  # times the CPU of the bus alone, at most


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All parts that are wanted, each by its name: figures by round."""
    with tempfile.TemporaryDirectory() as folder:
        monitor = free_port(None)
        more = f'http: "127.0.0.1:{monitor}"'
        async with LocalServer(Path(folder) / "jetstream", port=None, extra_config=more) as server:
            made = {
                "throughput": lambda: throughput(server.url, args),
                "cpu": lambda: cpu(server.url, args),
                "processes": lambda: processes(server.url, args),
                "sealed": lambda: sealed(server.url, args),
                "start": lambda: start(server.url, args),
                "idle": lambda: idle(server.url, f"http://127.0.0.1:{monitor}", args),
            }
            return {part: await made[part]() for part in PARTS if part in args.parts}


async def throughput(url: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Events a second of each peer. Slow peers get fewer events."""
    rates: dict[str, list[float]] = {p: [] for p in args.peers}
    await preload(url, args.events, bare=args.bare)
    for _ in range(args.rounds):
        for peer in args.peers:
            count = max(1, int(args.events * PEERS[peer][1]))
            # a process each: no peer pays for another's garbage or threads
            rates[peer].append(count / await _apart(peer, url, count))
            _said(peer, f"{rates[peer][-1]:>10,.0f} /s")
    return rates


async def _apart(peer: str, url: str, count: int) -> float:
    command = [sys.executable, __file__, "--one", peer, "--url", url, "--events", str(count)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=os.environ)
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"{peer} failed")
    return float(out.split()[-1])


async def cpu(url: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Microseconds of CPU an event."""
    found: dict[str, list[float]] = {"engine": [], "bus": []}
    for _ in range(args.rounds):
        for name, micros in (await beside_bus.one_round(url, args.events)).items():
            found[name].append(micros)
            _said(name, f"{micros:>10.1f} µs of CPU an event")
    return found


async def processes(url: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Events a second of one and of two engine processes. Who begins changes with every round."""
    rates: dict[str, list[float]] = {"1": [], "2": []}
    for number in range(args.rounds):
        for count in (1, 2) if number % 2 else (2, 1):
            done = await running.race(url, args.events, processes=count, partitions=4)
            await running.forget(url, done.app)
            rates[str(count)].append(args.events / done.seconds)
            _said(f"{count} engine(s)", f"{rates[str(count)][-1]:>10,.0f} /s")
    return rates


async def sealed(url: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Events a second with sealed payloads and without. What comes first changes with every round."""
    rates: dict[str, list[float]] = {"in clear text": [], "sealed": []}
    for number in range(args.rounds):
        for is_sealed in (False, True) if number % 2 else (True, False):
            done = await running.race(url, args.events, processes=1, partitions=1, sealed=is_sealed)
            await running.forget(url, done.app)
            name = "sealed" if is_sealed else "in clear text"
            rates[name].append(args.events / done.seconds)
            _said(name, f"{rates[name][-1]:>10,.0f} /s, {1e6 * done.cpu / args.events:.1f} µs of CPU an event")
    return rates


async def start(url: str, args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds to the first commit, by the kind of log, from the start of the process and of the engine."""
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(args.rounds):
        for kind, costs in (await starts.start_costs(url, args.entries)).items():
            for since, seconds in costs.items():
                found.setdefault(kind, {}).setdefault(since, []).append(seconds)
            _said("start", f"{costs['process']:>10.2f} s: {kind}")
    return found


async def idle(url: str, monitor: str, args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds of CPU and requests in a minute, by the number of partitions."""
    found: dict[str, dict[str, list[float]]] = {}
    for partitions in IDLE:
        cost = await starts.idle_cost(url, monitor, partitions, args.idle_seconds)
        found[str(partitions)] = {name: [value] for name, value in cost.items()}
        _said("idle", f"{cost['cpu']:>10.2f} s of CPU a minute: {partitions} partitions")
    return found


def _said(who: str, what: str) -> None:
    print(f"  {who:<12}{what}", file=sys.stderr)


# -- what is shown -----------------------------------------------------------------------------------------------------
def medians(figures: Any) -> Any:
    """The middle of each list."""
    return statistics.median(figures) if isinstance(figures, list) else {k: medians(v) for k, v in figures.items()}


def ratios(middle: Mapping[str, Any]) -> dict[str, Any]:
    """What one figure is beside another of the same run."""
    found: dict[str, Any] = {}
    if "dspex" in (rates := middle.get("throughput", {})):
        found["throughput"] = {peer: rates["dspex"] / rate for peer, rate in rates.items()}
    if "cpu" in middle:
        found["cpu"] = middle["cpu"]["engine"] / middle["cpu"]["bus"]
    if "sealed" in middle:
        found["sealed"] = middle["sealed"]["sealed"] / middle["sealed"]["in clear text"]
    if "processes" in middle:
        found["processes"] = middle["processes"]["2"] / middle["processes"]["1"]
    return found


def tables(middle: Mapping[str, Any], beside: Mapping[str, Any], args: argparse.Namespace) -> list[str]:
    """The lines for people."""
    lines = [f"medians of {args.rounds}, {args.events:,} events of 220 B"]
    if rates := middle.get("throughput"):
        lines += ["", f"{'peer':<26}{'events/s':>12}{'dspex is':>12}"]
        shown = {peer: f"{ratio:.2f}x" for peer, ratio in beside.get("throughput", {}).items()}
        lines += [f"{peer:<26}{rate:>12,.0f}{shown.get(peer, ''):>12}" for peer, rate in rates.items()]
    if found := middle.get("cpu"):
        lines += ["", f"{'CPU an event':<26}{'µs':>12}{'beside bus':>12}"]
        lines.append(f"{'engine':<26}{found['engine']:>12.1f}{beside['cpu']:>11.2f}x  (goal: at most {GOAL:g})")
        lines.append(f"{'bus: read and commit':<26}{found['bus']:>12.1f}{1:>11.2f}x")
    if found := middle.get("processes"):
        lines += ["", f"{'4 partitions':<26}{'events/s':>12}{'beside one':>12}"]
        lines += [f"{n + ' engine process(es)':<26}{found[n]:>12,.0f}{found[n] / found['1']:>11.2f}x" for n in ("1", "2")]
    if found := middle.get("sealed"):
        lines += ["", f"{'payloads':<26}{'events/s':>12}{'beside clear':>13}"]
        lines += [f"{name:<26}{rate:>12,.0f}{rate / found['in clear text']:>12.2f}x" for name, rate in found.items()]
    if found := middle.get("start"):
        lines += ["", f"{'start to first commit':<34}{'of process':>12}{'of engine':>12}"]
        lines += [f"{kind:<34}{cost['process']:>10.2f} s{cost['engine']:>10.2f} s" for kind, cost in found.items()]
    if found := middle.get("idle"):
        lines += ["", f"{'idle, a minute':<26}{'CPU':>12}{'requests':>12}"]
        lines += [f"{n + ' partitions':<26}{c['cpu']:>10.2f} s{c['requests']:>12,.0f}" for n, c in found.items()]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=positive, default=60_000)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--parts", type=one_of(PARTS), default=PARTS, help=f"of {','.join(PARTS)}; all by default")
    parser.add_argument("--peers", type=one_of(PEERS), default=tuple(PEERS), help=f"of {','.join(PEERS)}; all by default")
    parser.add_argument("--bare", action="store_true", help="events without ids, as they should not be published")
    parser.add_argument("--entries", type=positive, default=10_000, help="behind the snapshot of the log that is started from")
    parser.add_argument("--idle-seconds", type=positive, default=60)
    parser.add_argument("--json", action="store_true", help="an object instead of tables")
    parser.add_argument("--out", type=Path, help="the same object in a file")
    parser.add_argument("--one", choices=PEERS, help="one peer, over events that are stored already; prints its seconds")
    parser.add_argument("--url")
    args = parser.parse_args()
    if args.one:
        print(asyncio.run(PEERS[args.one][0](args.url, args.events)))
        return
    figures = asyncio.run(measure(args))
    middle = medians(figures)
    beside = ratios(middle)
    whole = json.dumps({"events": args.events, "rounds": args.rounds, "figures": figures, "medians": middle, "ratios": beside})
    print(whole if args.json else "\n".join(tables(middle, beside, args)))
    if args.out:
        args.out.write_text(whole)


if __name__ == "__main__":
    main()
