"""The state of then, in the logs of an engine that does a run again: as if the engine before it had left that."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from dspex.bus.errors import RecordingIncomplete
from dspex.bus.port import Bus, NewMessage
from dspex.bus.records import NodeEvent
from dspex.engine.client.client import Client
from dspex.engine.client.run import Run
from dspex.engine.client.runs.export import RunFile
from dspex.engine.client.runs.history import History, Taken
from dspex.engine.client.runs.info import info_of
from dspex.engine.client.runs.then.builds import builds_of
from dspex.engine.client.runs.then.state import OF_ONE_EVENT, PartitionState, StateThen, kept, state_before
from dspex.engine.client.runs.tree import Tree
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.commit_log import CommitLog
from dspex.engine.log.entries import LogAddress
from dspex.engine.log.latest import latest
from dspex.engine.log.tables import Tables
from dspex.engine.replay.topology import replayed_run
from dspex.engine.replay.watched import ReplayPlace, Watcher
from dspex.engine.runtime.arrival import Arrival, digest
from dspex.engine.runtime.stage import StageRunner
from dspex.engine.testing.engines import Engines


async def begun_with(bus: Bus, app: str, engines: Engines, state: StateThen, clock: float) -> str:
    """Have engines, which were just started, go on from a state. Why that is not the state of then; "" where it is."""
    keep = [node for r in engines.runners for node in r.stage.states.values() if node.state.form not in OF_ONE_EVENT]
    if not keep:
        return ""
    found, lacks = _found(engines.runners, state.partitions)
    if found:
        await engines.kill()
        for runner, index, tables in found:
            await _left(bus, app, runner, index, tables, clock)
        await engines.start()
    return state.lacks or "; ".join(sorted(lacks))


async def file_of(client: Client, run: Run, graphs: Collection[Graph]) -> RunFile:
    """The file of a run, with what operators kept when it began. Raises as `Run.file`."""
    if (file := await run.kept()) is not None:
        return file
    past, applied = await run.history()
    state = await _exact(client, past, applied, graphs, await state_before(client.bus, client.app, past, applied))
    builds = await builds_of(client.bus, client.app, past)
    return RunFile.of(info_of(past, client.app, applied), Tree(past, applied).root, past, state, builds)


async def _exact(
    client: Client, past: History, applied: Mapping[str, Manifest], graphs: Collection[Graph], state: StateThen
) -> StateThen:
    """A state with what arrivals changed that were committed with the first one of the run, before it: they are handled again,
    with the code of today.
    """
    first = {taken.partition: taken for taken in reversed(past.taken)}
    parts = list(state.partitions)
    for number, part in enumerate(parts):
        graph = next((graph for graph in graphs if graph.name == part.topology), None)
        if not part.together or graph is None:
            continue
        known = applied[part.topology]
        stage = next(id for name, (id, _) in {**known.stages, **known.hops}.items() if name in part.begins)
        taken = first[part.topology, stage, part.partition]
        seen = _Before(past.run, taken, part.forms)
        where = {(stage, part.partition): [taken.sequence]}
        with suppress(RecordingIncomplete):  # then it stays unknown, and that is said
            await replayed_run(client.bus, client.app, graph, known, {}, where, past.run, seen)
        if seen.tables is not None:
            parts[number] = part._replace(tables=seen.tables, together=0)
    return replace(state, partitions=tuple(parts))


class _Before(Watcher):
    """Keeps what operators have right before an entry takes the first arrival of a run."""

    def __init__(self, run: str, taken: Taken, forms: Collection[str]) -> None:
        self._run, self._inputs, self._forms = run, {*taken.inputs}, forms
        self.tables: dict[str, Any] | None = None

    def takes(self, where: ReplayPlace, arrival: Arrival, tables: Tables) -> None:
        """See Watcher."""
        place, event = arrival.place, arrival.what
        other = place.input == "events" and isinstance(event, NodeEvent) and event.origin.run != self._run
        if self.tables is None and (place.input, place.sequence) in self._inputs and not other:
            self.tables = kept(tables, self._forms)


def _found(
    runners: Collection[StageRunner], parts: Collection[PartitionState]
) -> tuple[list[tuple[StageRunner, int, dict[str, Any]]], set[str]]:
    """What the partitions of today get, and why they do not get something."""
    found, lacks = list[tuple[StageRunner, int, dict[str, Any]]](), set[str]()
    known = {name for runner in runners for name in runner.stage.states}
    for part in parts:
        of = (r for r in runners if r.topology == part.topology and r.stage.begins & {*part.begins})
        runner = next(of, None)
        if runner is None or runner.count != part.partitions:
            lacks |= {f"{name} lies behind something else now" for name in part.forms.keys() & known}
            continue
        forms = {name: node.state.form for name, node in runner.stage.states.items()}
        same = {name for name, form in part.forms.items() if forms.get(name) == form}
        lacks |= {f"{name} keeps something else now" for name in part.forms.keys() & forms.keys() - same}
        tables = dict(part.tables)
        tables["keyed"] = [(at, row) for at, row in tables.get("keyed", ()) if at[0] in same]
        tables["timers"] = [(number, row) for number, row in tables.get("timers", ()) if row[6] in same]
        found.append((runner, part.partition, tables))
    return found, lacks


async def _left(bus: Bus, app: str, runner: StageRunner, index: int, tables: dict[str, Any], clock: float) -> None:
    """Append a claim to a log, and an entry that changes the tables."""
    address = LogAddress.of(app, runner.topology, runner.stage.id, index)
    log = CommitLog(bus, address, "then", runner.manifest)
    log.landed_claim(await bus.commit([log.draft(await latest(bus, address), clock)]))
    nothing = list[NewMessage]()
    body = {"digest": digest(nothing), "taken": ()}
    await bus.commit(log.entry(body, tables, covers=0, at=clock))
