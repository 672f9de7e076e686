"""Replays of runs: whether the code of today gives what was given; and, where calls may be made, what it gives instead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from math import inf
from typing import Any, Final

from dspex.bus.errors import Divergence, DspexError, RecordingIncomplete, TopologyError
from dspex.engine.again.answering import CallsSoFar, Mode
from dspex.engine.again.change import before
from dspex.engine.again.code import builds_now, of_run
from dspex.engine.again.repeat import check, no_difference, repeat
from dspex.engine.again.state import file_of
from dspex.engine.again.unchanged import Unchanged
from dspex.engine.client.client import Client
from dspex.engine.client.run import Run
from dspex.engine.client.runs.diff import NOTHING, Diff, Replay, StepDiff, compare
from dspex.engine.client.runs.export import RunFile
from dspex.engine.client.runs.then.builds import others
from dspex.engine.client.runs.then.recorded import RecordedCalls, lacks, taken_by
from dspex.engine.client.runs.tree import Tree
from dspex.engine.graph.graph import Graph
from dspex.engine.log.build import build
from dspex.engine.replay.topology import Replayed, replayed, replayed_run

MANY: Final = 1_000_000  # runs: as many as there are
NO_DIFFERENCE: Final = Diff(True, None, [], (0, 0), (0.0, 0.0))


async def of_one(
    client: Client, run: Run, graphs: Sequence[Graph], mode: Mode, told: Callable[[CallsSoFar], None] | None = None
) -> tuple[Replay, Replayed | None]:
    """The replay of a run. See `Client.replay`. With mode "strict" also what its partitions say.

    Strict, the commits that took something of it are processed again, with the state that there was then. Where they differ,
    the run is done again from its source event, to say at which step.
    """
    if (kept := await run.kept()) is not None:  # it is in no log
        return await of_file(client, kept, graphs, mode, told), None
    past, applied = await run.history()
    for error in lacks(past).values():
        raise error
    file = RunFile.of(await run.info(), Tree(past, applied).root, past)

    async def from_its_event() -> Replay:
        return await of_file(client, await file_of(client, run, graphs), graphs, mode, told)

    if mode != "strict":
        return await from_its_event(), None
    found = Replayed()
    for topology, taken in taken_by([past]).items():
        graph = next(one for one in of_run(graphs, topology, file.root.data) if one.name == topology)
        of = build(graph)
        found.add(await replayed_run(client.bus, client.app, graph, applied[topology], of, taken, past.run))
    again = await from_its_event() if not found.same and past.done else None
    diff = again.diff if again is not None else compare(file.root, file.root, (file.info, file.info))
    return replace(_told(found, diff, runs=1), without=again.without if again is not None else ""), found


def as_it_was(file: RunFile, unchanged: Unchanged, now: Mapping[str, Mapping[str, str]], *, whole: bool) -> Replay | None:
    """The replay of a run that is known to come out as it did, which takes no engine. None: that is not known. `now`: the
    builds of the graphs. `whole`: see `repeat`, which raises what this raises.
    """
    check(file, unchanged.graphs, "strict", None)
    calls = file.calls
    if file.changes or not unchanged.is_same(file, RecordedCalls(calls, whole=whole)):
        return None
    diff, other = no_difference(file), others(file.builds, now)
    return Replay(True, 1, len(calls), 0, 0, None, diff, builds=other, secrets=file.hidden)


async def of_file(
    client: Client | None,
    file: RunFile,
    graphs: Sequence[Graph],
    mode: Mode,
    told: Callable[[CallsSoFar], None] | None = None,
    *,
    harmless: Collection[str] = (),
    now: Mapping[str, Mapping[str, str]] | None = None,
    **options: Any,
) -> Replay:
    """The replay of a run from its source event on, with the state of then. `harmless`: fields that may differ. `now`: the
    builds of the graphs. `options`: of `repeat`.
    """
    used = before(file, of_run(graphs, file.info.topology, file.root.data))
    options |= {"alter": used.alter, "states": used.programs}
    found = await repeat(client, file, used.graphs, mode=mode, told=told, **options)
    diff = found.diff
    if harmless and not diff.same:
        diff = compare(file.root, found.file.root, (file.info, found.file.info), None, harmless)
    spent, other = (found.served, found.called, found.tokens), others(file.builds, builds_now(graphs) if now is None else now)
    return Replay(diff.same, 1, *spent, diff.first, diff, found.without, found.cost, other, file.hidden)


def ended_at(file: RunFile, error: Divergence) -> Replay:
    """The replay of a run that came to a call which may not be made: it differs there, and what is behind that is not known."""
    step = StepDiff(error.node or file.root.node, None, NOTHING, error.message)
    tokens, cost = no_difference(file).tokens, no_difference(file).cost
    diff = Diff(False, step, [step], (tokens[0], 0), (cost[0], 0.0), [], (file.info, file.info))
    return Replay(False, 1, 0, 0, 0, step, diff, secrets=file.hidden)


def undone(which: str, error: DspexError) -> Replay:
    """The replay of a run that cannot be done again: what was recorded is damaged or missing, so it neither differs nor not."""
    return Replay(False, 0, 0, 0, 0, None, NO_DIFFERENCE, incomplete={which: error})


def _told(found: Replayed, diff: Diff, runs: int) -> Replay:
    """What the partitions said, with the differences of the steps, where there are any."""
    if found.diverged and diff.same:
        steps = [StepDiff(f"{d.stage}.{d.partition}@{d.entry}", None, NOTHING, d.what) for d in found.diverged]
        diff = replace(diff, same=False, first=steps[0], steps=steps)
    return Replay(found.same, runs, found.taken["records"], 0, 0, diff.first, diff, incomplete=found.incomplete)


async def of_topology(
    client: Client, topology: str, graphs: Sequence[Graph], mode: Mode, since: float, until: datetime | None
) -> Replay:
    """The replay of all that a topology did. See `Client.replay`."""
    applied = (await client.manifests()).get(topology)
    if applied is None:
        raise TopologyError(f"there is no topology {topology!r}", code="DX235", fix="dspex status shows those there are")
    if mode != "strict":
        return await of_many(client, *await by_end(client, topology, since, until), graphs, mode)
    graph = next(one for one in of_run(graphs, topology, None) if one.name == topology)
    of, end = build(graph), until.timestamp() if until is not None else inf
    logs = await replayed(client.bus, client.app, graph, applied, of, span=(since, end))
    return _told(logs, NO_DIFFERENCE, logs.taken["source"] or logs.taken["events"])


async def of_many(
    client: Client,
    runs: Sequence[str],
    running: Sequence[str],
    graphs: Sequence[Graph],
    mode: Mode,
    told: Callable[[Replay, Replay, str], None] = lambda so_far, last, run: None,
) -> Replay:
    """The replay of several runs, one after the other. `running`: those that are not over, which are named and left out.
    `told`: after each, of all so far, of that one, and which it was.
    """
    found = Replay(True, 0, 0, 0, 0, None, NO_DIFFERENCE, running=tuple(running))
    for run in runs:
        try:
            last = await _of_run(client, run, graphs, mode, one=len(runs) == 1)
        except RecordingIncomplete as error:
            if len(runs) == 1:
                raise
            last = undone(run, error)
        found = together(found, last)
        told(found, last, run)
    return found


async def _of_run(client: Client, run: str, graphs: Sequence[Graph], mode: Mode, *, one: bool) -> Replay:
    """The replay of a run, the only `one` or one of several."""
    try:
        return (await of_one(client, client.run(run), graphs, mode))[0]
    except Divergence as error:
        if one:
            raise
        return ended_at(await client.run(run).file(), error)


async def by_end(client: Client, topology: str, since: float, until: datetime | None) -> tuple[list[str], list[str]]:
    """Runs of a topology that are over, and those that are not; the latest first."""
    begin = datetime.fromtimestamp(since).astimezone() if since else None
    over, running = list[str](), list[str]()
    async for info in client.runs(topology, since=begin, limit=MANY):
        if until is None or info.started < until:
            (running if info.status == "running" else over).append(info.id)
    return over, running


def together(a: Replay, b: Replay) -> Replay:
    """What came of several runs. The differences are those of the first one that differs."""
    first = a if a.diverged is not None or (a.runs and b.diverged is None) else b
    (then, now), (more, since) = zip(a.diff.tokens, b.diff.tokens), zip(a.diff.cost, b.diff.cost)
    return Replay(
        same=a.same and b.same,
        runs=a.runs + b.runs,
        served=a.served + b.served,
        live=a.live + b.live,
        tokens=a.tokens + b.tokens,
        diverged=first.diverged,
        diff=replace(first.diff, tokens=(sum(then), sum(now)), cost=(sum(more), sum(since))),
        without=a.without or b.without,
        cost=a.cost + b.cost,
        builds={**a.builds, **b.builds},
        secrets=a.secrets | b.secrets,
        running=a.running + b.running,
        incomplete={**a.incomplete, **b.incomplete},
    )
