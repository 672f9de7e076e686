"""The histories of many runs, in one pass over the logs for those that lie near to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Final, TypeAlias, TypeVar

from dspex.bus import subjects
from dspex.bus.errors import RunNotFound
from dspex.bus.message import Message, id_time
from dspex.bus.port import Bus
from dspex.engine.client.following.commit import Commit, commit_of
from dspex.engine.client.following.once import reading_once
from dspex.engine.client.following.progress import PartitionId
from dspex.engine.client.runs import places
from dspex.engine.client.runs.history import BEFORE, History, HistoryReader
from dspex.engine.client.runs.leap import Outstanding, leap
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.entries import is_damaged_entry
from dspex.engine.log.positions import sequence_before
from dspex.engine.log.tables import Tables

T = TypeVar("T")
_APART: Final = 10.0  # seconds between two runs, from which on what lies between them is not read
_FEW, _PIECE = 256, 4096  # sequences that are looked through at a time: most runs are short
_SOON: Final = 4096  # sequences behind which it is worth to ask snapshots what happened to those that are left
_LONG: Final = 8 * _PIECE  # sequences of the stream that must be left for that
_NOTHING: Final[Mapping[PartitionId, Tables]] = {}

_Mark: TypeAlias = tuple[PartitionId, str, int]
"""What a run waits for in a partition: an input and the sequence in it; of a row that is open, "" and its number."""


async def histories(
    bus: Bus,
    app: str,
    manifests: Mapping[str, Manifest],
    runs: Sequence[str],
    told: Callable[[int], None] = lambda more: None,
    *,
    now: Mapping[PartitionId, Tables] = _NOTHING,
    gone: bool = False,
) -> dict[str, History]:
    """The histories of runs as they are now, by their full ids.

    Args:
        told: how many more are known. now: tables of just now: of what they have as it was nothing is to be read further.
        gone: leave out runs whose source events are not there any more. Raises RunNotFound otherwise.
    """
    found, once = dict[str, History](), reading_once(bus)
    for some in _near(runs):
        reads, readers = once if len(some) > 1 else bus, dict[str, HistoryReader]()
        for began, run in some:
            reader = HistoryReader(reads, app, run)
            with suppress(*((RunNotFound,) if gone else ())):
                await reader.begin(manifests, began)
                readers[run] = reader
        if readers:
            await _read(reads, app, readers, some[0][0], now)
        for run, reader in readers.items():
            reader.ends()
            found[run] = reader.found
        told(len(some))
    return {run: found[run] for run in runs if run in found}


def _near(runs: Iterable[str]) -> Iterator[list[tuple[float, str]]]:
    """The runs, with when they began, in order: those together that lie near to each other. Raises RunNotFound."""
    times = {run: id_time(run) for run in runs}
    if unknown := next((run for run, at in times.items() if at is None), None):
        raise RunNotFound(f"{unknown!r} is no id of a run", run=unknown, fix="dspex runs ls shows those there are")
    began = sorted((at.timestamp(), run) for run, at in times.items() if at is not None)
    some = began[:1]
    for before, one in pairwise(began):
        if one[0] - before[0] > _APART:
            yield some
            some = []
        some.append(one)
    if some:
        yield some


async def _read(
    bus: Bus, app: str, readers: Mapping[str, HistoryReader], began: float, now: Mapping[PartitionId, Tables]
) -> None:
    """Read the logs until nothing of the runs is open. Where nothing happens to any of them for long, snapshots tell that."""
    info = await bus.stream(subjects.stream(app))
    if info is None:
        return
    start, waits = await sequence_before(bus, info, began - BEFORE) + 1, _Waits(readers)
    logs, size, patience, ask = [subjects.log(app, "*", "*", "*")], _FEW, _SOON, start + _SOON
    while start <= info.last and waits.left_as_of(now):
        if start >= ask and info.last - start > _LONG:
            there = await leap(bus, app, waits.outstanding(), start, info.last, near=_SOON)
            patience = _SOON if there > start else 2 * patience
            start, ask = there, there + patience
        stop = min(info.last, start + size - 1)
        for message in await bus.scan(info.name, logs, start=start, stop=stop):
            await waits.entry(bus, app, message)
        start, size = stop + 1, min(2 * size, _PIECE)


class _Waits:
    """Which runs an entry concerns. `left`: those of which anything is open."""

    def __init__(self, readers: Mapping[str, HistoryReader]) -> None:
        self._readers, self.left = readers, set(readers)
        self._marks = dict[str, set[_Mark]]()
        self._runs = dict[tuple[PartitionId, str], dict[int, set[str]]]()  # by the marks
        for run in readers:
            self._note(run)

    def _note(self, run: str) -> None:
        """Note what a run waits for now."""
        left = self._readers[run].left
        now = {(where, input, sequence) for (where, input), waited in left.waiting.items() for sequence in waited}
        now |= {(where, "", number) for (where, _), rows in left.open.items() for number in rows}
        before = self._marks.get(run, set[_Mark]())
        for where, input, number in before - now:
            self._runs[where, input][number].discard(run)
            if not self._runs[where, input][number]:
                del self._runs[where, input][number]
        for where, input, number in now - before:
            self._runs.setdefault((where, input), {}).setdefault(number, set()).add(run)
        self._marks[run] = now
        if not now:
            self.left.discard(run)

    def outstanding(self) -> Outstanding:
        """What is outstanding of all that are left."""
        found = Outstanding()
        for left in (self._readers[run].left for run in self.left):
            for key, sequences in left.waiting.items():
                found.waiting.setdefault(key, {}).update(sequences)
            for key, rows in left.open.items():
                found.open.setdefault(key, {}).update(rows)
        return found

    def left_as_of(self, now: Mapping[PartitionId, Tables]) -> set[str]:
        """Those for which more is to be read: not those to which nothing happened any more until now."""
        for run in [*self.left]:
            left = self._readers[run].left
            if all(where in now and left.is_untouched(where, now[where]) for where in left.partitions):
                self.left.discard(run)
        return self.left

    async def entry(self, bus: Bus, app: str, m: Message) -> None:
        """Have an entry of a log taken by the runs that it concerns."""
        commit = await commit_of(bus, app, m)
        if commit is not None and not commit.lost:
            for run in sorted(self._concerned(places.partition(m), commit)):
                await self._readers[run].entry(m, commit)
                self._note(run)
        elif commit is not None or is_damaged_entry(m.data):
            for run in self.left:
                await self._readers[run].entry(m)

    def _concerned(self, where: PartitionId, commit: Commit) -> set[str]:
        open, found = self._runs.get((where, ""), {}), set[str]()
        for input, first, last, *_ in commit.entry["taken"]:
            waited = open if input == "timers" else self._runs.get((where, input), {})
            for runs in _between(waited, places.place(first)[0], places.place(last)[0]):
                found |= runs
        for rows in commit.rows.values():
            for number, row in rows:
                found |= open.get(number, set())
                if row is not None and row.run in self._readers:
                    found.add(row.run)
        return found


def _between(of: Mapping[int, T], first: int, last: int) -> list[T]:
    """What has a number from one to another."""
    if last - first < len(of):
        return [of[number] for number in range(first, last + 1) if number in of]
    return [one for number, one in of.items() if first <= number <= last]
