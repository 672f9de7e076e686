"""How an application is doing, as plain data: server, engines, stages with their lag, pools.

Engines write their state into the bucket with every heartbeat; pools answer a request. So looking does not cost the
engines anything, and the state shown of an engine is as old as its last heartbeat.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import cast

import structlog

from dspex.bus import subjects
from dspex.bus.local.processes import is_dead
from dspex.bus.port import Bus, StreamInfo
from dspex.engine.client.status.limits import limit_rows
from dspex.engine.client.status.operators import is_sound, letter_rows, operator_rows
from dspex.engine.client.status.pools import pool_rows
from dspex.engine.client.status.routes import lm_rows, route_rows
from dspex.engine.client.status.rows import EngineReport, EngineRow, ServerRow, StageRow, Status
from dspex.engine.client.status.stages import Look, UnownedLogs
from dspex.engine.graph.manifest import Manifest
from dspex.engine.graph.pauses import of_application

_log = structlog.get_logger("dspex.client")
SILENT_AFTER = 15.0  # seconds, or five heartbeats where those are more
FORGOTTEN_AFTER = 600.0


async def status(
    bus: Bus, app: str, manifests: Mapping[str, Manifest], pools: Sequence[str] = (), unowned: UnownedLogs | None = None
) -> Status:
    """The state of the application.

    Args:
        pools: to include besides those that the applied topologies use.
        unowned: what an earlier look has read of partitions that nobody owns.
    """
    used = {str(call["pool"]) for m in manifests.values() for call in m.calls.values()}
    reports, processes = await asyncio.gather(_reports(bus, app), pool_rows(bus, app, sorted(used | set(pools))))
    info = await bus.stream(subjects.stream(app))
    now = info.now if info else time.time()
    engines = [(report, _row(report, now)) for report in reports]
    alive = [report for report, row in engines if row["alive"]]
    look = Look(bus, app, alive, info, await of_application(bus, app), unowned)
    stages, letters, limits = await asyncio.gather(
        look.stages(manifests), letter_rows(bus, app, info, manifests), limit_rows(bus, app, now)
    )
    operators = operator_rows(alive, manifests)
    return {
        "server": _server(bus, app, info),
        "engines": [row for report, row in engines if row["alive"] or not _is_gone(report, row)],
        "stages": stages,
        "pools": processes,
        "lms": lm_rows(processes),
        "routes": route_rows(processes, operators),
        "operators": operators,
        "letters": letters,
        "limits": limits,
    }


async def stage_rows(bus: Bus, app: str, manifests: Mapping[str, Manifest]) -> list[StageRow]:
    """Only the stages of the application."""
    reports, info = await _reports(bus, app), await bus.stream(subjects.stream(app))
    now = info.now if info else time.time()
    alive = [report for report in reports if _row(report, now)["alive"]]
    return await Look(bus, app, alive, info, await of_application(bus, app)).stages(manifests)


def _server(bus: Bus, app: str, info: StreamInfo | None) -> ServerRow:
    return {
        "url": bus.url,
        "app": app,
        "stream": info.name if info else None,
        "messages": info.messages if info else 0,
        "bytes": info.bytes if info else 0,
        "max_bytes": info.max_bytes if info else -1,
        "replicas": info.replicas if info else 0,
    }


async def _reports(bus: Bus, app: str) -> list[EngineReport]:
    if not await bus.has("bucket", subjects.bucket(app)):
        return []
    bucket = await bus.bucket(subjects.bucket(app))
    found = [_report(key, value) for key, (value, _) in (await bucket.items("engine")).items()]
    return [report for report in found if report is not None]


def _report(key: str, value: bytes) -> EngineReport | None:
    """What an engine wrote; None for what no engine did."""
    from pydantic import TypeAdapter, ValidationError

    try:
        report = TypeAdapter(EngineReport).validate_json(value)
        if is_sound(report):
            return report
        why = "its figures are none"
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    _log.warning("what no engine wrote is left out", key=key, why=why)
    return None


def _row(report: EngineReport, now: float) -> EngineRow:
    age = round(max(0.0, now - report["time"]), 1)
    own = {key: value for key, value in report.items() if key not in ("stages", "operators")}
    return cast(
        "EngineRow",
        {**own, "age": age, "alive": not is_dead(report) and age < max(SILENT_AFTER, 5 * report.get("heartbeat", 0.0))},
    )


def _is_gone(report: EngineReport, row: EngineRow) -> bool:
    """An engine that is silent, but not for long, is shown: it may be frozen, cut off, or killed on another host."""
    return is_dead(report) or row["age"] > FORGOTTEN_AFTER
