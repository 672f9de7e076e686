"""A fork: a run of the past done again with one change. What comes of it is a run of its own, which is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from dspex.bus.errors import ConfigError, RecordingIncomplete
from dspex.bus.message import new_id
from dspex.bus.serving import audit
from dspex.engine.again.answering import CallsSoFar, Make, Mode
from dspex.engine.again.change import (
    ForkChange,
    ForkPlace,
    Reached,
    altered,
    before,
    changed,
    fitting,
    is_of_engine,
    kept,
    outputs_of,
    place_of,
)
from dspex.engine.again.change.asked import LaterCalls
from dspex.engine.again.change.contributed import following, keepers
from dspex.engine.again.change.delivering import deliver as deliver_to_sinks
from dspex.engine.again.change.later import LaterWatcher, Sought
from dspex.engine.again.change.readers import SinkReaders, next_of
from dspex.engine.again.code import builds_now, of_run
from dspex.engine.again.event import id_in
from dspex.engine.again.making import made as made_by_a_worker
from dspex.engine.again.repeat import Repeated, repeat
from dspex.engine.again.state import file_of
from dspex.engine.client.client import Client
from dspex.engine.client.run import Run
from dspex.engine.client.runs.diff import Diff, compare
from dspex.engine.client.runs.export import RunFile, written
from dspex.engine.client.runs.kept import keep
from dspex.engine.client.runs.then.changes import CODE
from dspex.engine.client.runs.then.later import Later
from dspex.engine.client.runs.then.recorded import taken_by
from dspex.engine.client.runs.tree import Happening
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.manifest import Manifest
from dspex.engine.replay.onward import replayed_onward


@dataclass(frozen=True)
class Forked:
    """What came of a fork. `run`: its id. `delivered`: outputs that were published to the sinks. `without`: see `Repeated`.

    `changed`: whether anything differs from its parent, or was asked anew: else what was changed was never reached.
    `keeps`: where what goes into an operator with state was changed, what that keeps of the key then: without the change, and
    with it. None where several events were changed, or it is not known.
    `later`: what follows in other runs; None where no operator keeps anything, or it is in no log.
    """

    run: str
    parent: str
    at: str
    served: int
    called: int
    tokens: int
    delivered: int
    diff: Diff
    without: str = ""
    changed: bool = True
    keeps: tuple[Any, Any] | None = None
    later: Later | None = None

    def as_dict(self) -> dict[str, Any]:
        """As the CLI prints it."""
        later = self.later.as_dict() if self.later is not None else None
        return {name: value for name, value in vars(self).items() if name != "diff"} | {"later": later}


async def forked(
    client: Client,
    run: str,
    at: str,
    change: ForkChange,
    graphs: Sequence[Graph],
    *,
    deliver: bool = False,
    mode: Mode = "hybrid",
    make: Make | None = None,
    told: Callable[[CallsSoFar], None] | None = None,
) -> Forked:
    """Do a run again with one change, and keep what comes of it. See `Client.fork`, and `repeat` for `mode` and `make`."""
    change.check()
    file = await file_of(client, client.run(run), graphs)
    if file.info.status == "running":
        fix = "wait for its end: dspex runs wait"
        raise RecordingIncomplete(f"run {file.info.id} is not over", run=file.info.id, fix=fix)
    if not change.topology and any(one.what == CODE for one in file.changes):
        fix = f"fork its parent, {file.info.parent}; or change the code again: --with TARGET"
        raise RecordingIncomplete(f"run {file.info.id} comes from a fork of other code, which is not kept", fix=fix)
    earlier = before(file, of_run(graphs, file.info.topology, file.root.data))
    place = place_of(at, file, earlier.graphs)
    change, reached = fitting(change, place, file, earlier.graphs), Reached()
    other, code = changed(change, place, file, earlier.graphs, reached)
    alter = altered([one for one in (earlier.alter, outputs_of(change, place)) if one is not None])
    states = [*earlier.programs, *([change.program] if change.program is not None else [])]
    make = make or partial(made_by_a_worker, client.bus, client.app)
    found = await repeat(client, other, code, mode=mode, make=make, alter=alter, states=states, told=told)
    own, calls = kept(change, place), LaterCalls(make, mode)
    later = await _later(client, client.run(run), file, found, change, place, reached, earlier.graphs, calls)
    if own.what in ("inputs", "outputs") and is_of_engine(place, code, file.info.topology):
        reached.check(file.info.id, at, own.what)
    now = builds_now(of_run(graphs, file.info.topology, file.root.data))
    other = replace(other, changes=(*file.changes, own), builds={name: [dict(build)] for name, build in now.items()})
    made = replace(_run_of_its_own(found, other, at), later=later)
    diff = compare(file.root, made.root, (file.info, made.info))
    await keep(client.bus, client.app, written(made), f"fork of …{file.info.id[-8:]} at {at}")
    await audit.leave(client.bus, client.app, "fork", run=made.info.id, parent=file.info.id, at=at, deliver=deliver)
    sent = await deliver_to_sinks(client, made, code) if deliver else 0
    anew = found.called > 0 or not diff.same or reached.keeps_other or (later is not None and bool(later.diffs))
    spent = (found.served, found.called + calls.called, found.tokens + calls.tokens)
    return Forked(made.info.id, file.info.id, at, *spent, sent, diff, found.without, anew, reached.keeps, later)


async def _later(
    client: Client,
    run: Run,
    file: RunFile,
    found: Repeated,
    change: ForkChange,
    place: ForkPlace,
    reached: Reached,
    graphs: Sequence[Graph],
    calls: LaterCalls,
) -> Later | None:
    """What a fork leads to in other runs of the topology. `found`: what came of the run itself. `reached`: is told of it."""
    topology, runs, later = file.info.topology, {id_in(file)}, Reached()
    code = graphs  # of a call of the run it is known what it gives, and those of others are as they were
    if change.topology or not any(one.name == topology and one.nodes[place.node].role == "call" for one in graphs):
        code = changed(change, place, file, graphs, later, runs)[1]
    graph = next(one for one in code if one.name == topology)
    if not any(node.role == "state" for one in code for node in one.nodes.values()) or await run.kept() is not None:
        return None
    past, applied = await run.history()
    sought = Sought(runs, keepers(graph, place.node), follows=not reached.times)
    watcher = LaterWatcher(client.app, file.root, found.file.root, sought, calls, SinkReaders(client.app, applied))
    code = [following(graph, runs, sought.tainted) if one is graph else one for one in code]
    ends = await _followed(client, code, applied, taken_by([past]), watcher)
    watcher.finish()
    reached.add(later)
    return Later(tuple(watcher.diffs), (*watcher.open, *calls.open, *ends), tuple(watcher.outputs))


async def _followed(
    client: Client,
    graphs: Sequence[Graph],
    applied: Mapping[str, Manifest],
    taken: Mapping[str, Mapping[tuple[str, int], Collection[int]]],
    watcher: LaterWatcher,
) -> list[str]:
    """Replay the topologies to which a run has come, and those that read what is sent otherwise by that, each once. Why it was
    not looked further.
    """
    known, done, ends = {graph.name: graph for graph in graphs}, set[str](), list[str]()
    while pending := {*taken, *(to[0] for to in watcher.reaches)} - done:
        done.add(name := next_of(pending, graphs))
        if name in known and name in applied:
            ends += await replayed_onward(client.bus, client.app, known[name], applied[name], taken.get(name, {}), watcher)
        else:
            ends.append(f"what {name} makes of it is not known: its code is not here")
    again = sorted({to[0] for to in watcher.reaches} & {*known})
    return [*ends, *(f"what comes to {name} once more is not followed" for name in again)]


async def delivered(client: Client, run: str, graphs: Sequence[Graph]) -> tuple[str, int]:
    """Publish what a kept fork gives otherwise to the sinks, as far as it is not there: its id, and how many were published.

    Raises ConfigError (DX105) for a run that is no fork, RunNotFound, BusError.
    """
    of = client.run(run)
    file = await of.kept()
    if file is None or file.info.parent is None:
        raise ConfigError(f"run {of.id} is no fork", code="DX105", fix="dspex fork RUN --at OPERATOR … makes one")
    id, parent = file.info.id, file.info.parent
    await audit.leave(client.bus, client.app, "fork", run=id, parent=parent, at="", deliver=True)
    return id, await deliver_to_sinks(client, file, of_run(graphs, file.info.topology, file.root.data))


def _run_of_its_own(found: Repeated, parent: RunFile, at: str) -> RunFile:
    """What came of it, as a run that begins now."""
    old, now = found.file.info.id, datetime.now(UTC)
    later, id = now - found.file.root.time, new_id(now.timestamp())
    root = _moved(found.file.root, old, id, later)
    ended = max((one.time for one in root), default=now)
    info = replace(found.file.info, id=id, parent=parent.info.id, started=now, finished=ended)
    return replace(found.file, info=info, root=root, state=parent.state, changes=parent.changes, builds=parent.builds)


def _moved(one: Happening, old: str, new: str, later: timedelta) -> Happening:
    attempts = [replace(step, run=new, started=step.started + later) for step in one.attempts]
    for step, was in zip(attempts, one.attempts):
        if was.event == old:
            attempts[attempts.index(step)] = replace(step, event=new)
    return replace(
        one,
        id=new if one.id == old else one.id,
        cause=new if one.cause == old else one.cause,
        time=one.time + later,
        attempts=attempts,
        below=[_moved(below, old, new, later) for below in one.below],
    )
