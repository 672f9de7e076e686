"""The replay of partitions with a change, which goes on with what comes of it: until all is again as it was."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias

from dspex.bus import subjects
from dspex.bus.errors import RecordingIncomplete
from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.bus.records import NodeEvent
from dspex.bus.seldom import silent
from dspex.bus.serving import payloads
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.entries import packed, plain
from dspex.engine.log.rows import NONE, OpenCall, Place, Position, Timer
from dspex.engine.log.tables import Table
from dspex.engine.replay.added import ALARMS, Alarms, OnwardWatcher, answered_by, what_is_answered
from dspex.engine.replay.partition import Difference, PartitionReplay
from dspex.engine.replay.told import LogPlace
from dspex.engine.replay.topology import snapshot_before
from dspex.engine.replay.watched import Watcher
from dspex.engine.runtime.arrival import Answered, Arrival, Due, Mark, Woken
from dspex.engine.runtime.batch import Batch
from dspex.engine.runtime.walk.compile import Stage, compile_graph
from dspex.engine.runtime.watermarks.heard import Heard
from dspex.engine.runtime.watermarks.reached import newest

MOST: Final = 10_000
"""Commits of a partition that are looked at."""
_ALL: Final = 1 << 62  # behind all sequences
_FAR: Final = 1 << 48  # behind all numbers of calls and timers
_EACH: Final = ("keyed", "calls")
"""Tables whose rows make a difference for what follows."""

_Name: TypeAlias = tuple[str, ...]


class OnwardReplay(PartitionReplay):
    """Of one partition. `last`: the last entry in which the run is changed. `ends`: why it ended; "": all is as it was.

    Calls and timers get the numbers that the log has for them, by which it says what is taken; others get numbers far behind.
    """

    onward = True
    last, ends = 0, ""
    _is_over = _is_behind = False

    def __init__(
        self, bus: Bus, app: str, stage: Stage, source_stream: str, index: int, count: int, watcher: OnwardWatcher
    ) -> None:
        super().__init__(bus, app, stage, source_stream, index, count, payloads.most(bus))
        self.watcher = self._onward = watcher
        watcher.is_recorded = self._is_recorded
        self._calls: set[object] | None = None  # that have a record
        self._apart, self._seen, self._far, self._clock = set[tuple[str, Any]](), 0, _FAR, 0.0
        self._ours = dict[_Name, int]()  # what the log has not got, and the numbers that it has here
        self._alarms = Alarms()

    async def differences(
        self,
        begin: int | LogPlace = 0,
        until: int = NONE,
        only: Collection[int] | None = None,
        runs: Collection[str] | None = None,
    ) -> AsyncIterator[Difference]:
        """See PartitionReplay. Behind the log, what comes about by now."""
        async for one in super().differences(begin, until, only, runs):
            yield one
        if not self._is_over:
            await self._end()

    async def _end(self) -> None:
        """Take what comes behind the last entry, until nothing does."""
        if (info := await self.bus.stream(self._stream)) is None:
            return
        p, self._where, self._is_behind = self._p, self._where._replace(entry=info.last + 1), True
        if before := self._stage.before:
            said = [subjects.time(self._address.app, self._address.topology, stage, "*") for stage in before]
            p.heard = Heard.before(before, await self.bus.scan(self._stream, said, start=1, stop=info.last), _ALL, info.now)
        while not self.ends:
            self._batch = Batch(self.bus.sealing is not None)
            if (mark := newest(p)) > p.tables.position("time").mark and self._alarms.alone:
                self._take(Arrival(Place("time", 0), Position(mark=mark), info.now, Mark(mark)), None)
            if not self._take_added(info.now):
                return
            self._batch.write_frames()
            self.mine, gave = plain(packed(self._changes(within=False))), self._batch.messages
            await self.watcher.gave(self._where, gave)
            await self.watcher.gave_other(self._where, gave, [])
            self.over(self._where.entry, {})

    async def _arrivals(self, taken: Sequence[Any]) -> AsyncIterator[Arrival]:
        """See PartitionReplay. What comes of the change alone comes before; a timer that is due later now, then."""
        input, start, clock = taken[0], taken[1], taken[4]
        self._take_added(clock)
        self._clock = self._onward.clock = max(clock, self._clock)
        number = start if isinstance(start, int) else start[0]
        row = self._p.tables.timers.rows.get(self.timer(number)) if input == "timers" else None
        if row is None or row.kind not in ALARMS or self._is_due(row, clock):
            async for arrival in super()._arrivals(taken):
                yield arrival

    def _take_added(self, clock: float) -> int:
        """Take what comes of the change alone, up to a time. How many."""
        self._alarms.begin(self._p.tables.timers)
        seen, self.watcher, count = self.watcher, Watcher(), 0
        while count < MOST and (arrival := self._next(clock)) is not None:
            self._clock = self._onward.clock = arrival.clock
            self._take(arrival, None)
            count += 1
        self.watcher = seen
        return count

    def _next(self, clock: float) -> Arrival | None:
        """What comes next of the change alone."""
        timers, where = self._p.tables.timers, self._where
        set_now = [(number, timers.rows[number]) for name in self._alarms.alone if (number := timers.of(*name)) is not None]
        alarms = [(row.due, number, row) for number, row in set_now if self._is_due(row, clock)]
        there = self._onward.added.get((self._onward.topology, where.stage, where.partition), [])
        has_come = [self._is_behind or (one.entry < where.entry and one.due <= clock) for one in there]
        coming = [(one.due, at) for at, one in enumerate(there) if has_come[at]]
        if alarms and (not coming or min(alarms)[0] < min(coming)[0]):
            due, number, row = min(alarms)
            at = max(self._clock, due) if row.kind == "wake" else max(self._clock, clock)
            self._alarms.alone.discard((row.node, row.key, row.name))
            return Arrival(Place("timers", number), None, at, Due(number, row, Woken()))
        if not coming:
            return None
        due, at_index = min(coming)
        self._far += 1
        return Arrival(Place("added", self._far), None, max(self._clock, due), self._arrived(there.pop(at_index).what))

    def _arrived(self, what: NodeEvent | Answered | Message) -> NodeEvent | Answered | None:
        """What arrives, as the partition takes it."""
        if isinstance(what, Message):
            return self._again.sent(what)
        if isinstance(what, NodeEvent):
            return what
        calls = self._p.tables.calls.rows.items()
        number, row = next(((number, row) for number, row in calls if row.id == what.record.call), (None, None))
        tries = row.try_number if row is not None else 0
        return what._replace(record=replace(what.record, number=number, try_number=tries))

    def _is_due(self, row: Timer, clock: float) -> bool:
        """Whether the time of a timer has come, by the clock, or by the watermark that the partition has."""
        if row.kind == "wake":
            return row.due <= clock
        tables, of = self._p.tables, self._stage.clocks.get(row.node)
        mark = tables.position("time").mark
        return row.due <= (of.at(tables, mark, clock) if of is not None else mark)

    async def _is_recorded(self, call: str, event: NodeEvent) -> bool:
        """Whether the partition takes a record of a call yet, or of one for the same event."""
        if self._calls is None:
            info = await self.bus.stream(self._stream)
            of = subjects.record(self._address.app, "*", self._address.topology, self._address.stage, self._p.index)
            there = await self.bus.scan(self._stream, [of], start=self._where.entry, stop=info.last if info is not None else 0)
            self._calls = {key for m in there for key in answered_by(m)}
        return call in self._calls or what_is_answered(event) in self._calls

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
        waits = self._alarms.alone or self._onward.waits(self._where.stage, self._where.partition)
        self._is_over = bool(self.ends) or (sequence >= self.last and not self._apart and not waits)
        return self._is_over

    def _comparable(self, row: Any) -> Any:
        """A row without where its request lies, which is told of the log alone, and under the id that the log has."""
        return row._replace(work=0, id=self._onward.renamed.get(row.id, row.id)) if isinstance(row, OpenCall) else row

    def timer(self, number: int) -> int:
        """See PartitionReplay."""
        return self._alarms.number(number, self._p.tables.timers)

    def _renumber(self, changed: Mapping[str, Any]) -> list[int]:
        """Give what was opened in an entry the numbers that the log has for it; those of what it has not."""
        tables, told = self._p.tables, self.told
        self._alarms.note(changed.get("timers", ()), self.mine.get("timers", ()), tables.timers)
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
    if row.kind in ALARMS:
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
