"""The replay of one partition from its log: the same arrivals again, and whether they give what they gave.

The invariant: with the same build, replaying a partition from any kept snapshot, or from nothing, to any
later entry gives the same messages and the same tables. An entry says which arrivals its commit took, in which order and with
which clock; a mark holds what only the runtime knew. `handle` does the rest, as it did then. Nothing is written.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, NamedTuple, cast

from dspex.bus import subjects
from dspex.bus.errors import DspexError, RecordingIncomplete
from dspex.bus.port import Bus
from dspex.engine.log.commit_log import CommitLog
from dspex.engine.log.entries import LogAddress, packed, plain
from dspex.engine.log.rows import NO_MARK, NONE, WITHIN, Position, filled
from dspex.engine.log.tables import Tables
from dspex.engine.replay import damage
from dspex.engine.replay.ahead import HowMany
from dspex.engine.replay.marks import run_of
from dspex.engine.replay.stored import StoredCommit, other_rows
from dspex.engine.replay.taken import TakenAgain
from dspex.engine.replay.told import LogPlace, LogWalk
from dspex.engine.replay.watched import ReplayPlace, Watcher
from dspex.engine.runtime.arrival import Arrival, digest
from dspex.engine.runtime.batch import Batch, next_number
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.process import Process
from dspex.engine.runtime.walk.compile import Stage
from dspex.engine.runtime.walk.request import Address, Ask, Output
from dspex.engine.runtime.walk.state import split_of

_MANY = 16  # entries whose arrivals are handled, from which on those are read together
_NO_EVENT: Final = ("gap", "moved", "watermark", "reset", "part")  # marks of what is no event, or is taken again to its end


class Difference(NamedTuple):
    """Where a replay differs. `entry`: sequence of the log entry. `what`: in words."""

    entry: int
    what: str


class _Nobody:
    """The owner of a partition that commits nothing."""

    def landed(self, partition: Partition, batch: Batch, /) -> None: ...
    def failed(self, partition: Partition, error: DspexError, /) -> None: ...


def _not_committed(p: Partition) -> None:
    """Nothing is written here."""


class PartitionReplay:
    """Replays one partition of a stage.

    Args:
        stage: compiled from the topology as it was when the log was written.
        source_stream: where the stage's source is read, if it has one. index, count: which partition, of how many.
        limit: bytes of one payload, as the engine had it.

    Attributes:
        excused: the last difference need not be that of a function that gives something else: something failed there, then or
            now, or asked for more time, or what was taken is not there any more.
        taken: how many arrivals were taken again, by input; where runs are replayed, only their own.
        builds: what wrote the entries that counted, as their claims say.
        differing: the runs of which the last difference is.
        watcher: told of each arrival before that is handled, and what came of entries, from the entry `first` on.
        goes_on: what is damaged or missing is noted, and it goes on behind it, with what the log tells of that; else it raises.
        lasts: by input, the last message that is taken, where that is known.
        incomplete: that, with the entry whose commit took it.
        onward: it goes on with what comes now. told: tables as the log has them. mine: what the last entry changed now.
    """

    onward, goes_on = False, False

    def __init__(self, bus: Bus, app: str, stage: Stage, source_stream: str, index: int, count: int, limit: int) -> None:
        self.bus, self._stage, self._stream, self._source_stream = bus, stage, subjects.stream(app), source_stream
        topology = stage.graph.name
        self.log = LogAddress.of(app, topology, stage.id, index)
        self._address = Address(app, topology, stage.id, index, "", limit)
        self._names = stage.names
        self._ordered = frozenset(n for n, c in stage.calls.items() if c.call.order != "any")
        self._again = TakenAgain(bus, app, stage, source_stream, count, self.timer)
        self._batch, self._mark = Batch(), NO_MARK  # of the entry
        self.told, self.mine = Tables(), cast("Mapping[str, Any]", {})
        self.excused, self._fails = False, set[str]()  # of what failed now, the runs; "" of what is not known
        self._runs: Collection[str] | None = None
        self.watcher, self.first, self.differing = Watcher(), 0, tuple[str, ...]()
        self.lasts: Mapping[str, int] = {}
        self._where = ReplayPlace(stage.id, index, 0)  # the entry
        self.incomplete = list[tuple[int, RecordingIncomplete]]()
        self.taken, self.builds = Counter[str](), list[dict[str, str]]()

    async def differences(
        self,
        begin: int | LogPlace = 0,
        until: int = NONE,
        only: Collection[int] | None = None,
        runs: Collection[str] | None = None,
    ) -> AsyncIterator[Difference]:
        """Replay the log as it is now, and say where it gives something else: nothing, if the invariant holds. Raises BusError.

        Args:
            begin: the entry that names the snapshot to begin at; 0: with nothing, at the first entry; or a place.
            until: the last sequence.
            only: the entries whose arrivals are handled; of others what they changed is taken from the log. None: all.
            runs: whose messages count; what else such an entry gave is of others. None: all that an entry gave.
        """
        self._runs = runs
        reads: HowMany = "all" if only is None else "many" if len(only) > _MANY else "few"
        await self._again.begin(self._address, reads, self.lasts)
        self._walk = self.walk(self._pass_over)
        self._own(await self._walk.begin(begin, until), self._walk.nonce)
        self.told = self._walk.tables
        async with aclosing(self._walk.entries()) as entries:
            async for message, entry, changed in entries:
                if self._walk.nonce != self._nonce:
                    self._own(self._p.tables, self._walk.nonce)
                self.excused = not self._walk.begun  # what was before is not there any more
                if only is None or message.sequence in only:
                    async for what in self._entry_or_told(message.sequence, entry, changed):
                        yield Difference(message.sequence, what)
                if only is not None and (not self.onward or message.sequence not in only):
                    self._p.tables.apply(changed, message.sequence)  # what others would change is no matter of who is looked at
                elif self.over(message.sequence, changed):
                    return
        if self._walk.end and not self.is_as_told:
            yield Difference(self._walk.end, "the tables are not those that the log tells")

    def walk(self, lacks: Callable[[int, RecordingIncomplete], None]) -> LogWalk:
        """Goes through the log. `lacks`: see `LogWalk`."""
        return LogWalk(self.bus, self.log, self._new_tables, lacks, at_once=bool(self._names) or self.onward)

    @property
    def is_as_told(self) -> bool:
        """Whether the tables are those that the log tells."""
        return packed(self._walk.told.snapshot()) == packed(self._p.tables.snapshot())

    def _new_tables(self) -> Tables:
        return Tables(self._ordered, self._names)

    async def _entry_or_told(self, sequence: int, entry: Mapping[str, Any], changed: Mapping[str, Any]) -> AsyncIterator[str]:
        """Replay an entry; where something of it is damaged, the tables are what the log tells."""
        try:
            async for what in self._entry(sequence, entry, changed):
                yield what
        except RecordingIncomplete as error:
            self._pass_over(sequence, error)
            self._own(self._new_tables(), self._nonce)
            self._p.tables.restore(self._walk.told.snapshot())

    def _pass_over(self, entry: int, error: RecordingIncomplete) -> None:
        """Note what is damaged or missing, and go on; or raise it."""
        if not self.goes_on:
            raise error
        if entry >= self.first:
            self.incomplete.append((entry, error))

    def over(self, sequence: int, changed: Mapping[str, Any]) -> bool:
        """Whether nothing else is to be seen behind an entry, which was handled and has changed this then."""
        return False

    def timer(self, number: int) -> int:
        """The number that a timer has now."""
        return number

    def _own(self, tables: Tables, nonce: str) -> None:
        """Go on as the owner whose claim drew `nonce`."""
        self._nonce, a = nonce, replace(self._address, nonce=nonce)
        process = Process(self._stage, a, self._names, self._source_stream)
        log, alarm = CommitLog(self.bus, self.log, "replay", 0), asyncio.Event()
        self._p = Partition(a.partition, log, tables, process, _Nobody(), _not_committed, alarm, (1, 1))

    async def _entry(self, sequence: int, entry: Mapping[str, Any], changed: Mapping[str, Any]) -> AsyncIterator[str]:
        if not self._nonce:
            await self._walk.ask_claim()
            self._own(self._p.tables, self._walk.nonce)
        if sequence >= self.first and self._walk.build not in self.builds:
            self.builds.append(self._walk.build)
        self._batch, self._fails = Batch(self.bus.sealing is not None), set()
        self._where = ReplayPlace(self._stage.id, self._p.index, sequence)
        self._mark = max([NO_MARK, *(Position(*raw).mark for input, raw in changed.get("positions", ()) if input == "source")])
        for run in entry["taken"]:
            count = own = 0
            async for arrival in self._arrivals(run):
                damage.need_unchanged(entry, run, arrival, self._source_stream, self._runs)
                self._take(arrival, run[5] if len(run) > 5 else None)
                count += 1
                own += self._runs is None or run_of(arrival) in self._runs
            if len(run) < 6 or run[5][0] not in _NO_EVENT:
                self.taken[run[0]] += own
            if count != run[3]:
                damage.need_records(sequence, run, count, self._runs)
                self.excused = True
                yield f"{run[0]} {run[1]} to {run[2]}: {run[3]} arrivals were taken, {count} are still there"
        self._batch.write_frames()
        async for what in self._given(sequence, entry, changed):
            yield what

    async def _given(self, sequence: int, entry: Mapping[str, Any], changed: Mapping[str, Any]) -> AsyncIterator[str]:
        """What came of an entry, beside what it has."""
        mine: Mapping[str, Any] = self._changes("asks" in entry)
        same = digest(self._batch.messages) == entry["digest"]
        if mine != changed:
            mine, changed = plain(packed(mine)), filled(changed)  # as the log has them
        stored, gave = StoredCommit(self.bus, self._address.app, sequence, entry), self._batch.messages
        if sequence >= self.first:
            await self.watcher.gave(self._where, gave)
        if self.onward:
            self.mine = mine
            if not same:
                await self.watcher.gave_other(self._where, gave, await stored.messages())
            return
        if self._runs is not None and not (same and mine == changed):
            mine, same = changed, await stored.same_of(self._runs, gave)
        same = same or await stored.same_but_for_lines(gave)
        if not same:
            await stored.need_unchanged()
            await self._again.need_frames(entry["taken"])
        if not same or mine != changed:
            self.differing = among = await stored.differing(gave, self._runs)
            fails = any(not run or not among or run in among for run in self._fails)
            self.excused = self.excused or fails or await stored.failed(changed, among)
        if not same:
            yield f"other messages: {await stored.other(gave)}"
        if mine != changed:
            yield f"other changes: {other_rows(mine, changed, quoted=self.bus.sealing is None)}"
        self._landed(sequence, within="asks" in entry)

    def _arrivals(self, taken: Sequence[Any]) -> AsyncIterator[Arrival]:
        return self._again.arrivals(self._p, taken, self._runs)

    # -- what Partition does with an arrival, for one entry ---------------------------------------------------------------
    def _take(self, arrival: Arrival, mark: Sequence[Any] | None) -> None:
        tables, place = self._p.tables, arrival.place
        if (split := tables.splits.rows.get(place)) is not None:
            arrival = arrival._replace(clock=split.clock)
        arrival = self.watcher.arrives(self._where, arrival, again=split is not None)
        self.watcher.takes(self._where, arrival, tables)
        effects = self._p.process.handle(arrival, tables)
        if effects.failure is not None or "put_off" in effects.notes:
            self._fails.add(run_of(arrival))
        outputs = effects.outputs
        if mark and mark[0] == "part":
            split = split_of(self._stage, arrival, tables)
            tables.number = max(tables.number, next_number(effects))
            self._append(outputs[effects.done : mark[1]])
            tables.splits.put(place, split._replace(done=mark[1], digest=digest(outputs[: mark[1]])))
            return
        self._append(outputs[effects.done :])
        tables.change(effects.changes)
        tables.splits.drop(place)
        if arrival.position is not None:
            position = arrival.position
            own = place.input != "source" or (mark and mark[0] in ("gap", "moved"))
            if not own and position.mark != self._mark:
                position = position._replace(mark=self._mark)  # how far ahead of the clock an event was, only the runtime knew
            tables.positions.put(place.input, position)

    def _append(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            self._batch.add(output)
            if isinstance(output, Ask):
                self._p.tables.change((("calls", output.number, output.call), ("timers", output.number, output.timer)))

    def _changes(self, within: bool) -> dict[str, Any]:
        """What the entry changes. Its requests lie so many messages before it: its own sequence it does not know; or in it."""
        changes, count = self._p.tables.changes(), len(self._batch.messages)
        for i, (number, row) in enumerate(changes.get("calls", ())):
            if row is not None and number in self._batch.asked:
                place = WITHIN if within else self._batch.asked[number] - count
                changes["calls"][i] = (number, row._replace(work=place))
        return {name: tuple(rows) if isinstance(rows, list) else rows for name, rows in changes.items()}  # sequences are tuples

    def _landed(self, sequence: int, *, within: bool) -> None:
        calls, first = self._p.tables.calls, sequence - len(self._batch.messages)
        for number, index in self._batch.asked.items():
            if number in calls.rows:
                calls.stored(number, sequence if within else first + index)
