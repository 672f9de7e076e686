"""`dspex pools`: the processes of pools; more or fewer workers, a drain, a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspex.bus.records import MOST_PROCESSES
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.options import duration
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.engine.client.client import Client
    from dspex.engine.client.status.rows import PoolRow
    from dspex.engine.client.status.scaling import Managed

DEFAULT = "default"
PoolArgument = Annotated[str, typer.Argument(metavar="POOL", help="Pool of the settings.")]
ProcessOption = Annotated[str | None, typer.Option("--process", metavar="ID", help="Only this process, as pools ls has it.")]


def ls(context: typer.Context) -> None:
    """List the processes of all pools: workers, slots, calls that wait, memory, restarts, DSPy's version."""
    t = terminal(context)
    rows = t.run(_listed(t))
    if t.json:
        for row in rows:
            t.emit(row)
        return
    columns = {"pool": "pool", "id": "process", "host": "host", "size": "size", "busy": "busy slots", "queue": "queue"}
    t.table([_row(row) for row in rows], {**columns, "rss": "rss", "restarts": "restarts", "dspy": "dspy", "state": ""})


def scale(
    context: typer.Context,
    sizes: Annotated[list[str], typer.Argument(metavar="POOL=N...", help="Workers in all, or default: as the settings say.")],
) -> None:
    """Have more or fewer workers in pools, on all machines together. It is kept when processes start again."""
    t = terminal(context)
    wanted = dict(map(_size, sizes))
    if len(wanted) < len(sizes):
        raise typer.BadParameter("a pool is named twice")
    done = t.run(_scaled(t, wanted))
    for pool, size in wanted.items():
        told = [one for one in done if one.pool == pool]
        said = "as many workers as its settings say" if size is None else count(size, "worker")
        where = f", in {_processes(told)}" if told else ""
        t.emit({"pool": pool, "size": size, "processes": [one.id for one in told]}, f"{pool} has {said}{where}")
    _failed(t, done)


def drain(
    context: typer.Context,
    pool: PoolArgument,
    process: ProcessOption = None,
    grace: Annotated[str, duration("--grace", help="What running calls have to finish; the rest is handed back.")] = "30s",
) -> None:
    """Have the processes of a pool take no more calls, until pools restart. The processes stay; their workers end."""
    from dspex.bus.settings.duration import seconds

    t = terminal(context)
    done = t.run(_drained(t, pool, process, seconds(grace)))
    t.emit(
        {"pool": pool, "drained": _ids(done)}, f"{pool}: {_processes(done)} drained; dspex pools restart {pool} takes it back"
    )
    _failed(t, done)


def restart(context: typer.Context, pool: PoolArgument, process: ProcessOption = None) -> None:
    """Replace the workers of a pool by ones that import everything anew, one after the other. No call fails."""
    t = terminal(context)
    done = t.run(_restarted(t, pool, process))
    t.emit({"pool": pool, "restarted": _ids(done)}, f"{pool}: {_processes(done)} restarted")
    _failed(t, done)


def _size(text: str) -> tuple[str, int | None]:
    pool, _, size = text.partition("=")
    if pool and size == DEFAULT:
        return pool, None
    if not pool or not size.isascii() or not size.isdecimal():
        raise typer.BadParameter(f"{text!r} is not POOL=N, such as lightweight=8 or gpu=default")
    if int(size[:9]) > MOST_PROCESSES or len(size) > 9:
        raise typer.BadParameter(f"a pool has at most {MOST_PROCESSES:,} workers, on all machines together")
    return pool, int(size)


async def _listed(t: Terminal) -> list[dict[str, Any]]:
    from dspex.engine.client.status.pools import pool_rows

    async with client(t, "pools") as c:
        used = {str(call["pool"]) for one in (await c.manifests()).values() for call in one.calls.values()}
        rows = await pool_rows(c.bus, c.app, sorted(used | set(t.settings().pools)))
        names = sorted({row["pool"] for row in rows})
        backlog = dict(zip(names, await asyncio.gather(*(_backlog(c, name) for name in names))))
    return [_plain(row, backlog[row["pool"]]) for row in rows]


async def _backlog(c: Client, pool: str) -> int:
    """Durable calls that no process of the pool has taken."""
    from dspex.bus import subjects
    from dspex.bus.serving.work_consumers import backlog

    return await backlog(c.bus, c.app, pool) if await c.bus.has("stream", subjects.stream(c.app)) else 0


async def _scaled(t: Terminal, wanted: Mapping[str, int | None]) -> list[Managed]:
    from dspex.engine.client.status import scaling
    from dspex.engine.client.status.pools import processes

    replicas = t.settings().server.replicas
    async with client(t, "pools") as c:
        for pool, size in wanted.items():  # all or none, where a name is wrong
            if size is not None and not await processes(c.bus, c.app, pool):
                raise scaling.absent(pool)
        done = [await scaling.scale(c.bus, c.app, pool, size, replicas=replicas) for pool, size in wanted.items()]
    return [one for of_pool in done for one in of_pool]


async def _drained(t: Terminal, pool: str, process: str | None, grace: float) -> list[Managed]:
    from dspex.engine.client.status import scaling

    async with client(t, "pools") as c:
        return await scaling.drain(c.bus, c.app, pool, process, grace)


async def _restarted(t: Terminal, pool: str, process: str | None) -> list[Managed]:
    from dspex.engine.client.status import scaling

    async with client(t, "pools") as c:
        return await scaling.restart(c.bus, c.app, pool, process)


def _plain(row: PoolRow, backlog: int) -> dict[str, Any]:
    """The `--json` object. `queue`: durable calls that wait for the pool. `of`: workers that its processes have in all."""
    sizes = [int(str(child.get("rss") or 0)) for child in row.get("children", [])]
    return {
        "pool": row["pool"],
        "id": row["id"],
        "host": row["host"],
        "pid": row["pid"],
        "size": row["size"],
        "of": row.get("of"),
        "ready": row["ready"],
        "busy": row["busy"],
        "slots": row["slots"] * row["ready"],
        "waiting": row.get("waiting", 0),
        "queue": backlog,
        "rss": sum(sizes),
        "restarts": row["restarts"],
        "dspy_version": row.get("dspy_version", ""),
        "state": "failed" if row.get("failed") else "drained" if row.get("draining") else "",
    }


def _row(row: Mapping[str, Any]) -> dict[str, object]:
    if row["id"] is None:
        return {"pool": row["pool"], "id": "not running", "queue": row["queue"]}
    return {
        "pool": row["pool"],
        "id": row["id"],
        "host": f"{row['host']}:{row['pid']}",
        "size": f"{row['ready']}/{row['size']}" + (f" of {row['of']}" if row["of"] is not None else ""),
        "busy": f"{row['busy']}/{row['slots']}",
        "queue": f"{row['queue'] + row['waiting']:,}",
        "rss": f"{row['rss'] >> 20} MiB",
        "restarts": row["restarts"],
        "dspy": row["dspy_version"],
        "state": row["state"],
    }


def _ids(done: Iterable[Managed]) -> list[str]:
    return [one.id for one in done if not one.why]


def _processes(done: Sequence[Managed]) -> str:
    number = len(_ids(done))
    return f"{number} process" if number == 1 else f"{number:,} processes"


def _failed(t: Terminal, done: Iterable[Managed]) -> None:
    """Say what did not work, and exit with 1 where something did not."""
    failed = [one for one in done if one.why]
    for one in failed:
        t.note(f"{one.pool} {one.id}: {one.why}")
    if failed:
        raise typer.Exit(1)
