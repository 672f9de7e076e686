"""`dspex plan` and `dspex apply`: what a version would change on the server, and doing it, also with one replaced before."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspex.bus.errors import ConfigError
from dspex.engine.cli.terminal.client import client
from dspex.engine.cli.terminal.options import duration
from dspex.engine.cli.terminal.terminal import Terminal, terminal
from dspex.engine.cli.topology.targets import Targets, load

if TYPE_CHECKING:
    from dspex.engine.client.client import Client
    from dspex.engine.graph.graph import Graph
    from dspex.engine.graph.lanes import Backfill
    from dspex.engine.hosting.planning.plan import ApplyPlan
    from dspex.engine.hosting.planning.there import There

BackfillOption = Annotated[
    str | None,
    duration("--backfill", help="Build what is new and keeps state from so much history: 12h, 30d."),
]


def plan(
    context: typer.Context,
    targets: Targets = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 1 where something would change.")] = False,
    backfill: BackfillOption = None,
) -> None:
    """Show what applying topologies would change on the server, and change nothing."""
    t = terminal(context)
    if t.run(_planned(t, _graphs(t, targets), _history(backfill))) and exit_code:
        raise typer.Exit(1)


async def _planned(t: Terminal, graphs: Sequence[Graph], backfill: Backfill | None) -> bool:
    """Print the plan; whether it changes something. Raises why it cannot be applied."""
    async with client(t, "plan") as c:
        found, _ = await _plan(c, graphs, (), backfill)
    _print(t, found)
    if found.refused is not None:
        raise found.refused
    return bool(found.changes)


def apply(
    context: typer.Context,
    targets: Targets = None,
    reset: Annotated[
        list[str] | None, typer.Option("--reset", metavar="NODE", help="Drop its open calls and its state; again for more.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, also where something is lost.")] = False,
    backfill: BackfillOption = None,
) -> None:
    """Make what topologies need on the server, and put them in force. An engine that runs goes on as it began."""
    from dspex.engine.hosting.planning.plan import refuse_reset

    t = terminal(context)
    graphs = _graphs(t, targets)
    refuse_reset(graphs, reset or ())
    t.run(_applied(t, graphs, reset or (), yes, _history(backfill)))


def _history(text: str | None) -> Backfill | None:
    """The history that `--backfill` asks for. Raises ConfigError."""
    from dspex.bus.settings.duration import seconds
    from dspex.engine.graph.lanes import Backfill

    if text is not None and not seconds(text):
        raise ConfigError("--backfill 0: there is no history in no time", code="DX105", fix="such as --backfill 30d")
    return Backfill(seconds(text)) if text is not None else None


def _graphs(t: Terminal, targets: Sequence[str] | None) -> list[Graph]:
    from dspex.engine.graph.defaults import with_defaults
    from dspex.engine.graph.submitted import submitted

    settings = t.settings()
    defaults, timeouts = settings.defaults.call.options(), settings.timeouts
    graphs = [with_defaults(topology.graph, defaults, timeouts) for topology in load(t, targets)]
    return [*graphs, submitted(settings.app, tuple(settings.pools))] if settings.engine.submit else graphs


async def _plan(c: Client, graphs: Sequence[Graph], reset: Sequence[str], backfill: Backfill | None) -> tuple[ApplyPlan, There]:
    from dspex.engine.hosting.planning.plan import plan as make
    from dspex.engine.hosting.planning.there import look

    there = await look(c.bus, c.app, graphs, reset, remarks=True, backfill=backfill)
    return make(c.app, there.graphs, there, again=True, reset=reset), there


def _print(t: Terminal, found: ApplyPlan) -> None:
    """The plan: a line for each change; and what may not be what was meant."""
    from dspex.engine.hosting.planning.lines import lines_of

    if t.json:
        for change in found.changes:
            t.emit(change.as_dict())
    elif found.changes or found.refused is None:
        for line in lines_of(found):
            t.line(line)
    for warning in found.warnings:
        t.note(f"warning: {warning}")


async def _applied(t: Terminal, graphs: Sequence[Graph], reset: Sequence[str], yes: bool, backfill: Backfill | None) -> None:
    from dspex.bus.serving import audit
    from dspex.bus.settings.duration import human
    from dspex.engine.cli.topology.backfill import announce, watch
    from dspex.engine.hosting.apply import apply as make

    settings = t.settings()
    async with client(t, "apply", start=True) as c:
        planned, there = await _plan(c, graphs, reset, backfill)
        _print(t, planned)
        if planned.refused is None and not yes:
            _ask(t, planned)
        replicas, most = settings.server.replicas, settings.engine.max_bytes
        how: dict[str, Any] = {"replicas": replicas, "max_bytes": most, "reset": reset, "agreed": planned}
        if backfill is not None:  # the same boundary as was shown
            how["backfill"] = backfill._replace(at=next(lane.boundary for lane, _ in there.lanes.values()))
        done = await make(c.bus, c.app, graphs, again=True, say=t.note, **how)
        said: dict[str, object] = {g.name: done.manifests[g.name].version for g in graphs}
        options: dict[str, object] = {"--reset": list(reset)} if reset else {}
        options |= {"--backfill": human(backfill.seconds)} if backfill is not None else {}
        await audit.leave(c.bus, c.app, "apply", **said, **options)
        for name, m in done.manifests.items():
            change = done.changes[name]
            row = {"topology": name, "version": m.version, "digest": m.digest, "change": change, "streams": m.streams}
            t.emit(row, f"{change:<9} {name}  version {m.version}  {m.digest}")
        if done.lanes:
            announce(t, done.lanes)
            await watch(t, c, done.lanes)


def _ask(t: Terminal, planned: ApplyPlan) -> None:
    """Have somebody agree to the plan. Where nobody can be asked, only to what loses nothing. Raises ConfigError."""
    if sys.stdin.isatty():
        if planned.changes and not typer.confirm(f"Apply this to application {t.settings().app}?", err=True):
            raise typer.Abort
    elif planned.lossy:
        why = "this gives up what the application holds, and nobody can be asked here"
        raise ConfigError(why, code="DX136", fix="dspex plan shows what is lost; to do it: dspex apply … --yes")
