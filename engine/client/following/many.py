"""The histories of many runs, in one pass over the logs for those that lie near to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from dspex.engine.client.runs.history import BEFORE, History, HistoryReader, history
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.positions import sequence_before

T = TypeVar("T")
_APART: Final = 10.0  # seconds between two runs, from which on what lies between them is not read
_FAR: Final = 16 << 10  # sequences without an end of a run, behind which each that is left is read by itself
_PIECE: Final = 4096  # sequences that are looked through at a time

_Mark: TypeAlias = tuple[PartitionId, str, int]
"""What a run waits for in a partition: an input and the sequence in it; of a row that is open, "" and its number."""


async def histories(
    bus: Bus,
    app: str,
    manifests: Mapping[str, Manifest],
    runs: Sequence[str],
    told: Callable[[int], None] = lambda more: None,
) -> dict[str, History]:
    """The histories of runs as they are now, by their full ids. `told`: how many more are known. Raises RunNotFound."""
    found, once = dict[str, History](), reading_once(bus)
    for some in _near(runs):
        readers = {run: HistoryReader(once, app, run) for _, run in some}
        for began, run in some:
            await readers[run].begin(manifests, began)
        await _read(once, app, readers, some[0][0])
        for run, reader in readers.items():
            reader.ends()
            found[run] = reader.found if reader.idle else await history(bus, app, manifests, run)
        told(len(some))
    return {run: found[run] for run in runs}


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


async def _read(bus: Bus, app: str, readers: Mapping[str, HistoryReader], began: float) -> None:
    """Read the logs until nothing of the runs is open, or nothing comes to its end for long."""
    info = await bus.stream(subjects.stream(app))
    if info is None:
        return
    start, waits = await sequence_before(bus, info, began - BEFORE) + 1, _Waits(readers)
    ended, logs = start, [subjects.log(app, "*", "*", "*")]
    while start <= info.last and waits.left and start - ended < _FAR:
        stop = min(info.last, start + _PIECE - 1)
        for message in await bus.scan(info.name, logs, start=start, stop=stop):
            before = len(waits.left)
            await waits.entry(bus, app, message)
            ended = message.sequence if len(waits.left) < before else ended
        start = stop + 1


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

    async def entry(self, bus: Bus, app: str, m: Message) -> None:
        """Have an entry of a log taken by the runs that it concerns."""
        if (commit := await commit_of(bus, app, m)) is not None:
            for run in sorted(self._concerned(places.partition(m), commit)):
                await self._readers[run].entry(m, commit)
                self._note(run)

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
