"""The state of then, in the logs of an engine that does a run again: as if the engine before it had left that."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from dspex.bus.errors import RecordingIncomplete
from dspex.bus.port import Bus, NewMessage
from dspex.bus.records import NodeEvent
from dspex.engine.client.client import Client
from dspex.engine.client.run import Run
from dspex.engine.client.runs.export import RunFile
from dspex.engine.client.runs.history import History
from dspex.engine.client.runs.info import info_of
from dspex.engine.client.runs.then.builds import builds_of
from dspex.engine.client.runs.then.state import OF_ONE_EVENT, PartitionState, StateThen, kept, state_before
from dspex.engine.client.runs.then.taken import Taken
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


async def file_of(client: Client, run: Run, graphs: Collection[Graph], *, same: bool = False) -> RunFile:
    """The file of a run, with what operators kept when it began. `same`: see `exactly`. Raises as `Run.file`."""
    if (file := await run.kept()) is not None:
        return file
    past, applied = await run.history()
    then = {past.run: await state_before(client.bus, client.app, past, applied)}
    state = (await exactly(client, [past], applied, graphs, then, same=same))[past.run]
    builds = await builds_of(client.bus, client.app, past)
    return RunFile.of(info_of(past, client.app, applied), Tree(past, applied).root, past, state, builds)


async def exactly(
    client: Client,
    pasts: Collection[History],
    applied: Mapping[str, Manifest],
    graphs: Collection[Graph],
    states: Mapping[str, StateThen],
    keys: Mapping[str, Collection[str]] | None = None,
    *,
    same: bool = False,
) -> dict[str, StateThen]:
    """The states of runs with what arrivals changed that were committed with their first ones, before these: they are handled
    again, with the code of today.

    `keys`: of each run, only of these; None: of all. `same`: only where that code gives what was committed.
    """
    seen, entries = _Before(), dict[str, dict[tuple[str, int], set[int]]]()
    for past in pasts:
        first = {taken.partition: taken for taken in reversed(past.taken)}
        for part in states[past.run].partitions:
            if part.together:
                known = applied[part.topology]
                stage = next(id for name, (id, _) in {**known.stages, **known.hops}.items() if name in part.begins)
                taken = first[part.topology, stage, part.partition]
                seen.want(past.run, part, taken, {*keys[past.run], ""} if keys is not None else None)
                entries.setdefault(part.topology, {}).setdefault((stage, part.partition), set()).add(taken.sequence)
    for graph in (graph for graph in graphs if graph.name in entries):
        with suppress(RecordingIncomplete):  # then it stays unknown, and that is said
            runs = {past.run for past in pasts}
            where = entries[graph.name], runs, seen
            found = await replayed_run(client.bus, client.app, graph, applied[graph.name], {}, *where)
            differ = [one for one in found.diverged if same and not one.excused]
            seen.differs |= {(graph.name, one.stage, one.partition, one.entry) for one in differ}
    parts = {run: tuple(seen.of(run, part) for part in state.partitions) for run, state in states.items()}
    return {run: replace(state, partitions=parts[run]) for run, state in states.items()}


@dataclass
class _Wanted:
    """What is wanted right before an entry takes the first arrival of a run. `keys`: of these alone; None: of all."""

    run: str
    part: PartitionState
    taken: Taken
    keys: Collection[str] | None
    tables: dict[str, Any] | None = None


class _Before(Watcher):
    """Keeps what operators have right before entries take the first arrivals of runs.

    Attributes:
        differs: entries of which other things came: topology, stage, partition, sequence.
    """

    def __init__(self) -> None:
        self._wanted = dict[tuple[str, int, str, int], list[_Wanted]]()  # by where: stage, partition, input, sequence
        self._of = dict[tuple[str, str, tuple[str, ...], int], _Wanted]()
        self.differs = set[tuple[str, str, int, int]]()

    def want(self, run: str, part: PartitionState, taken: Taken, keys: Collection[str] | None) -> None:
        """Keep it of this partition. `taken`: what was first taken of the run there."""
        self._of[run, part.topology, part.begins, part.partition] = one = _Wanted(run, part, taken, keys)
        for input, sequence in taken.inputs:
            self._wanted.setdefault((*taken.partition[1:], input, sequence), []).append(one)

    def takes(self, where: ReplayPlace, arrival: Arrival, tables: Tables) -> None:
        """See Watcher."""
        place, event = arrival.place, arrival.what
        for one in self._wanted.get((where.stage, where.partition, place.input, place.sequence), ()):
            other = place.input == "events" and isinstance(event, NodeEvent) and event.origin.run != one.run
            if one.tables is None and where.entry == one.taken.sequence and not other:
                one.tables = kept(tables, one.part.forms, one.keys)

    def of(self, run: str, part: PartitionState) -> PartitionState:
        """The state of a partition, with that; as it is where it was not found."""
        one = self._of.get((run, part.topology, part.begins, part.partition))
        if one is None or one.tables is None or (*one.taken.partition, one.taken.sequence) in self.differs:
            return part
        return part._replace(tables=one.tables, together=0)


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
