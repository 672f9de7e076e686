"""`dspex replay`: whether the code of today gives what was given, with every call answered by its record."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, Divergence, RecordingIncomplete, RunNotFound, TopologyError
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.cli.runs.again.built import ANY_BUILD, BUILD, with_build
from dspex.engine.cli.runs.again.repeated import JOBS, PrintedAs, check_jobs, incomplete, repeated
from dspex.engine.cli.runs.again.sending import ReplayTarget, SendAgain, checked, target_of
from dspex.engine.cli.runs.again.told import ReplayTold, markdown, print_told
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.options import duration
from dspex.engine.cli.terminal.progress import NoBar
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.bus.port import Bus
    from dspex.engine.cli.runs.choice import ReplayChoice
    from dspex.engine.client.client import Client
    from dspex.engine.client.runs.export import RunFile
    from dspex.engine.client.runs.history import History
    from dspex.engine.graph.graph import Graph
    from dspex.engine.graph.manifest import Manifest
    from dspex.engine.replay.pieces import PieceCrew
    from dspex.engine.replay.topology import Replayed

SEVERAL = 16  # runs from which on it is shown how far their histories are read


WITH = Annotated[
    str | None, typer.Option("--with", metavar="TARGET", help="The code: module:attr or a YAML file; that of dspex.toml.")
]
RANGE = Annotated[str | None, typer.Option("--range", metavar="FROM:TO", help="Runs of source events by their sequences.")]
FILE = Annotated[
    str | None, typer.Option("--file", metavar="FILE", help="An exported run, or a folder of them; without a server.")
]
TO = Annotated[
    str | None, typer.Option("--to", metavar="SUBJECT", help="Publish what comes: replay.> before each sink's own subject.")
]
EXPLAIN = Annotated[bool, typer.Option("--explain", help="The chain of causes of the first difference.")]
AT = Annotated[str | None, typer.Option("--at", metavar="OPERATOR", help="With --pdb: where it stops.")]
PDB = Annotated[bool, typer.Option("--pdb", help="Open the debugger in the function of an operator.")]
TO_SINKS = Annotated[list[str] | None, typer.Option("--to-sinks", metavar="NAME", help="Publish it into this sink.")]


MODE = Annotated[
    Literal["strict", "hybrid", "live"],
    typer.Option("--mode", help="strict: no call is made; hybrid: those that have no recorded answer are; live: all are."),
]


HOW = Annotated[PrintedAs, typer.Option("--as", help="How it is printed.")]
EXIT_CODE = Annotated[bool, typer.Option("--exit-code", help="Exit 1 where it differs, also where calls are made.")]


def replay(
    context: typer.Context,
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Its id, the end of it, or @last.")] = None,
    topology: Annotated[str | None, typer.Option("--topology", metavar="NAME", help="All that it has done.")] = None,
    target: WITH = None,
    folder: BUILD = None,
    any_build: ANY_BUILD = False,
    since: Annotated[str | None, duration("--since", help="Only the last 1h, 7d, …")] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Only what was before, RFC 3339.")] = None,
    session: Annotated[str | None, typer.Option("--session", metavar="ID", help="The runs of a session.")] = None,
    span: RANGE = None,
    partition: Annotated[str | None, typer.Option("--partition", metavar="STAGE/N", help="Only this one.")] = None,
    file: FILE = None,
    mode: MODE = "strict",
    explain: EXPLAIN = False,
    at: AT = None,
    debug: PDB = False,
    to: TO = None,
    to_sinks: TO_SINKS = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before sinks are written.")] = False,
    how: HOW = "text",
    exit_code: EXIT_CODE = False,
    jobs: JOBS = None,
) -> None:
    """Replay runs, or all that a topology did, with the code of today or of then (--build). No sink is written. Exit 6 where it
    differs (strict).
    """
    from dspex.engine.cli.runs.choice import chosen

    t = terminal(context)
    narrows = {"--topology": topology, "--since": since, "--until": until, "--partition": partition}
    what = chosen({"RUN": run, "--file": file, "--session": session, "--range": span, **narrows})
    with_build(t, what, target, folder, any_build=any_build)
    into = target_of(to, to_sinks or (), t.settings().app, yes=yes)
    much = what.file is not None or (what.whole and into is None)
    check_jobs(jobs, possible=mode == "strict" and much and at is None and not debug)
    if at is not None or debug:
        other = explain or into is not None or mode != "strict" or exit_code or how != "text"
        _debug(t, what, target, at if debug else None, other=other)
        return
    again = mode != "strict" or what.file is not None or (what.run is not None and t.run(_kept(t, what.run)) is not None)
    if again and (explain or into is not None or what.partition is not None):
        why = "only a strict replay of what the logs have is explained, published, or one of a partition"
        raise ConfigError(why, code="DX105", fix="replay it strictly, where it is recorded: dspex replay RUN")
    if again:
        repeated(t, what, target, mode, how, jobs, exit_code=exit_code)
        return
    began = time.monotonic()
    if what.whole:
        told = _of_topology(t, what, target, into, jobs)
    else:
        told = t.run(_replayed_runs(t, what, target, into))
    if how == "markdown":
        t.document(markdown(told))
    else:
        print_told(t, told, time.monotonic() - began, explain=explain)
    if lacking := told.found.incomplete:
        raise incomplete(told.name, lacking, len(told.found.diverged), "run" if not what.whole else "place")
    if not told.found.same:
        raise Divergence(f"the replay of {told.name} differs {count(len(told.found.diverged), 'time')}; first {told.first}")


def _debug(t: Terminal, what: ReplayChoice, target: str | None, at: str | None, *, other: bool) -> None:
    """Replay a run in the debugger. `other`: what it does not go together with is there."""
    from dspex.engine.cli.runs.again.debugging import debugged

    if what.run is None or at is None or other or t.json:
        fix = "dspex replay RUN --at OPERATOR --pdb, and --with TARGET for other code"
        raise ConfigError("the debugger takes a run, and an operator to stop at", code="DX105", fix=fix)
    t.run(debugged(t, what.run, target, at))


async def _told(t: Terminal, c: Client, told: ReplayTold, target: str | None, only: str | None) -> ReplayTold:
    """What is said, with the first run that differs looked at by itself."""
    from dspex.engine.cli.runs.differing import difference

    if told.sent is not None:
        await told.sent.audited(told.name)
    places = sorted(told.found.diverged, key=lambda one: one.excused)
    for run in dict.fromkeys(run for one in places for run in one.runs):
        try:
            if (differs := await difference(t, c, run, target, only)) is not None:
                return told._replace(differs=differs)
        except (RunNotFound, RecordingIncomplete):  # what a window gives is no event of a source
            continue
        return told  # it differs by what others left
    return told


async def _kept(t: Terminal, run: str) -> RunFile | None:
    """What is kept of a run that is in no log; None for any other."""
    async with client(t, "replay") as c:
        return await c.run(run).kept()


async def _replayed_runs(t: Terminal, what: ReplayChoice, target: str | None, into: ReplayTarget | None) -> ReplayTold:
    """Replay certain runs."""
    from dspex.engine.client.runs.then.recorded import lacks, taken_by
    from dspex.engine.log.build import build
    from dspex.engine.replay.topology import Replayed, replayed_run

    async with client(t, "replay") as c:
        ids, found = await what.runs(c), Replayed()
        past, applied = await histories_of(t, c, ids)
        runs, entries = {one.run for one in past}, taken_by(past, what.topology)
        for one in past:
            found.incomplete |= lacks(one)
        sent = SendAgain(c, into, checked(into, applied, entries), runs) if into is not None else None
        for topology, taken in entries.items():
            graph = graph_of(t, topology, target)
            of = build(graph)
            found.add(await replayed_run(c.bus, c.app, graph, applied[topology], of, taken, runs, sent, goes_on=len(ids) > 1))
        name = past[0].run if what.run is not None else str(what)
        return await _told(t, c, ReplayTold(name, len(runs), found, sent=sent), target, what.topology)


async def histories_of(t: Terminal, c: Client, runs: Sequence[str]) -> tuple[list[History], Mapping[str, Manifest]]:
    """The histories of runs, and what is applied. Raises RunNotFound."""
    from dspex.engine.client.following.many import histories

    if len(runs) == 1:
        past, applied = await c.run(runs[0]).history()
        return [past], applied
    applied = await c.manifests()
    with t.progress("histories", len(runs)) if len(runs) > SEVERAL else nullcontext(NoBar()) as bar:
        found = await histories(c.bus, c.app, applied, runs, bar.advance)
    return list(found.values()), applied


def graph_of(t: Terminal, topology: str, target: str | None) -> Graph:
    """A topology of the code: of a target, or of dspex.toml; or that of submitted calls, which is dspex's own. Raises
    TopologyError, ConfigError.
    """
    from dspex.engine.cli.topology.targets import load
    from dspex.engine.graph.defaults import with_defaults
    from dspex.engine.graph.submitted import submitted

    settings = t.settings()
    if topology == subjects.SUBMITTED:
        return submitted(settings.app, tuple(sorted({*settings.pools})))
    defaults, timeouts = settings.defaults.call.options(), settings.timeouts
    graphs = {one.graph.name: one.graph for one in load(t, [target] if target is not None else None)}
    if topology not in graphs:
        fix = did_you_mean(topology, sorted(graphs), "name it: --with module:attr")
        raise TopologyError(f"there is no topology {topology!r} in the code", code="DX235", fix=fix)
    return with_defaults(graphs[topology], defaults, timeouts)


def _of_topology(
    t: Terminal, what: ReplayChoice, target: str | None, into: ReplayTarget | None, jobs: int | None
) -> ReplayTold:
    """Replay what a topology did in a time: in several processes, which are forked before anything else begins."""
    from dspex.engine.replay.pieces import crew_for

    graph = graph_of(t, str(what.topology), target)

    @asynccontextmanager
    async def connected() -> AsyncGenerator[Bus]:
        async with client(t, "replay") as c:
            yield c.bus

    with crew_for(connected, t.settings().app, graph, jobs if into is None else 1) as crew:
        return t.run(_replayed(t, what, graph, target, into, crew))


async def _replayed(
    t: Terminal, what: ReplayChoice, graph: Graph, target: str | None, into: ReplayTarget | None, crew: PieceCrew | None
) -> ReplayTold:
    """Source events count as runs; where there are none, those over hops."""
    from dspex.engine.log.build import build
    from dspex.engine.replay.topology import replayed

    topology = str(what.topology)
    async with client(t, "replay") as c:
        known = await c.manifests()
        applied = known.get(topology)
        if applied is None:
            raise TopologyError(f"there is no topology {topology!r}", code="DX235", fix="dspex status shows those there are")
        sent = SendAgain(c, into, checked(into, known, [topology])) if into is not None else None
        with t.progress("replay", sum(applied.partitions.values()) if what.partition is None else 1) as bar:

            def told(so_far: Replayed) -> None:
                bar.advance(1, f"{so_far.taken['source']:,} events, {so_far.taken['records']:,} calls served")

            of, span = build(graph), (what.since, what.until)
            narrow: dict[str, Any] = {"span": span, "partition": what.partition, "crew": crew}
            found = await replayed(c.bus, c.app, graph, applied, of, told=told, watcher=sent, **narrow)
        told_of = ReplayTold(topology, found.taken["source"] or found.taken["events"], found, sent=sent)
        return await _told(t, c, told_of, target, topology)
