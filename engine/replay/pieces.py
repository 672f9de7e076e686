"""Pieces of logs, which processes replay at once.

What a partition has at a place of its log is told there. So the log behind it can be replayed by itself, whatever is done with
what lies before; and where that ends with other tables than the log tells, what was found behind it is of no use.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from dspex.bus.errors import DspexError
from dspex.bus.local.crew import Crew, processes
from dspex.bus.port import Bus
from dspex.bus.seldom import silent
from dspex.bus.serving import payloads
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.manifest import Manifest
from dspex.engine.replay.partition import PartitionReplay
from dspex.engine.replay.told import LogPlace
from dspex.engine.replay.watched import Watcher
from dspex.engine.runtime.walk.compile import compile_graph

SHARE: Final = 500
"""Arrivals that a process replays at once, about: to connect costs it as much as some twenty of them."""
_TABLES: Final = 4
"""A piece begins with so many times the bytes of its entries at most: each row of tables is made anew, which is soon done."""


class Diverged(NamedTuple):
    """Where a replay differs. `entry`: of the log of the partition. `excused`, `runs`: see PartitionReplay (`differing`)."""

    stage: str
    partition: int
    entry: int
    what: str
    excused: bool
    runs: tuple[str, ...] = ()


class LogPiece(NamedTuple):
    """What is replayed by itself: of a log what lies behind a place, up to a sequence.

    Attributes:
        stage, partition: which. begin: see `LogWalk.begin`. first: where what counts begins.
        lasts: see `PartitionReplay`. ends: nothing of this partition comes behind it.
    """

    stage: str
    partition: int
    begin: int | LogPlace
    first: int
    until: int
    lasts: Mapping[str, int] = {}
    ends: bool = True


@dataclass
class PieceReplayed:
    """What came of it. See `Replayed`.

    Attributes:
        builds: what wrote it. as_told: its tables are those that the log tells where it ends.
    """

    as_told: bool = True
    taken: Counter[str] = field(default_factory=Counter[str])
    builds: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    diverged: list[Diverged] = field(default_factory=list)
    incomplete: dict[str, DspexError] = field(default_factory=dict[str, DspexError])

    def add(self, other: PieceReplayed) -> None:
        """What came of the piece behind it, too."""
        self.taken += other.taken
        self.builds += [one for one in other.builds if one not in self.builds]
        self.diverged += other.diverged
        for name, error in other.incomplete.items():
            self.incomplete.setdefault(name, error)


class PartitionPieces:
    """The partitions of a topology, and pieces of them. `graph`: with the functions that are to run."""

    def __init__(self, bus: Bus, app: str, graph: Graph, applied: Manifest) -> None:
        self.bus, self.app, self.applied = bus, app, applied
        compiled = compile_graph(graph, applied.stages, applied.hops, applied.renamed)
        self.stages = {stage.id: (stage, count) for stage, count in compiled}

    def replay(self, stage_id: str, index: int) -> PartitionReplay:
        """The replay of a partition."""
        stage, count = self.stages[stage_id]
        stream = self.applied.streams[stage.name] if stage.source is not None else ""
        return PartitionReplay(self.bus, self.app, stage, stream, index, count, payloads.most(self.bus))

    async def replayed(
        self,
        piece: LogPiece,
        watcher: Watcher | None = None,
        only: Collection[int] | None = None,
        runs: Collection[str] | None = None,
        *,
        goes_on: bool = True,
    ) -> PieceReplayed:
        """Replay a piece. `only`, `runs`, `goes_on`: see PartitionReplay. Raises BusError; RecordingIncomplete."""
        stage, index, begin, first, until, lasts, _ = piece
        replay, found = self.replay(stage, index), PieceReplayed()
        replay.watcher, replay.first, replay.lasts, replay.goes_on = watcher or replay.watcher, first, lasts, goes_on
        with silent():
            async for entry, what in replay.differences(begin, until, only, runs):
                if entry >= first:
                    found.diverged.append(Diverged(stage, index, entry, what, replay.excused, replay.differing))
        found.taken, found.builds = replay.taken, replay.builds
        for entry, error in replay.incomplete:
            found.incomplete.setdefault(str(error.run or f"{stage}.{index}@{entry}"), error)
        found.as_told = piece.ends or replay.is_as_told
        return found

    async def cut(self, whole: LogPiece) -> AsyncGenerator[tuple[LogPiece, int]]:
        """What is to be replayed of a partition, in pieces, with how many arrivals each has."""
        walk = self.replay(whole.stage, whole.partition).walk(lambda entry, error: None)  # the last piece comes to it, too
        with silent():
            await walk.begin(whole.begin, whole.until)
        if walk.at_once:  # its tables cannot be told in the middle
            yield whole, SHARE
            return
        piece, arrivals, size, least, lasts = whole, 0, 0, 0, dict[str, int]()
        async with aclosing(walk.entries()) as entries:
            async for message, entry, _ in entries:
                size, lasts = size + len(message.data), lasts | _lasts(entry)
                arrivals += sum(run[3] for run in entry["taken"])
                if arrivals < SHARE or size < least:
                    continue
                place = walk.place(message.sequence + 1)
                if (least := len(place.tables) // _TABLES) > size:
                    continue
                yield piece._replace(until=message.sequence, lasts=lasts, ends=False), arrivals
                piece, arrivals, size, least, lasts = whole._replace(begin=place), 0, 0, 0, {}
        yield piece, arrivals


def _lasts(entry: Mapping[str, Any]) -> dict[str, int]:
    """The last message that a commit took, by input."""
    return {run[0]: run[2] if isinstance(run[2], int) else run[2][0] for run in entry["taken"]}


class PieceShare(NamedTuple):
    """What a process replays at once: pieces of what was `applied` so."""

    applied: Manifest
    pieces: Sequence[LogPiece]


PieceCrew: TypeAlias = "Crew[PieceShare, list[PieceReplayed | None]]"
Connected: TypeAlias = Callable[[], AbstractAsyncContextManager[Bus]]


def crew_for(connected: Connected, app: str, graph: Graph, jobs: int | None = None) -> AbstractContextManager[PieceCrew | None]:
    """Processes that replay pieces; nobody where there can be one only. `connected`: a connection of each process, for a share.
    `jobs`: so many processes; None: one for each processor.
    """
    return Crew(_Doing(connected, app, graph).share, count) if (count := processes(jobs)) > 1 else nullcontext()


class _Doing:
    """What a process of the crew does."""

    def __init__(self, connected: Connected, app: str, graph: Graph) -> None:
        self._connected, self._app, self._graph = connected, app, graph

    async def share(self, share: PieceShare) -> list[PieceReplayed | None]:
        """What comes of pieces; None where that says nothing of what is behind it, or names what is damaged."""
        async with self._connected() as bus:
            pieces = PartitionPieces(bus, self._app, self._graph, share.applied)
            found = [await pieces.replayed(piece) for piece in share.pieces]
        return [one if one.as_told and not one.incomplete else None for one in found]


async def by_crew(
    pieces: PartitionPieces, whole: AsyncIterator[LogPiece], crew: PieceCrew, watcher: Watcher | None = None
) -> AsyncGenerator[tuple[LogPiece, PieceReplayed]]:
    """The replay of partitions by several processes: what comes of each piece, in order. Raises BusError.
    `watcher`: sees what this process does: all, where that is little, and what goes on from a difference.
    """
    given, share, ends = deque[LogPiece](), list[LogPiece](), dict[tuple[str, int], int]()

    async def shares() -> AsyncIterator[PieceShare]:
        size, several = 0, False
        async for one in whole:
            ends[one.stage, one.partition] = one.until
            async for piece, arrivals in pieces.cut(one):
                share.append(piece)
                if (size := size + arrivals) >= SHARE:
                    given.extend(share)
                    yield PieceShare(pieces.applied, [*share])
                    size, several = 0, True
                    share.clear()
        if several and share:
            given.extend(share)
            yield PieceShare(pieces.applied, [*share])
            share.clear()

    done: tuple[str, int] | None = None  # the partition of which all is replayed
    async with aclosing(crew.done(shares())) as coming:
        async for results in coming:
            for found in results:
                piece = given.popleft()
                where = piece.stage, piece.partition
                if where == done:
                    continue
                if found is None:  # what follows begins with other tables than the log tells
                    done, piece = where, piece._replace(until=ends[where], lasts={}, ends=True)
                    found = await pieces.replayed(piece, watcher)
                yield piece, found
    for piece in share:  # all there is, and little
        yield piece, await pieces.replayed(piece, watcher)
