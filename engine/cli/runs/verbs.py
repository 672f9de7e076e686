"""`dspex runs`: which there are, what each did, and how what belongs to a session is made unreadable for good."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from dspex.bus.errors import ConfigError, RunNotFound
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.cli.runs.again.built import ANY_BUILD, BUILD, with_build
from dspex.engine.cli.runs.choice import ReplayChoice
from dspex.engine.cli.runs.drawing import drawn, said
from dspex.engine.cli.runs.scored import plain, score_lines, scores_in, scores_of
from dspex.engine.cli.terminal.client import client, count, spent
from dspex.engine.cli.terminal.options import duration, how_many
from dspex.engine.cli.terminal.printable import width_of
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.engine.client.calls.cancelling import CancelledRun
    from dspex.engine.client.following.progress import RunInfo
    from dspex.engine.client.runs.listing import RunStatus
    from dspex.engine.client.runs.tree import Happening


def forget(
    context: typer.Context,
    session: Annotated[str | None, typer.Option("--session", metavar="ID", help="Whose runs: the id that they have.")] = None,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="An imported run, which is removed.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the session again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is of a session, and what would go.")] = False,
) -> None:
    """Delete the key that seals what belongs to a session, and what nothing goes by: nobody can read it any more, though it is
    still seen that it was.
    """
    t = terminal(context)
    what = session if session is not None else run
    if what is None or (session is not None and run is not None):
        why, fix = "either a session or a run is forgotten", "dspex runs forget --session ID, or --run RUN"
        raise ConfigError(why, code="DX105", fix=fix)
    if dry_run:
        if session is None:
            why, fix = "--dry-run is of a session: of a run all goes", "dspex runs forget --session ID --dry-run"
            raise ConfigError(why, code="DX105", fix=fix)
        t.run(_would_go(t, session))
        return
    if not yes and not sys.stdin.isatty():
        why = f"to forget {what} makes unreadable what cannot be brought back"
        raise ConfigError(why, code="DX136", fix="add --yes")
    if not yes and typer.prompt(f"Type {what} again to have {t.settings().app} forget it", err=True) != what:
        raise typer.Abort
    if session is not None:
        t.run(_forgotten(t, session))
    else:
        t.run(_removed(t, what))


_COLUMNS: Final = {name: name for name in ("what", "where", "count", "removed", "until")}


async def _would_go(t: Terminal, session: str) -> None:
    from dspex.engine.client.following.forgetting import Belongings
    from dspex.engine.graph.manifest import of_application

    async with client(t, "runs") as c:
        found = Belongings(c.bus, c.app, session, await of_application(c.bus, c.app))
        await found.look()
    rows = [dict(vars(row)) for row in found.rows]
    if t.json:
        for row in rows:
            t.emit(row)
    elif rows:
        t.table([{**row, "removed": "goes" if row["removed"] else "stays, unreadable"} for row in rows], _COLUMNS)
    else:
        t.note("nothing of it is there")


async def _removed(t: Terminal, run: str) -> None:
    async with client(t, "runs") as c:
        await c.forget(run=run)
    t.emit({"run": run}, f"removed: {run}")


async def _forgotten(t: Terminal, session: str) -> None:
    async with client(t, "runs") as c:
        keys = await c.forget(session=session)
    said = "its key is deleted; processes that have used it lately go on with it for a minute" if keys else "it has no key"
    t.emit({"session": session, "keys": keys}, f"{'forgotten' if keys else 'nothing to forget'}: {session}: {said}")


# -- what runs did ------------------------------------------------------------------------------------------------------
STATUS = Annotated[
    Literal["running", "done", "failed", "cancelled"] | None, typer.Option("--status", help="Only those that are so now.")
]
TOPOLOGY = Annotated[str | None, typer.Option("--topology", help="Only of this topology.")]
RUN = Annotated[str, typer.Argument(metavar="RUN", help="Its id, at least the last 6 digits of it, @last, or @last-1, …")]


def ls(
    context: typer.Context,
    topology: TOPOLOGY = None,
    failed: Annotated[bool, typer.Option("--failed", help="Those with dead letters: --status failed.")] = False,
    status: STATUS = None,
    since: Annotated[str | None, duration("--since", help="Only of the last 1h, 7d, …")] = None,
    limit: Annotated[int, how_many("--limit", help="So many at most.")] = 20,
) -> None:
    """List runs, the latest first."""
    t = terminal(context)
    if failed and status not in (None, "failed"):
        raise ConfigError(f"--failed and --status {status} do not go together", code="DX105", fix="give one of them")
    status = "failed" if failed else status
    rows = t.run(_listed(t, topology, status, since, limit))
    if not rows and not t.json:
        t.note(f"no runs with status {status}" if status else "no runs")


async def _listed(t: Terminal, topology: str | None, status: RunStatus | None, since: str | None, limit: int) -> int:
    rows = list[dict[str, object]]()
    async with client(t, "runs") as c:
        scores = scores_in(c)
        async for info in c.runs(topology, status=status, since=since, limit=limit):
            rows.append(_row(info))
            if t.json:
                t.emit({**as_dict(info), "scores": plain(await scores_of(scores, info.id))})
    if rows and not t.json:
        t.table(rows, {name: name for name in rows[0]})
    return len(rows)


def _row(info: RunInfo) -> dict[str, object]:
    took = f"{(info.finished - info.started).total_seconds():.1f} s" if info.finished is not None else ""
    letters = str(info.dead_letters or "")
    return {
        "run": info.id,
        "topology": info.topology,
        "status": f"{info.status}, {info.kept}" if info.kept else info.status,
        "started": info.started.astimezone().strftime("%d %b %H:%M:%S"),
        "took": took,
        "spent": spent(info.calls, info.usage),
        "letters": letters,
    }


def as_dict(info: RunInfo) -> dict[str, object]:
    return {**vars(info), "usage": vars(info.usage)}


WITH = Annotated[
    str | None,
    typer.Option("--with", metavar="TARGET", help="The code that makes values between again; that of dspex.toml by default."),
]


def show(
    context: typer.Context,
    run: RUN,
    everything: Annotated[bool, typer.Option("--all", help="Everything, however much of one kind there is.")] = False,
    target: WITH = None,
    folder: BUILD = None,
    any_build: ANY_BUILD = False,
    requests: Annotated[bool, typer.Option("--requests", help="Of calls, who answered, and what models were asked.")] = False,
) -> None:
    """Print what one run did: its event, what operators gave, calls with what went in and came out, outputs, dead letters."""
    t = terminal(context)
    with_build(t, ReplayChoice(run), target, folder, any_build=any_build)
    t.run(_shown(t, run, everything, target, requests))


async def _shown(t: Terminal, run: str, everything: bool, target: str | None, requests: bool) -> None:
    from dspex.engine.cli.runs.again.repeated import other_builds
    from dspex.engine.cli.runs.natives import with_natives
    from dspex.engine.cli.runs.requests import lines, requests_of

    async with client(t, "runs") as c:
        shown = await with_natives(t, c, run, target)
        info, scores = shown.info, await scores_of(scores_in(c), shown.info.id)
        asked = shown.secrets.masked(await requests_of(c, shown.root)) if requests else {}
    if shown.missing:
        t.note(shown.missing)
    if t.json:
        later = {"later": shown.later.as_dict()} if shown.later is not None else {}
        t.emit({**as_dict(info), "scores": plain(scores), "builds": shown.builds} | later)
        for told in shown.root:
            t.emit(told.as_dict() | ({"requests": asked[told.id]} if told.id in asked else {}))
        return
    began = info.started.astimezone()
    status = (
        info.status if info.finished is None else f"{info.status} in {(info.finished - info.started).total_seconds():.2f} s"
    )
    how = f"  {info.kept}" if info.kept else ""
    t.line(f"run {info.id}  {info.topology}  {status}  {spent(info.calls, info.usage)}{how}")
    t.line(f"began {began.isoformat(sep=' ', timespec='milliseconds')}")
    for line in score_lines(scores):
        t.line(line)
    if any(told.kind == "native" for told in shown.root):
        t.line(f"~ is made again with {shown.code}; all else is recorded")
    for line in other_builds(shown.builds):
        t.line(line)
    more = {
        call: [
            line
            for one, last in zip(tries, [None, *tries], strict=False)
            for line in lines(one, everything=everything, before=last)
        ]
        for call, tries in asked.items()
    }
    width = None if everything else width_of(sys.stdout)
    for line in (
        *drawn(shown.root, info.started, everything, more, width),
        *(shown.later.lines() if shown.later is not None else ()),
    ):
        t.line(line)


def explain(
    context: typer.Context,
    run: RUN,
    step: Annotated[str, typer.Argument(metavar="STEP", help="As show prints it: classify#0; a sink; an id.")],
    target: WITH = None,
    folder: BUILD = None,
    any_build: ANY_BUILD = False,
) -> None:
    """Print the chain of causes of one step, back to the source event."""
    t = terminal(context)
    with_build(t, ReplayChoice(run), target, folder, any_build=any_build)
    for depth, told in enumerate(t.run(_chain(t, run, step, target))):
        kept = ("kind", "id", "cause", "recorded", "data")
        row = {"step": told.label} | {name: getattr(told, name) for name in kept}
        line = said(told, told.time).partition("  ")[2] if told.recorded else said(told, told.time)
        t.emit(row, f"{'   ' * max(0, depth - 1)}{'└─ ' if depth else ''}{line}")


async def _chain(t: Terminal, run: str, step: str, target: str | None) -> list[Happening]:
    from dspex.engine.cli.runs.again.repeated import other_builds
    from dspex.engine.cli.runs.natives import with_natives

    async with client(t, "runs") as c:
        shown = await with_natives(t, c, run, target)
    for line in [*([shown.missing] if shown.missing else []), *other_builds(shown.builds)]:
        t.note(line)
    root = shown.root
    ways, there = [[root]], set[str]()
    while ways:
        way = ways.pop(0)
        there.add(way[-1].label)
        if step in (way[-1].label, way[-1].id):
            return way
        ways += [[*way, one] for one in way[-1].below]
    fix = did_you_mean(step, sorted(there), "see dspex runs show")
    raise RunNotFound(f"run {root.id} has no step {step!r}", run=root.id, fix=fix)


def wait(
    context: typer.Context,
    run: RUN,
    timeout: Annotated[str | None, duration("--timeout", help="So long at most.")] = None,
) -> None:
    """Wait until nothing that a run caused is outstanding. Exit 1 if it has dead letters, 5 when the time is over."""
    t = terminal(context)
    info = t.run(_ended(t, run, timeout))
    t.emit(as_dict(info), f"{info.id}  {info.topology}  {info.status}  {spent(info.calls, info.usage)}")


def cancel(context: typer.Context, run: RUN) -> None:
    """End the open calls and approvals of a run, and those that follow; each becomes a dead letter. What was sent stays."""
    t = terminal(context)
    info, (calls, approvals, over) = t.run(_cancelled(t, run))
    row = {"run": info.id, "topology": info.topology, "status": info.status, "calls": calls, "approvals": approvals}
    what = [f"{count(number, name)} ended" for number, name in ((calls, "call"), (approvals, "approval")) if number]
    t.emit(row, f"{info.id}  {info.topology}  {info.status}  {', '.join(what) or 'nothing to end'}")
    if not over:
        t.note("something of it is open yet: a call ends when it would begin; dspex runs show says what waits")


async def _cancelled(t: Terminal, run: str) -> tuple[RunInfo, CancelledRun]:
    async with client(t, "runs") as c:
        one = c.run(run)
        done = await one.cancelled()
        return await one.info(), done


async def _ended(t: Terminal, run: str, timeout: str | None) -> RunInfo:
    async with client(t, "runs") as c:
        one = c.run(run)
        await one.info()  # one that is not there would be waited for
        return await one.wait(timeout)
