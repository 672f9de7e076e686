"""One system in a process of its own, which is its client: it starts the worker, measures, and prints what each part gave as
a line of JSON.

python -m calling.one direct --seconds 5 --parts 1,16,64,half
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import selectors
import statistics
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib import import_module
from typing import Any

from calling.load import Coroutines, Took
from calling.processes import READY, System, used
from calling.programs import WAIT
from calling.where import Where

SYSTEMS = {
    "raw": "raw:system",
    "direct": "in_dspex:direct",
    "cached": "in_dspex:cached",
    "session": "in_dspex:session",
    "required": "in_dspex:required",
    "durable": "in_dspex:durable",
    "awaited": "in_dspex:awaited",
    "watched": "in_dspex:watched",
    "celery": "in_celery:system",
    "celery-kept": "in_celery:system",
    "dramatiq": "in_dramatiq:system",
    "taskiq-nats": "in_taskiq:system",
}
BURST = 1500  # calls at once
AT = "@"  # before a number of calls a second
SPREAD = "~"  # before a number of calls in flight, which begin one after the other
MOST = "64"  # calls in flight, by which the rate is known at which a core is full: before `half`
KEPT = 0.9  # of the calls on a schedule: with fewer answered at its end, it was too much
LEAST = 1 / 16  # of what fills a core
WARM = 1.0  # seconds, at most, that come before what is measured


async def measure(name: str, seconds: float, parts: list[str]) -> None:
    """Print the figures of a system, part by part."""
    where = Where.here()
    async with _opened(name, where) as system:
        async with asyncio.timeout(READY):
            await system.load.once()
        await system.load.in_flight(max((int(part) for part in parts if part.isdigit()), default=1), min(WARM, seconds))
        rate = 0.0
        for part in parts:
            if part == "half":
                found = await _on_schedule(system, where, rate, seconds)
            elif part == "burst":
                found = await _figures(system, where, partial(system.load.burst, BURST))
            elif part.startswith(AT):
                found = await _figures(system, where, partial(system.load.on_schedule, float(part[1:]), seconds))
            elif part.startswith(SPREAD) and isinstance(system.load, Coroutines):
                found = await _figures(system, where, partial(system.load.spread, int(part[1:]), seconds, WAIT))
            else:
                found = await _figures(system, where, partial(system.load.in_flight, int(part), seconds))
            if part == MOST:
                rate = full(found["each"], os.cpu_count() or 1) / 2
            print(json.dumps({"part": part, **found}), flush=True)


async def _on_schedule(system: System, where: Where, rate: float, seconds: float) -> dict[str, Any]:
    """At so many calls a second; at half as many, and so on, where that is too much.

    `due`: how many it was at last; `of core`: which share of what fills a core.
    """
    share = 0.5
    while True:
        found = await _figures(system, where, partial(system.load.on_schedule, rate, seconds))
        if found["kept"] >= KEPT or share <= LEAST:
            return {**found, "due": rate, "of core": share}
        rate, share = rate / 2, share / 2


def _opened(name: str, where: Where) -> AbstractAsyncContextManager[System]:
    module, _, function = SYSTEMS[name].partition(":")
    opened: Callable[[Where], AbstractAsyncContextManager[System]] = getattr(import_module(f"calling.{module}"), function)
    return opened(where)


async def _figures(system: System, where: Where, load: Callable[[], Awaitable[Took]]) -> dict[str, Any]:
    """Milliseconds, calls a second, and microseconds of CPU a call by process."""
    processes = system.processes(where)
    before = used(processes)
    took = await load()
    after = used(processes)
    calls = len(took.latencies)
    cpu = {name: [1e6 * (end - begin) / calls for begin, end in zip(before[name], after[name])] for name in processes}
    percentiles = statistics.quantiles(took.latencies, n=100, method="inclusive")
    return {
        "calls": calls,
        "rate": calls / took.seconds,
        "p50": 1000 * statistics.median(took.latencies),
        "p99": 1000 * percentiles[98],
        "kept": took.kept,
        "cpu": {name: sum(several) for name, several in cpu.items()},
        "each": cpu,
    }


def full(cpu: Mapping[str, list[float]], cores: int) -> float:
    """Calls a second at which the busiest process fills a core, or all of them together all cores.

    `cpu`: microseconds a call of each process.
    """
    each = [one for several in cpu.values() for one in several]
    if not any(each):
        raise SystemExit("bench: that was too short to see what the processes used: --seconds")
    return 1e6 / max(*each, sum(each) / cores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--parts", required=True)
    args = parser.parse_args()
    # epoll wakes on whole milliseconds, which is longer than a call takes: what is due would come late.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(measure(args.system, args.seconds, args.parts.split(",")))


if __name__ == "__main__":
    main()
