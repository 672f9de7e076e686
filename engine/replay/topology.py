"""The replay of a topology: every partition of its stages again, from a kept snapshot on, with the code of today. And that of
one run: the commits that took something of it, with the state that there was then.

Nothing is asked: each call is answered by its record, and nothing is written. Where the messages of a commit or the changes of
tables are others than those that were stored, the replay differs there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

from dspex.bus import subjects
from dspex.bus.errors import DspexError, TopologyError
from dspex.bus.port import Bus
from dspex.bus.seldom import silent
from dspex.bus.serving import payloads
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.build import differing
from dspex.engine.log.entries import LogAddress, bases, readable
from dspex.engine.log.latest import latest
from dspex.engine.log.positions import sequence_before
from dspex.engine.log.reading import is_first
from dspex.engine.log.rows import NONE
from dspex.engine.replay.partition import PartitionReplay
from dspex.engine.replay.watched import Watcher, watched
from dspex.engine.runtime.walk.compile import Stage, compile_graph


class Diverged(NamedTuple):
    """Where a replay differs. `entry`: of the log of the partition. `excused`, `runs`: see PartitionReplay (`differing`)."""

    stage: str
    partition: int
    entry: int
    what: str
    excused: bool
    runs: tuple[str, ...] = ()


@dataclass
class Replayed:
    """What came of it.

    Attributes:
        partitions: that have a log. taken: arrivals by input: "source" are runs that began, "records" calls that were served.
        builds: what is another one than when the logs were written: name → (then, now).
        diverged: where it differs, in the order of the partitions.
        incomplete: what is damaged or missing, and was passed over: by its run, or by where the commit is that took it.
    """

    partitions: int = 0
    taken: Counter[str] = field(default_factory=Counter[str])
    builds: dict[str, tuple[str, str]] = field(default_factory=dict)
    diverged: list[Diverged] = field(default_factory=list)
    incomplete: dict[str, DspexError] = field(default_factory=dict[str, DspexError])

    @property
    def same(self) -> bool:
        """Nothing differs, and nothing is incomplete."""
        return not self.diverged and not self.incomplete

    def add(self, other: Replayed) -> None:
        """What came of another topology, too."""
        self.partitions += other.partitions
        self.taken += other.taken
        self.builds |= other.builds
        self.diverged += other.diverged
        self.incomplete |= other.incomplete


async def replayed(
    bus: Bus,
    app: str,
    graph: Graph,
    applied: Manifest,
    build: Mapping[str, str],
    *,
    span: tuple[float, float] = (0.0, inf),
    partition: tuple[str, int] | None = None,
    told: Callable[[Replayed], None] = lambda found: None,
    watcher: Watcher | None = None,
) -> Replayed:
    """Replay a topology. What is damaged or missing is named, and passed over. Raises BusError; TopologyError (DX235) where it
    has no such partition.

    Args:
        graph: of the topology, with the functions that are to run. applied: what the logs were written by.
        build: that of today, see `build`.
        span: only what was committed in between counts, in seconds since the epoch.
        partition: only this one: a stage by its id, or by a source or a hop that it begins at, and a number.
        told: called after each partition. watcher: told what comes of each entry.
    """
    found = Replayed()
    if (info := await bus.stream(subjects.stream(app))) is None:
        return found
    first = await sequence_before(bus, info, span[0]) + 1 if span[0] else 0
    last = await sequence_before(bus, info, span[1]) if span[1] < inf else NONE
    there = [one async for one in _partitions(bus, app, graph, applied)]
    for stage, index, count in there if partition is None else _only(there, *partition):
        await _one(bus, app, applied, stage, index, count, found, build, (first, last, None, None), watcher, goes_on=True)
        told(found)
    return found


async def replayed_run(
    bus: Bus,
    app: str,
    graph: Graph,
    applied: Manifest,
    build: Mapping[str, str],
    taken: Mapping[tuple[str, int], Collection[int]],
    runs: str | Collection[str],
    watcher: Watcher | None = None,
    *,
    goes_on: bool = False,
) -> Replayed:
    """Replay runs, as far as a topology took them. Raises BusError;
    RecordingIncomplete where something is damaged or missing, or names that, and `goes_on`.

    `taken`: stage and partition → the entries that took something of them. What else they took is taken again with it: it may
    have changed the same state before. What came of that is not compared. `watcher`: sees the native operators.
    """
    found, runs = Replayed(), {runs} if isinstance(runs, str) else runs
    graph = watched(graph, watcher) if watcher is not None else graph
    async for stage, index, count in _partitions(bus, app, graph, applied):
        if entries := taken.get((stage.id, index)):
            span = (min(entries), max(entries), entries, runs)
            await _one(bus, app, applied, stage, index, count, found, build, span, watcher, goes_on=goes_on)
    return found


async def _one(
    bus: Bus,
    app: str,
    applied: Manifest,
    stage: Stage,
    index: int,
    count: int,
    found: Replayed,
    build: Mapping[str, str],
    span: tuple[int, int, Collection[int] | None, Collection[str] | None],
    watcher: Watcher | None,
    *,
    goes_on: bool,
) -> None:
    """Replay one partition. `span`: the first and the last sequence that count, the entries, and the run; None: all."""
    stream = applied.streams[stage.name] if stage.source is not None else ""
    replay, (first, last, only, runs) = PartitionReplay(bus, app, stage, stream, index, count, payloads.most(bus)), span
    found.partitions += 1
    replay.watcher, replay.first, replay.goes_on = watcher or replay.watcher, first, goes_on
    with silent():
        async for entry, what in replay.differences(await snapshot_before(bus, replay.log, first), last, only, runs):
            if entry >= first:
                found.diverged.append(Diverged(stage.id, index, entry, what, replay.excused, replay.differing))
    for entry, error in replay.incomplete:
        found.incomplete.setdefault(str(error.run or f"{stage.id}.{index}@{entry}"), error)
    found.taken += replay.taken
    for one in replay.builds:
        found.builds |= differing(one, build)


async def _partitions(bus: Bus, app: str, graph: Graph, applied: Manifest) -> AsyncIterator[tuple[Stage, int, int]]:
    """The partitions that have a log, with how many their stage has."""
    for stage, count in compile_graph(graph, applied.stages, applied.hops, applied.renamed):
        logs = {subjects.log(app, graph.name, stage.id, index): index for index in range(count)}
        there: Mapping[str, Any] = await bus.multi_last(subjects.stream(app), list(logs))
        for log in sorted(there, key=lambda name: logs[name]):
            yield stage, logs[log], count


def _only(there: Sequence[tuple[Stage, int, int]], stage: str, index: int) -> list[tuple[Stage, int, int]]:
    """One partition of those that have a log. Raises TopologyError."""
    if found := [one for one in there if stage in {one[0].id, *one[0].begins} and one[1] == index]:
        return found
    known = {one[0].id: f"{one[0].id} ({one[0].name})" for one in there}
    numbers = sorted(one[1] for one in there if stage in {one[0].id, *one[0].begins})
    fix = f"those that have: {', '.join(map(str, numbers))}" if numbers else f"one of the stages {', '.join(known.values())}"
    raise TopologyError(f"no partition {stage}/{index} has taken anything", code="DX235", fix=fix)


async def snapshot_before(bus: Bus, log: LogAddress, first: int) -> int:
    """The entry that names the snapshot to begin at, the last one before `first`; 0: the log's begin, where that is there."""
    end = await latest(bus, log)
    kept = [at for at in (bases(end.at, end.entry) if end.at else ()) if at]
    if before := [at for at in kept if at < first]:
        return max(before)
    message = await bus.next(log.stream, log.subject, 1)
    entry = readable(message.data) if message is not None else None
    return 0 if entry is not None and is_first(entry) else min(kept, default=0)
