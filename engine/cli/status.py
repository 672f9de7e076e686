"""`dspex status`: server, engines, stages with their lag, and pools; or only whether all is well."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.engine.client.status.rows import EngineRow, PoolRow, StageRow, Status

_Key: TypeAlias = tuple[str, str]  # topology and stage
EVERY = 2.0  # seconds between two looks of --watch


def status(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every 2 s, until ^C.")] = False,
    health: Annotated[bool, typer.Option("--health", help="Print only what is wrong; exit 1 where something is.")] = False,
) -> None:
    """Show what runs: server, engines, stages with lag and owner, pools."""
    t = terminal(context)
    if health and watch:
        raise typer.BadParameter("--health looks once: leave out --watch")
    if health:
        if not t.run(_healthy(t)):
            raise typer.Exit(1)
        return
    try:
        t.run(_status(t, watch))
    except KeyboardInterrupt:
        if not watch:
            raise


async def _healthy(t: Terminal) -> bool:
    """Print what is wrong; whether nothing is."""
    from dspex.engine.client.status.health import faults

    async with client(t, "status") as c:
        found = faults(await c.status(list(t.settings().pools)))
    lines = [line for fault in found for line in (f"{fault.check}  {fault.message}", f"  fix: {fault.fix}")]
    t.emit({"healthy": not found, "faults": [fault.as_dict() for fault in found]}, *(lines or ["healthy"]))
    return not found


async def _status(t: Terminal, watch: bool) -> None:
    pools = list(t.settings().pools)
    async with client(t, "status") as c:
        before: dict[_Key, int] = {}
        at = time.monotonic()
        while True:
            found = await c.status(pools)
            now = time.monotonic()
            rates = {_key(s): _rate(s, before.get(_key(s)), now - at) for s in found["stages"]}
            before, at = {_key(s): s["events"] for s in found["stages"]}, now
            if t.json:
                t.emit({**found, "stages": [{**s, "rate": rates[_key(s)]} for s in found["stages"]]})
            else:
                if watch:
                    t.clear()
                _print(t, found, rates)
            if not watch:
                return
            await asyncio.sleep(EVERY)


def _key(s: StageRow) -> _Key:
    return s["topology"], s["stage"]


def _rate(s: StageRow, before: int | None, seconds: float) -> float | None:
    """Events a second since the look before; None at the first look."""
    return None if before is None else round(max(0, s["events"] - before) / max(seconds, 1e-3), 1)


def _print(t: Terminal, found: Status, rates: Mapping[_Key, float | None]) -> None:
    server = found["server"]
    stream = f"stream {server['stream']}: {count(server['messages'], 'message')}, {_size(server['bytes'])}"
    if not server["stream"]:
        lost = any(e["alive"] for e in found["engines"])
        why = "its stream is GONE: restore the server's data" if lost else "nothing is applied yet: dspex run"
        stream = f"app {server['app']}: {why}"
    t.line(f"server  {server['url']}  {stream}")
    _engines(t, found["engines"])
    _stages(t, found["stages"], rates)
    _pools(t, found["pools"])


def _engines(t: Terminal, engines: Sequence[EngineRow]) -> None:
    if not engines:
        t.line("")
        t.line("no engine is running: dspex run")
        return
    rows = [
        {
            "engine": e["engine"],
            "state": _state(e),
            "seen": f"{e['age']:.0f} s ago",
            "topologies": ", ".join(e["topologies"]),
            "commits": e["commits"],
            "waits": e["full"],
        }
        for e in engines
    ]
    columns = {"engine": "engine", "state": "state", "seen": "seen", "topologies": "topologies", "commits": "commits"}
    _block(t, rows, columns | ({"waits": "waits for"} if any(r["waits"] for r in rows) else {}))


def _state(engine: EngineRow) -> str:
    health = engine.get("health", "ok")  # an older engine does not report it
    if not engine["alive"]:
        return "silent"
    return "running" if health == "ok" else health


def _block(t: Terminal, rows: Sequence[Mapping[str, object]], columns: Mapping[str, str]) -> None:
    if rows:
        t.line("")
        t.table(rows, columns)


def _stages(t: Terminal, stages: Sequence[StageRow], rates: Mapping[_Key, float | None]) -> None:
    rows = [
        {
            "stage": f"{s['topology']}/{s['stage']}",
            "source": f"{s['source']} (dropped)" if s["dropped"] else s["source"],
            "lag": "" if s["dropped"] else "?" if s["lag"] is None else s["lag"],
            "oldest": "" if s["oldest"] is None else f"{s['oldest']:g} s",
            "rate": "" if (rate := rates[_key(s)]) is None else f"{rate:g}/s",
            "open": s["open_calls"],
            "dead": s["dead_letters"] if first else "",  # of the whole topology
            "owner": _owner(s),
        }
        for s, first in zip(stages, _firsts(stages))
    ]
    columns = {"stage": "stage", "source": "source", "lag": "lag", "oldest": "oldest", "rate": "rate", "open": "open calls"}
    _block(t, rows, columns | {"dead": "dead letters", "owner": "owner"})


def _firsts(stages: Sequence[StageRow]) -> list[bool]:
    """Of each stage: whether it is the first of its topology."""
    return [s["topology"] not in {before["topology"] for before in stages[:n]} for n, s in enumerate(stages)]


def _owner(s: StageRow) -> str:
    if s["stopped"]:
        return f"STOPPED: {s['stopped']}"
    if not s["owners"]:
        return "no owner"
    unowned = f" ({s['unowned']} of {s['partitions']} partitions have no owner)" if s["unowned"] else ""
    return ", ".join(s["owners"]) + unowned


def _pools(t: Terminal, pools: Sequence[PoolRow]) -> None:
    rows = [
        {
            "pool": p["pool"],
            "id": p["id"] or "not running",
            "ready": f"{p['ready']}/{p['size']}" if p["id"] else "",
            "busy": f"{p['busy']}/{p['slots'] * p['ready']}" if p["id"] else "",
            "restarts": p["restarts"] if p["id"] else None,
            "served": p.get("served"),
            "dspy": p.get("dspy_version"),
            "state": "failed" if p.get("failed") else "draining" if p.get("draining") else "",
        }
        for p in pools
    ]
    columns = {"pool": "pool", "id": "id", "ready": "ready", "busy": "busy", "restarts": "restarts", "served": "served"}
    _block(t, rows, columns | {"dspy": "dspy", "state": ""})


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
