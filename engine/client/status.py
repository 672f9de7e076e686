"""How an application is doing, as plain data: server, engines, stages with their lag, pools.

Engines write their state into the bucket with every heartbeat; pools answer a request. So looking does not cost the
engines anything, and the state shown of an engine is as old as its last heartbeat.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import cast

import orjson
import structlog

from dspex.bus import subjects
from dspex.bus.local.processes import is_dead
from dspex.bus.message import Message
from dspex.bus.port import Bus, StreamInfo
from dspex.engine.client.status_rows import EngineReport, EngineRow, PoolRow, ServerRow, StageRow, Status
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.reading import look

_log = structlog.get_logger("dspex.client")
SILENT_AFTER = 15.0  # seconds, or five heartbeats where those are more
FORGOTTEN_AFTER = 600.0
FIRST_ANSWER, MORE_ANSWERS = 1.0, 0.15  # seconds that pools have to answer


async def status(bus: Bus, app: str, manifests: Mapping[str, Manifest], pools: Sequence[str] = ()) -> Status:
    """The state of the application. `pools`: pools to include besides those that the applied topologies use."""
    used = {str(call["pool"]) for m in manifests.values() for call in m.calls.values()}
    reports, rows = await asyncio.gather(_reports(bus, app), _pools(bus, app, sorted(used | set(pools))))
    info = await bus.stream(subjects.stream(app))
    now = info.now if info else time.time()
    engines = [(report, _row(report, now)) for report in reports]
    alive = [report for report, row in engines if row["alive"]]
    stages = await asyncio.gather(
        *(_stage(bus, app, alive, topology, m, source) for topology, m in manifests.items() for source in m.streams)
    )
    return {
        "server": _server(bus, app, info),
        "engines": [row for report, row in engines if row["alive"] or not _is_gone(report, row)],
        "stages": list(stages),
        "pools": rows,
        "lms": [],
        "routes": [],
    }


def _server(bus: Bus, app: str, info: StreamInfo | None) -> ServerRow:
    return {
        "url": bus.url,
        "app": app,
        "stream": info.name if info else None,
        "messages": info.messages if info else 0,
        "bytes": info.bytes if info else 0,
        "replicas": info.replicas if info else 0,
    }


async def _reports(bus: Bus, app: str) -> list[EngineReport]:
    bucket = await bus.bucket(subjects.bucket(app))
    found = [_report(key, value) for key, (value, _) in (await bucket.items("engine")).items()]
    return [report for report in found if report is not None]


def _report(key: str, value: bytes) -> EngineReport | None:
    """What an engine wrote; None for what no engine did."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(EngineReport).validate_json(value)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        _log.warning("what no engine wrote is left out", key=key, why=why)
        return None


def _row(report: EngineReport, now: float) -> EngineRow:
    age = round(max(0.0, now - report["time"]), 1)
    own = {key: value for key, value in report.items() if key != "stages"}
    return cast(
        "EngineRow",
        {**own, "age": age, "alive": not is_dead(report) and age < max(SILENT_AFTER, 5 * report.get("heartbeat", 0.0))},
    )


def _is_gone(report: EngineReport, row: EngineRow) -> bool:
    """An engine that is silent, but not for long, is shown: it may be frozen, cut off, or killed on another host."""
    return is_dead(report) or row["age"] > FORGOTTEN_AFTER


# -- stages --------------------------------------------------------------------------------------------------------
async def _stage(
    bus: Bus, app: str, engines: Sequence[EngineReport], topology: str, applied: Manifest, source: str
) -> StageRow:
    id, count = applied.stages[source]
    mine = [(e, s) for e in engines for s in e["stages"] if (s["topology"], s["stage"]) == (topology, id)]
    held = [(e, s) for e, s in mine if s["partitions"]]
    owned = {p["index"] for _, s in held for p in s["partitions"]}
    read = [max(p["source"] for p in s["partitions"]) for _, s in held]
    calls = sum(p["open_calls"] for _, s in held for p in s["partitions"])
    if not held:  # no engine runs it: the logs say how far it came
        states = await asyncio.gather(*(look(bus, app, topology, id, i) for i in range(count)))
        read, calls = [max(s.position("source").sequence for s in states)], sum(len(s.calls.rows) for s in states)
    last = await _last(bus, applied.streams[source], source)
    return {
        "topology": topology,
        "stage": id,
        "source": source,
        "stream": applied.streams[source],
        "lag": max(0, last - min(read)),
        "open_calls": calls,
        "owners": sorted({e["engine"] for e, _ in held}),
        "partitions": count,
        "unowned": count - len(owned),
        "events": sum(s["events"] for _, s in mine),
        "retries": sum(s["retries"] for _, s in mine),
        "dead_letters": sum(s["dead_letters"] for _, s in mine),
        "stopped": next((s["stopped"] for _, s in mine if s["stopped"]), None),
    }


async def _last(bus: Bus, stream: str, source: str) -> int:
    """The sequence of the last stored event of a source; 0 where there is none."""
    found = await bus.last(stream, source)
    return found.sequence if found else 0


# -- pools ---------------------------------------------------------------------------------------------------------
async def _pools(bus: Bus, app: str, names: Sequence[str]) -> list[PoolRow]:
    """What each process of each pool reports, or that a pool has none."""
    answers = await asyncio.gather(*(_ask(bus, app, name) for name in names))
    return [row for name, rows in zip(names, answers) for row in rows or [_absent(name)]]


def _absent(pool: str) -> PoolRow:
    return PoolRow(pool=pool, id=None, host=None, pid=None, size=0, slots=0, busy=0, ready=0, restarts=0)


async def _ask(bus: Bus, app: str, pool: str) -> list[PoolRow]:
    """The answers of all processes of a pool, which may run on several hosts."""
    answers: asyncio.Queue[Message] = asyncio.Queue()
    inbox = bus.inbox()
    subscription = await bus.subscribe(inbox, answers.put)
    found: list[PoolRow] = []
    try:
        await bus.send(subjects.control(app, pool), orjson.dumps({"kind": "status"}), reply=inbox)
        async with asyncio.timeout(FIRST_ANSWER) as limit:
            while (answer := await answers.get()).headers.get("Status") != "503":
                found.append(orjson.loads(answer.data))
                limit.reschedule(asyncio.get_running_loop().time() + MORE_ANSWERS)
    except TimeoutError:
        pass  # no more of them
    finally:
        await subscription.close()
    return sorted(found, key=lambda process: str(process["id"]))
