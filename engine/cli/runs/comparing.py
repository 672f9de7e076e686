"""`dspex diff`: what one run did otherwise than another. `dspex runs export` and `import`: a run as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dspex.bus.errors import ConfigError, RecordingIncomplete
from dspex.engine.cli.runs.verbs import RUN, as_dict
from dspex.engine.cli.terminal.client import client, count, shown, spent
from dspex.engine.cli.terminal.options import duration
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.engine.client.following.progress import RunInfo
    from dspex.engine.client.runs.diff import Diff


def diff(
    context: typer.Context,
    a: RUN,
    b: RUN,
    fields: Annotated[str | None, typer.Option("--fields", metavar="A,B", help="Only these fields count.")] = None,
    every: Annotated[bool, typer.Option("--all", help="The steps that are the same, one by one.")] = False,
    how: Annotated[Literal["text", "markdown"], typer.Option("--as", help="How it is printed.")] = "text",
) -> None:
    """Compare two runs, step by step. Exit 1 where they differ."""
    t = terminal(context)
    found = t.run(_compared(t, a, b, fields.split(",") if fields is not None else None))
    if how == "markdown":
        t.document(found.markdown())
    else:
        t.emit(found.as_dict(), *found.lines(every=every), *(["same"] if found.same else []))
    if not found.same:
        raise typer.Exit(1)


async def _compared(t: Terminal, a: str, b: str, fields: list[str] | None) -> Diff:
    async with client(t, "diff") as c:
        return await c.diff(a, b, fields=fields)


def export(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where it is written; a folder for several.")],
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Its id, the end of it, or @last; none: several.")] = None,
    topology: Annotated[str | None, typer.Option("--topology", metavar="NAME", help="All runs of it that are over.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only those with dead letters.")] = False,
    since: Annotated[str | None, duration("--since", help="Only of the last 1h, 7d, …")] = None,
) -> None:
    """Write a run to a file, with its calls and what they were answered: for a test (`Driver.replay`), and for a colleague. Or
    several, each to a file of a folder.
    """
    t = terminal(context)
    chosen = topology is not None or failed or since is not None
    if (run is None) != chosen:
        fix = "dspex runs export RUN -o FILE, or --topology NAME -o FOLDER, with --since and --failed"
        raise ConfigError("either a run is written, or those that options choose", code="DX105", fix=fix)
    from dspex.engine.cli.runs.again.exporting import exported_one

    try:
        if run is None:
            _several(t, out, topology, failed=failed, since=since)
            return
        if t.run(exported_one(t, run, out)).status == "running":
            t.note("it is not over: what is still to come is not in it, and it cannot be replayed")
    except OSError as error:
        why, fix = f"{out} cannot be written: {error.strerror}", "name a file in a folder that is there"
        raise ConfigError(why, code="DX105", fix=fix) from None
    t.emit({"file": str(out), "bytes": out.stat().st_size}, f"{shown(out)}  {out.stat().st_size:,} bytes")


def _several(t: Terminal, out: Path, topology: str | None, *, failed: bool, since: str | None) -> None:
    from dspex.engine.cli.runs.again.exporting import exported

    out.mkdir(parents=True, exist_ok=True)
    found = t.run(exported(t, out, topology, failed=failed, since=since))
    row = {"folder": str(out), "files": found.files, "running": found.running, "left_out": len(found.left_out)}
    t.emit(row, f"{shown(out)}  {count(found.files, 'file')}")
    if found.running:
        t.note(f"{count(found.running, 'run')} left out that are not over")
    if found.left_out:
        raise RecordingIncomplete(f"{count(len(found.left_out), 'run')} could not be written; first: {found.left_out[0]}")


def import_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An exported run.")],
) -> None:
    """Keep a run that was exported, here or elsewhere: the verbs about runs find it as they find others."""
    t = terminal(context)
    info = t.run(_imported(t, file))
    t.emit(as_dict(info), f"{info.id}  {info.topology}  {info.status}  {spent(info.calls, info.usage)}")


async def _imported(t: Terminal, file: Path) -> RunInfo:
    async with client(t, "runs") as c:
        return await (await c.import_run(file)).info()
