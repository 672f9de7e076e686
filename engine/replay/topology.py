"""The replay of a topology: every partition of its stages again, from a kept snapshot on, with the code of today. And that of
one run: the commits that took something of it, with the state that there was then.

Nothing is asked: each call is answered by its record, and nothing is written. Where the messages of a commit or the changes of
tables are others than those that were stored, the replay differs there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from math import inf
from typing import Any

from dspex.bus import subjects
from dspex.bus.errors import DspexError, TopologyError
from dspex.bus.port import Bus
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.build import differing
from dspex.engine.log.entries import LogAddress, bases, readable
from dspex.engine.log.latest import latest
from dspex.engine.log.positions import sequence_before
from dspex.engine.log.reading import is_first
from dspex.engine.log.rows import NONE
from dspex.engine.replay.pieces import Diverged, LogPiece, PartitionPieces, PieceCrew, PieceReplayed, by_crew
from dspex.engine.replay.watched import Watcher, watched
from dspex.engine.runtime.walk.compile import Stage


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

    def add_partition(self, of: PieceReplayed, build: Mapping[str, str]) -> None:
        """What came of a partition. `build`: that of today."""
        self.partitions += 1
        self.taken += of.taken
        self.diverged += of.diverged
        for name, error in of.incomplete.items():
            self.incomplete.setdefault(name, error)
        for one in of.builds:
            self.builds |= differing(one, build)

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
    crew: PieceCrew | None = None,
) -> Replayed:
    """Replay a topology. What is damaged or missing is named, and passed over. Raises BusError; TopologyError (DX235) where it
    has no such partition.

    Args:
        graph: of the topology, with the functions that are to run. applied: what the logs were written by.
        build: that of today, see `build`.
        span: only what was committed in between counts, in seconds since the epoch.
        partition: only this one: a stage by its id, or by a source or a hop that it begins at, and a number.
        told: called after each partition. watcher: told what comes of each entry that this process replays.
        crew: processes that do it.
    """
    found = Replayed()
    if (info := await bus.stream(subjects.stream(app))) is None:
        return found
    first = await sequence_before(bus, info, span[0]) + 1 if span[0] else 0
    last = await sequence_before(bus, info, span[1]) if span[1] < inf else NONE
    pieces = PartitionPieces(bus, app, graph, applied)
    there = [one async for one in _partitions(pieces)]
    chosen = there if partition is None else _only(there, *partition)

    async def whole() -> AsyncIterator[LogPiece]:
        for stage, index in chosen:
            yield LogPiece(stage.id, index, await _snapshot(pieces, stage.id, index, first), first, last)

    so_far = PieceReplayed()
    several = by_crew(pieces, whole(), crew, watcher) if crew is not None else None
    async with aclosing(several or _alone(pieces, whole(), watcher)) as coming:
        async for piece, came in coming:
            so_far.add(came)
            if piece.ends:
                found.add_partition(so_far, build)
                told(found)
                so_far = PieceReplayed()
    return found


async def _alone(
    pieces: PartitionPieces, whole: AsyncIterator[LogPiece], watcher: Watcher | None
) -> AsyncGenerator[tuple[LogPiece, PieceReplayed]]:
    async for one in whole:
        yield one, await pieces.replayed(one, watcher)


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
    pieces = PartitionPieces(bus, app, graph, applied)
    async for stage, index in _partitions(pieces):
        if entries := taken.get((stage.id, index)):
            first = min(entries)
            piece = LogPiece(stage.id, index, await _snapshot(pieces, stage.id, index, first), first, max(entries))
            found.add_partition(await pieces.replayed(piece, watcher, entries, runs, goes_on=goes_on), build)
    return found


async def _partitions(pieces: PartitionPieces) -> AsyncIterator[tuple[Stage, int]]:
    """The partitions that have a log."""
    for stage, count in pieces.stages.values():
        logs = {subjects.log(pieces.app, stage.graph.name, stage.id, index): index for index in range(count)}
        there: Mapping[str, Any] = await pieces.bus.multi_last(subjects.stream(pieces.app), list(logs))
        for log in sorted(there, key=lambda name: logs[name]):
            yield stage, logs[log]


def _only(there: Sequence[tuple[Stage, int]], stage: str, index: int) -> list[tuple[Stage, int]]:
    """One partition of those that have a log. Raises TopologyError."""
    if found := [one for one in there if stage in {one[0].id, *one[0].begins} and one[1] == index]:
        return found
    known = {one[0].id: f"{one[0].id} ({one[0].name})" for one in there}
    numbers = sorted(one[1] for one in there if stage in {one[0].id, *one[0].begins})
    fix = f"those that have: {', '.join(map(str, numbers))}" if numbers else f"one of the stages {', '.join(known.values())}"
    raise TopologyError(f"no partition {stage}/{index} has taken anything", code="DX235", fix=fix)


async def _snapshot(pieces: PartitionPieces, stage: str, index: int, first: int) -> int:
    return await snapshot_before(pieces.bus, pieces.replay(stage, index).log, first)


async def snapshot_before(bus: Bus, log: LogAddress, first: int) -> int:
    """The entry that names the snapshot to begin at, the last one before `first`; 0: the log's begin, where that is there."""
    end = await latest(bus, log)
    kept = [at for at in (bases(end.at, end.entry) if end.at else ()) if at]
    if before := [at for at in kept if at < first]:
        return max(before)
    message = await bus.next(log.stream, log.subject, 1)
    entry = readable(message.data) if message is not None else None
    return 0 if entry is not None and is_first(entry) else min(kept, default=0)
