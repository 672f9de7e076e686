"""`dspex status`: server, engines, stages, operators, letters that wait, and pools; or only whether all is well."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dspex.engine.cli.figures import blocks
from dspex.engine.cli.figures import engines as table_of_engines
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.engine.client.status.rows import EngineRow, Status

EVERY = 2.0  # seconds between two looks of --watch


def status(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every 2 s, until ^C.")] = False,
    routes: Annotated[bool, typer.Option("--routes", help="Show also which models answer, and which way calls went.")] = False,
    health: Annotated[bool, typer.Option("--health", help="Print only what is wrong; exit 1 where something is.")] = False,
) -> None:
    """Show what runs: server, engines, stages with lag and owner, operators, dead letters that wait, pools."""
    t = terminal(context)
    if health and (watch or routes):
        raise typer.BadParameter("--health looks once, and prints only what is wrong: leave out --watch and --routes")
    if health:
        if not t.run(_healthy(t)):
            raise typer.Exit(1)
        return
    try:
        t.run(_status(t, watch, routes))
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


async def _status(t: Terminal, watch: bool, routes: bool) -> None:
    pools = list(t.settings().pools)
    async with client(t, "status") as c:
        while True:
            found = await c.status(pools)
            if t.json:
                t.emit(found)
            else:
                if watch:
                    t.clear()
                _print(t, found, routes)
            if not watch:
                return
            await asyncio.sleep(EVERY)


def _print(t: Terminal, found: Status, routes: bool) -> None:
    server = found["server"]
    most = f" of {_size(server['max_bytes'])}" if server["max_bytes"] > 0 else ""
    stream = f"stream {server['stream']}: {count(server['messages'], 'message')}, {_size(server['bytes'])}{most}"
    if not server["stream"]:
        lost = any(e["alive"] for e in found["engines"])
        why = "its stream is GONE: restore the server's data" if lost else "nothing is applied yet: dspex run"
        stream = f"app {server['app']}: {why}"
    t.line(f"server  {server['url']}  {stream}")
    _engines(t, found["engines"])
    for block in blocks(found, routes=routes):
        t.block(block)


def _engines(t: Terminal, engines: Sequence[EngineRow]) -> None:
    if not engines:
        t.line("")
        t.line("no engine is running: dspex run")
        return
    t.block(table_of_engines(engines))


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
