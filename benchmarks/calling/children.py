"""What the workers of a pool cost: how soon they are ready, what memory they have, and whether it stays.

* start: workers of one pool that are forked from a zygote, and that start one by one (`zygote = false`): seconds until all are
  ready, milliseconds until one more is, MiB of memory of each (PSS: what a process shares counts in part), and seconds until
  all have ended; every worker answers a call in between.
* flat: MiB that a worker has resident, after each tenth of many calls.

    python benchmarks/calling/children.py [--forked 100] [--execed 8] [--calls 50000] [--imports dspy] [--json]

The pool is real; calls are handed to it in this process, without a server. The program does nothing, and its module imports
what `--imports` says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import structlog

from dspex.bus import subjects
from dspex.bus.memory.server import MemoryServer
from dspex.bus.message import new_id
from dspex.bus.port import StreamConfig
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.workers.config import PoolConfig
from dspex.workers.pool.pool import Pool
from dspex.workers.processes.usage import resident

MIB = 1 << 20
IN_FLIGHT = 16
FURTHER = 10  # workers that are started one after the other


class Callers:
    """Has calls answered by the workers of a pool."""

    def __init__(self, pool: Pool) -> None:
        self._executions = pool.executions

    async def call(self) -> CallRecord:
        call = new_id()
        spec = CallSpec("enrich", "nothing:nothing", "")
        work = CallRequest(
            call=call, try_number=1, attempt=1, topology="", node="", run=call, timeout=60.0, spec=spec, inputs={}, record=None
        )
        ended: asyncio.Future[CallRecord] = asyncio.get_running_loop().create_future()
        self._executions.start(work, work.pack(), ended.set_result)
        record = await ended
        if record.error is not None:
            raise SystemExit(f"a call failed: {record.error['message']}")
        return record

    async def many(self, number: int) -> None:
        left = iter(range(number))

        async def some() -> None:
            for _ in left:
                await self.call()

        await asyncio.gather(*(some() for _ in range(IN_FLIGHT)))


@asynccontextmanager
async def started(config: PoolConfig) -> AsyncGenerator[Pool, None]:
    bus = MemoryServer().connect()
    await bus.ensure_stream(StreamConfig(subjects.stream(config.app), subjects.own_subjects(config.app)))
    pool = Pool(bus, config)
    try:
        await pool.start()
        yield pool
    finally:
        await pool.drain(0.0)
        await bus.close()


def pss(pid: int) -> float:
    """MiB of a process, of what it shares its part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


async def start(config: PoolConfig) -> dict[str, float]:
    """Start so many, have each answer, start some more one by one, and stop all."""
    began = time.perf_counter()
    async with started(config) as pool:
        ready = time.perf_counter() - began
        callers, children = Callers(pool), pool.children
        await asyncio.gather(*(callers.call() for _ in range(config.size * config.slots)))
        idle = [child for child in children.children if not child.calls]
        memory = [pss(child.pid) for child in children.children]
        further = []
        for more in range(1, FURTHER + 1):
            began = time.perf_counter()
            await children.resize(config.size + more)
            further.append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
    stopped = time.perf_counter() - began
    return {
        "workers": config.size,
        "all ready, s": round(ready, 2),
        "one more, ms": round(statistics.median(further), 1),
        "slowest of ten more, ms": round(max(further), 1),
        "PSS of each, MiB": round(statistics.median(memory), 1),
        "PSS of all, MiB": round(sum(memory)),
        "answered none": len(idle),
        "all ended, s": round(stopped, 2),
    }


async def flat(config: PoolConfig, calls: int) -> list[float]:
    """MiB that one worker has after each tenth of the calls; first before any."""
    async with started(config) as pool:
        callers, (child,) = Callers(pool), pool.children.children
        found = [resident(child.pid) / MIB]
        for _ in range(10):
            await callers.many(calls // 10)
            found.append(resident(child.pid) / MIB)
        if pool.children.children != [child]:
            raise SystemExit("the worker did not live through all calls")
    return [round(mib, 1) for mib in found]


async def measured(forked: int, execed: int, calls: int, imports: list[str], folder: Path) -> dict[str, object]:
    """All of it, JSON-able."""
    code = "".join(f"import {name}\n" for name in imports) + "\nasync def nothing(data):\n    return {}\n"
    (folder / "nothing.py").write_text(code)
    config = PoolConfig("bench", "bench", slots=IN_FLIGHT, programs=("nothing:*",), path=(str(folder),))
    return {
        "imports": imports,
        "forked": await start(replace(config, size=forked, slots=1)) if forked else None,
        "one by one": await start(replace(config, size=execed, slots=1, zygote=False)) if execed else None,
        "resident, MiB": await flat(config, calls) if calls else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What the workers of a pool cost.")
    parser.add_argument("--forked", type=int, default=100, help="workers of the pool with a zygote; 0: leave it out")
    parser.add_argument("--execed", type=int, default=8, help="workers of the pool without")
    parser.add_argument("--calls", type=int, default=50_000, help="of one worker")
    parser.add_argument("--imports", nargs="*", default=["dspy"], help="what the program's module imports")
    parser.add_argument("--json", action="store_true", help="an object in place of text")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measured(given.forked, given.execed, given.calls, given.imports, Path(folder)))
    if given.json:
        print(json.dumps(found))
        return
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores; imports {', '.join(given.imports) or 'nothing'}")
    for name in ("forked", "one by one"):
        if isinstance(row := found[name], dict):
            print(f"{name:11}", ", ".join(f"{what}: {value}" for what, value in row.items()))
    if found["resident, MiB"]:
        print(f"resident MiB, after each {given.calls // 10:,} calls:", found["resident, MiB"])


if __name__ == "__main__":
    sys.exit(main())
