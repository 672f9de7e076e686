"""`dspex replay`: whether the code of today gives what was given, with every call answered by its record."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspex.bus.errors import ConfigError, Divergence, TopologyError
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.engine.client.runs.history import History
    from dspex.engine.graph.graph import Graph
    from dspex.engine.replay.topology import Diverged, Replayed

MOST = 10  # differences that are printed


def replay(
    context: typer.Context,
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Its id, the end of it, or @last.")] = None,
    topology: Annotated[str | None, typer.Option("--topology", metavar="NAME", help="All that it has done.")] = None,
    target: Annotated[
        str | None, typer.Option("--with", metavar="TARGET", help="The code: module:attr or a YAML file; that of dspex.toml.")
    ] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="DUR", help="Only the last 1h, 7d, …")] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Only what was before, RFC 3339.")] = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help="An exported run; without a server.")] = None,
    mode: Annotated[str, typer.Option("--mode", metavar="strict", help="strict: no call is made.")] = "strict",
) -> None:
    """Replay a run, or all that a topology did, with the code of today. No call is made. Exit 6 where it differs."""
    t = terminal(context)
    if mode != "strict":
        raise typer.BadParameter(f"{mode!r} is not one of strict", context, param_hint="--mode")
    if [run, topology, file].count(None) != 2 or (topology is None and (since or until)):
        fix = "dspex replay RUN, dspex replay --topology NAME --since 1d, or dspex replay --file FILE"
        raise ConfigError("what is replayed is a run, a file of one, or a topology with a time", code="DX105", fix=fix)
    if file is not None:
        _replay_file(t, file, target)
        return
    began = time.monotonic()
    if run is not None:
        what, found = t.run(_replayed_run(t, run, target))
    else:
        what, found = t.run(_replayed(t, str(topology), target, since, until))
    _print(t, what, found, 1 if run is not None else None, time.monotonic() - began)
    if not found.same:
        first = found.diverged[0]
        raise Divergence(f"the replay of {what} differs {count(len(found.diverged), 'time')}; first {_said(first)}")


def _replay_file(t: Terminal, file: Path, target: str | None) -> None:
    from dspex.engine.cli.topology.targets import load
    from dspex.engine.client.runs.export import load as read
    from dspex.engine.testing.driver import Driver

    name = read(file).info.topology
    there = [one for one in load(t, [target] if target is not None else None) if one.name == name]
    if not there:
        raise TopologyError(f"there is no topology {name!r} in the code", code="DX235", fix="name it: --with module:attr")
    with Driver(*there) as d:
        found = d.replay(file)
    said = {name: getattr(found, name) for name in ("same", "runs", "served", "live", "tokens")} | {"mode": "strict"}
    first = vars(found.diverged) if found.diverged is not None else None
    t.emit({**said, "diverged": first, "what": str(file)}, *found.diff.lines(), *(["same"] if found.same else []))
    if not found.same:
        raise Divergence(f"the replay of {file} differs {count(len(found.diff.steps), 'time')}")


async def _replayed_run(t: Terminal, run: str, target: str | None) -> tuple[str, Replayed]:
    from dspex.engine.log.build import build
    from dspex.engine.replay.topology import Replayed, replayed_run

    async with client(t, "replay") as c:
        past, applied = await c.run(run).history()
        found = Replayed()
        for topology, taken in taken_by(past).items():
            graph = graph_of(t, topology, target)
            of = build(graph.digest, graph.functions)
            found.add(await replayed_run(c.bus, c.app, graph, applied[topology], of, taken, past.run))
        return past.run, found


def taken_by(past: History) -> dict[str, dict[tuple[str, int], set[int]]]:
    """The entries that took something of a run: by topology, stage and partition."""
    found = dict[str, dict[tuple[str, int], set[int]]]()
    for one in past.taken:
        topology, stage, index = one.partition
        found.setdefault(topology, {}).setdefault((stage, index), set()).add(one.sequence)
    return found


def graph_of(t: Terminal, topology: str, target: str | None) -> Graph:
    """A topology of the code: of a target, or of dspex.toml. Raises TopologyError, ConfigError."""
    from dspex.engine.cli.topology.targets import load
    from dspex.engine.graph.defaults import with_defaults

    settings = t.settings()
    defaults, timeouts = settings.defaults.call.options(), settings.timeouts
    graphs = {one.graph.name: one.graph for one in load(t, [target] if target is not None else None)}
    if topology not in graphs:
        fix = did_you_mean(topology, sorted(graphs), "name it: --with module:attr")
        raise TopologyError(f"there is no topology {topology!r} in the code", code="DX235", fix=fix)
    return with_defaults(graphs[topology], defaults, timeouts)


async def _replayed(
    t: Terminal, topology: str, target: str | None, since: str | None, until: str | None
) -> tuple[str, Replayed]:
    from dspex.bus.codecs.times import moment
    from dspex.bus.settings.duration import seconds
    from dspex.engine.log.build import build
    from dspex.engine.replay.topology import replayed

    graph = graph_of(t, topology, target)
    begin = time.time() - seconds(since) if since is not None else 0.0
    try:
        end = moment(until).timestamp() if until is not None else None
    except (ValueError, OverflowError):
        raise ConfigError(f"{until!r} is no time", code="DX105", fix="as 2026-01-31T12:00:00Z") from None
    async with client(t, "replay") as c:
        applied = (await c.manifests()).get(topology)
        if applied is None:
            raise TopologyError(f"there is no topology {topology!r}", code="DX235", fix="dspex status shows those there are")
        with t.progress("replay", sum(applied.partitions.values())) as bar:

            def told(so_far: Replayed) -> None:
                bar.advance(1, f"{so_far.taken['source']:,} events, {so_far.taken['records']:,} calls served")

            of = build(graph.digest, graph.functions)
            return topology, await replayed(c.bus, c.app, graph, applied, of, since=begin, until=end, told=told)


def _print(t: Terminal, what: str, found: Replayed, runs: int | None, seconds: float) -> None:
    """`runs`: how many it were, where that is known: of a topology, events of sources; where there are none, over hops."""
    events, served = runs or found.taken["source"] or found.taken["events"], found.taken["records"]
    first = found.diverged[0] if found.diverged else None
    said: dict[str, Any] = {"same": found.same, "mode": "strict", "runs": events, "served": served, "live": 0, "tokens": 0}
    said["diverged"] = {"step": _place(first), "field": None, "a": None, "b": first.what} if first is not None else None
    said |= {"what": what, "differences": len(found.diverged), "builds": found.builds, "seconds": round(seconds, 3)}
    lines = [f"{what}  {count(events, 'run')}, {count(served, 'call')} read back, 0 made  {seconds:.1f} s"]
    for name, (then, now) in sorted(found.builds.items()):
        lines.append(f"other build: {name}: {then[:40] or '-'} then, {now[:40] or '-'} now")
    lines += [f"differs {_said(one)}" for one in found.diverged[:MOST]]
    if len(found.diverged) > MOST:
        lines.append(f"… and {len(found.diverged) - MOST:,} more")
    t.emit(said, *lines, *(["same"] if found.same else []))


def _place(one: Diverged) -> str:
    return f"{one.stage}.{one.partition}@{one.entry}"


def _said(one: Diverged) -> str:
    excuse = " (something failed there, or is not kept any more)" if one.excused else ""
    return f"at {_place(one)}: {one.what}{excuse}"
