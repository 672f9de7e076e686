"""What it costs that an engine starts, and that it runs and has nothing to do.

A start is measured to the first commit, from the start of the process, and from that of the engine in it, when its modules are
there. One event waits in the source. Once with an empty log, and once with a log of a snapshot and many entries behind it.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.request
from collections.abc import Mapping

import psutil
from running import STREAM, SUBJECT, TOPOLOGY, Running, empty, engine, fill, forget, new_app, shared

from dspex.bus.nats import connect
from dspex.bus.port import NewMessage
from dspex.engine.graph import manifest
from dspex.engine.graph.nodes import KEYED_PARTITIONS
from dspex.engine.log.commit_log import CommitLog
from dspex.engine.log.entries import LogAddress
from dspex.engine.log.latest import latest, look
from dspex.engine.log.tables import Tables
from jobs.topologies import JOBS

STAGE = "s1"
BATCH = 900  # entries that are written at once
SETTLE = 3.0  # seconds, at most, that an engine gets before it counts as idle
TICKS = os.sysconf("SC_CLK_TCK")


# -- starting --------------------------------------------------------------------------------------------------------
async def start_costs(url: str, entries: int) -> dict[str, dict[str, float]]:
    """Seconds to the first commit, from the start of the process and from that of the engine, by the kind of log."""
    app = new_app()
    await empty(url)
    costs = {"empty log": await _to_first_commit(url, app)}
    await write_entries(url, app, entries)
    costs[f"snapshot and {entries:,} entries"] = await _to_first_commit(url, app)
    await forget(url, app)
    return costs


async def _to_first_commit(url: str, app: str) -> dict[str, float]:
    await fill(url, 1)
    async with engine(url, app, STREAM, SUBJECT) as one:
        end = (await one.heard("commit"))["at"]
        return {"process": end - one.spawned, "engine": end - one.lines("began")[0]["at"]}


async def write_entries(
    url: str, app: str, count: int, stage: str = STAGE, partition: int = 0, state: Tables | None = None
) -> None:
    """Go on with a partition's log as an owner would: a claim, a snapshot, the entry that names it, and more entries.

    They move no position, so that nothing is needed for them. `state`: what the snapshot has besides what is there.
    """
    bus = await connect(url)
    address = LogAddress.of(app, TOPOLOGY, stage, partition)
    version = (await manifest.of_application(bus, app))[TOPOLOGY].version
    tables, end = await look(bus, app, TOPOLOGY, stage, partition), await latest(bus, address)
    log = CommitLog(bus, address, "bench", version)
    log.landed_claim(await bus.commit([log.draft(end, time.time())]))
    if state is not None:
        tables.apply({"keyed": state.keyed.snapshot()}, 0)
    snapshot = await log.write_snapshot(end.at, tables.snapshot())
    rows = tables.positions.snapshot()
    body = {"digest": bytes(16), "taken": [[rows[0][0], rows[0][1].sequence, rows[0][1].sequence, 1, time.time()]]}
    (naming,) = log.entry(body, {"positions": rows}, covers=0, at=time.time(), snapshot=snapshot)
    log.landed(await bus.commit([naming]), len(naming.data), snapshot)
    entries: list[NewMessage] = []
    for _ in range(count - 1):  # nobody else writes to the stream now, so it is known where each will lie
        (more,) = log.entry(body, {"positions": rows}, covers=0, at=time.time())
        log.landed(log.sequence + 1, len(more.data), None)
        entries.append(more._replace(expect=None))
    for done in range(0, len(entries), BATCH):
        await bus.commit(entries[done : done + BATCH])
    assert (await latest(bus, address)).at == log.sequence, "the engine takes these entries for no log"
    await bus.close()


# -- doing nothing -----------------------------------------------------------------------------------------------------
async def idle_cost(
    url: str, monitor: str, partitions: int, seconds: float, *, job: str = "hops", number: int = 0, events: int = 0
) -> dict[str, float]:
    """Seconds of CPU and messages to the server in a minute, and MB, of an engine that has nothing to do.

    `monitor`: where the server answers HTTP. Every question and every heartbeat of the engine is a message to the server.
    `job`, `number`: of jobs/topologies.py. `events`: that it took before.
    """
    app = new_app()
    await empty(url)
    async with engine(url, app, STREAM, SUBJECT, partitions, job=job, number=number) as one:
        await shared([one], partitions + JOBS[job].behind(number) * KEYED_PARTITIONS)
        await fill(url, events)
        while sum(line["events"] for line in one.lines("commit")) < events:
            await one.more()
        await asyncio.sleep(min(SETTLE, seconds))
        before, cpu, began = await _messages(monitor, one), _cpu(one), time.monotonic()
        await asyncio.sleep(seconds)
        passed = time.monotonic() - began
        cost = {"cpu": _cpu(one) - cpu, "requests": await _messages(monitor, one) - before}
        size = psutil.Process(one.process.pid).memory_info().rss / 1e6
    await forget(url, app)
    return {name: value / passed * 60 for name, value in cost.items()} | {"MB": size}


def _cpu(one: Running) -> float:
    """Seconds of the processor that its process has used."""
    with open(f"/proc/{one.process.pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def _messages(monitor: str, one: Running) -> int:
    """How many messages it sent to the server."""
    found = await asyncio.to_thread(_connections, monitor)
    mine = [c["in_msgs"] for c in found if f"-{one.process.pid}-" in str(c.get("name"))]
    if len(mine) != 1:
        raise SystemExit(f"bench: the engine has {len(mine)} connections")
    return int(mine[0])


def _connections(monitor: str) -> list[Mapping[str, object]]:
    with urllib.request.urlopen(f"{monitor}/connz", timeout=10) as answer:
        found: list[Mapping[str, object]] = json.load(answer)["connections"]
    return found
