"""The replay of partitions with a change, which goes on with what comes of it: until all is again as it was."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from dspex.bus.errors import RecordingIncomplete
from dspex.bus.port import Bus
from dspex.bus.seldom import silent
from dspex.bus.serving import payloads
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.rows import NONE, OpenCall, Timer
from dspex.engine.log.tables import Table
from dspex.engine.replay.partition import PartitionReplay
from dspex.engine.replay.topology import snapshot_before
from dspex.engine.replay.watched import Watcher
from dspex.engine.runtime.walk.compile import Stage, compile_graph

MOST: Final = 10_000
"""Commits of a partition that are looked at."""
_ALL: Final = 1 << 62  # behind all sequences
_FAR: Final = 1 << 48  # behind all numbers of calls and timers
_ALARMS: Final = ("wake", "mark")
_EACH: Final = ("keyed", "calls")
"""Tables whose rows make a difference for what follows."""


_Name: TypeAlias = tuple[str, ...]


class OnwardWatcher(Watcher):
    """`reaches`: where else something arrives otherwise: topology, stage and partition → the entry from which on.

    `renamed`: calls by the ids that they have now → those that they had. `topology`: the one that is replayed.
    """

    topology = ""

    def __init__(self) -> None:
        self.reaches, self.renamed = dict[tuple[str, str, int], int](), dict[str, str]()

    def waits(self, stage: str, partition: int) -> bool:
        """Whether something is to be changed there yet, though all is as it was."""
        return False


class OnwardReplay(PartitionReplay):
    """Of one partition. `last`: the last entry in which the run is changed. `ends`: why it ended; "": all is as it was.

    Calls and timers get the numbers that the log has for them, by which it says what is taken; others get numbers far behind.
    """

    onward = True
    last, ends = 0, ""

    def __init__(
        self, bus: Bus, app: str, stage: Stage, source_stream: str, index: int, count: int, watcher: OnwardWatcher
    ) -> None:
        super().__init__(bus, app, stage, source_stream, index, count, payloads.most(bus))
        self.watcher = self._onward = watcher
        self._apart, self._seen, self._far = set[tuple[str, Any]](), 0, _FAR
        self._ours = dict[_Name, int]()  # what the log has not got, and the numbers that it has here
        self._theirs = dict[
            int, tuple[str, str, str]
        ]()  # the timers of operators with state by the numbers that the log has for them

    def over(self, sequence: int, changed: Mapping[str, Any]) -> bool:
        numbers = self._renumber(changed)
        self._seen += 1
        for name in _EACH:
            keys = {key for key, _ in (*changed.get(name, ()), *self.mine.get(name, ()))}
            for key in {*keys, *numbers} if name == "calls" else keys:
                mine, theirs = (self._comparable(getattr(of, name).rows.get(key)) for of in (self._p.tables, self.told))
                (self._apart.discard if mine == theirs else self._apart.add)((name, key))
        if self._seen >= MOST:
            self.ends = f"{MOST:,} commits were looked at, and it goes on"
        waits = self._onward.waits(self._where.stage, self._where.partition)
        return bool(self.ends) or (sequence >= self.last and not self._apart and not waits)

    def _comparable(self, row: Any) -> Any:
        """A row without where its request lies, which is told of the log alone, and under the id that the log has."""
        return row._replace(work=0, id=self._onward.renamed.get(row.id, row.id)) if isinstance(row, OpenCall) else row

    def timer(self, number: int) -> int:
        """See PartitionReplay. What set it then may not have, and something else may have."""
        self._note(())
        timers, alarm = self._p.tables.timers, self._theirs.get(number)
        found = timers.of(*alarm) if alarm is not None and number not in timers.rows else None
        return found if found is not None else number

    def _note(self, rows: Iterable[tuple[int, Any]]) -> None:
        """Note which timers of operators the log has, and those that were there before."""
        there = self._p.tables.timers.rows.items() if not self._theirs else ()
        for number, row in (*there, *((number, Timer(*row)) for number, row in rows if row is not None)):
            if row.kind in _ALARMS:
                self._theirs[number] = row.node, row.key, row.name

    def _renumber(self, changed: Mapping[str, Any]) -> list[int]:
        """Give what was opened in an entry the numbers that the log has for it; those of what it has not."""
        tables, told = self._p.tables, self.told
        self._note(changed.get("timers", ()))
        numbers = {number: self._number(name) for number, name in self._named() if not self._has(number, name)}
        numbers |= self._now_there(changed)
        _move(tables.calls, numbers)
        _move(tables.timers, numbers)
        for number, _ in changed.get("calls", ()):
            if number in tables.calls.rows and number in told.calls.rows:
                tables.calls.stored(number, told.calls.rows[number].work)
        tables.number = told.number
        return [number for number in numbers.values() if number > _FAR]

    def _now_there(self, changed: Mapping[str, Any]) -> dict[int, int]:
        """What had a number of our own, and has one in the log now, where it was opened later: by that, the one of the log."""
        found = dict[int, int]()
        for of in ("calls", "timers"):
            rows: Mapping[int, Any] = getattr(self.told, of).rows
            for number, _ in changed.get(of, ()) if self._ours else ():
                name = _name(rows.get(number))
                now = next((now for now, then in self._onward.renamed.items() if name is not None and then == name[0]), "")
                for one in (name, (now,)):
                    if one is not None and (ours := self._ours.pop(one, None)) is not None:
                        found[ours] = number
        return found

    def _named(self) -> Iterator[tuple[int, _Name]]:
        """What the last entry has opened or changed, by number and by what it is."""
        for of in ("calls", "timers"):
            rows: Mapping[int, Any] = getattr(self._p.tables, of).rows
            for number, _ in self.mine.get(of, ()):
                if number < _FAR and (name := _name(rows.get(number))) is not None:
                    yield number, (self._onward.renamed.get(name[0], name[0]), *name[1:])

    def _has(self, number: int, name: _Name) -> bool:
        """Whether the log has this number for it."""
        return name in (_name(self.told.calls.rows.get(number)), _name(self.told.timers.rows.get(number)))

    def _number(self, name: _Name) -> int:
        """The number that the log has for it; else one of our own."""
        rows: list[tuple[int, OpenCall | Timer]] = [*self.told.calls.rows.items(), *self.told.timers.rows.items()]
        found = next((number for number, row in rows if _name(row) == name), None)
        if found is None:
            self._far += 1
            self._ours[name] = self._far
        return found if found is not None else self._far

    @property
    def open(self) -> list[str]:
        """Operators that keep something else at the end, or wait for another answer."""
        calls = {**self.told.calls.rows, **self._p.tables.calls.rows}
        return sorted(
            {key[0] if name == "keyed" else calls[key].node for name, key in self._apart if name == "keyed" or key in calls}
        )


def _move(table: Table[int, Any], numbers: Mapping[int, int]) -> None:
    """Give rows other numbers."""
    rows = {number: row for number in numbers if (row := table.rows.get(number)) is not None}
    for number in rows:
        table.drop(number)
    for number, row in rows.items():
        table.put(numbers[number], row)


def _name(row: OpenCall | Timer | None) -> _Name | None:
    """What is the same of a call or a timer whatever number it has; None for nothing, and for the timer of a call."""
    if row is None or isinstance(row, OpenCall):
        return (row.id,) if row is not None else None
    if row.kind in _ALARMS:
        return row.node, row.key, row.name
    return ("", *map(str, row.place)) if row.place is not None else None


async def replayed_onward(
    bus: Bus,
    app: str,
    graph: Graph,
    applied: Manifest,
    taken: Mapping[tuple[str, int], Collection[int]],
    watcher: OnwardWatcher,
) -> list[str]:
    """Replay partitions of a topology with what a watcher changes, or the graph: those that took something of a run, from there
    on, and those to which something else comes by that. Why it was not looked further, where all is not again as it was.

    `taken`: stage and partition → the entries that took something of the run. Raises BusError.
    """
    ends, open, watcher.topology = dict[str, None](), set[str](), graph.name
    for stage, count in compile_graph(graph, applied.stages, applied.hops, applied.renamed):
        stream = applied.streams[stage.name] if stage.source is not None else ""
        for index in range(count):
            entries = taken.get((stage.id, index), ())
            first = min([*entries, watcher.reaches.pop((graph.name, stage.id, index), NONE)])
            if first == NONE:
                continue
            replay = OnwardReplay(bus, app, stage, stream, index, count, watcher)
            replay.first, replay.last = first, max(entries, default=first)
            try:
                with silent():
                    async for _ in replay.differences(await snapshot_before(bus, replay.log, first), NONE, range(first, _ALL)):
                        pass
            except RecordingIncomplete as error:
                ends[error.message] = None
                continue
            ends |= {replay.ends: None} if replay.ends else {}
            open |= {*replay.open} if not replay.ends else set()
    return [*ends, *([f"at the end of the log {', '.join(sorted(open))} is not as it was"] if open else [])]
