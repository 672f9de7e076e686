"""The history of a run: the commits in which an engine took something of it, and what came of each.

Only the commit logs are read through, from when the run began until nothing of it is open: an entry names what it has taken,
which calls and timers it opens and closes, and how many messages lie right before it. Everything else is fetched by its place.
So it costs as much as its partitions did while the run lasted, however much the application's stream holds; and where nothing
happens to it for long, snapshots tell that (`leap.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dspex.bus import subjects
from dspex.bus.errors import DecodeError, RunNotFound
from dspex.bus.message import Message, id_time, partition_of, spread_of
from dspex.bus.port import Bus
from dspex.bus.records import NodeEvent, unpack_frame
from dspex.bus.serving import payloads
from dspex.engine.client.following.commit import TABLES, Commit, commit_of
from dspex.engine.client.following.progress import PartitionId
from dspex.engine.client.runs import places
from dspex.engine.client.runs.leap import OpenRow, Outstanding, leap
from dspex.engine.client.runs.then.taken import Taken
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.entries import is_damaged_entry, is_elsewhere
from dspex.engine.log.positions import pages, sequence_before
from dspex.engine.log.rows import OpenCall, Timer

BEFORE = 2.0  # seconds before a run began by its id, from which on logs are read: clocks of servers differ
_FEW, _MANY = 256, 8192  # sequences that are looked through at a time: most runs are short
_SOON = 2048  # sequences behind which it is worth to ask snapshots, and to read of its own partitions only
_LONG = 4 * _MANY  # sequences of the stream that must be left for that; and the most that is looked through at a time


@dataclass
class History:
    """What one source event caused.

    Attributes:
        run: its id. stream, source: its source event, and where that lies. created: when the stream was made.
        taken: the commits, in their order. records: of its calls, as they were taken.
        done: nothing of it is open. open: ids of calls that are, also where their last attempt has ended. alarms: names of
            timers of operators that are.
        missing: attempts at calls whose records were taken and are not there any more. damaged: message ids of records that are
            not what was stored. changed: sequences of entries whose commits are not what was stored, or what they took.
        cut: sequences of frames that cannot be read: what is behind them is not known.
    """

    run: str
    stream: str
    source: Message
    topologies: list[str] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    records: list[Message] = field(default_factory=list)
    missing: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    damaged: list[str] = field(default_factory=list[str])
    changed: list[int] = field(default_factory=list[int])
    cut: list[int] = field(default_factory=list[int])
    done: bool = False
    open: frozenset[str] = frozenset()
    alarms: frozenset[str] = frozenset()
    created: float = 0.0

    @property
    def messages(self) -> Iterator[Message]:
        """All that came of it, in order."""
        return (message for one in self.taken for message in one.messages)


async def history(bus: Bus, app: str, manifests: Mapping[str, Manifest], run: str) -> History:
    """The history of a run as it is now. `run`: its full id. Raises RunNotFound, BusError."""
    if (began := id_time(run)) is None:
        raise RunNotFound(f"{run!r} is no id of a run", run=run, fix="dspex runs ls shows those there are")
    info = await bus.stream(subjects.stream(app))
    start = await sequence_before(bus, info, began.timestamp() - BEFORE) + 1 if info is not None else 1
    return await HistoryReader(bus, app, run).read(manifests, began.timestamp(), start)


class HistoryReader:
    """Reads the logs for one run."""

    def __init__(self, bus: Bus, app: str, run: str) -> None:
        self._bus, self._app, self._run = bus, app, run
        self.left = Outstanding()
        self._waiting, self._open = self.left.waiting, self.left.open
        self._stream = subjects.stream(app)
        self._events, self._lost = dict[PartitionId, dict[int, bytes]](), list[int]()  # of sources; damaged entries
        self._sources: dict[str, list[tuple[str, tuple[str, int]]]] = {}  # subject in that stream → who reads it
        self._looked = set[PartitionId]()  # where it is known what was redriven

    @property
    def idle(self) -> bool:
        """Nothing of the run is open."""
        return not (self._waiting or self._open)

    async def begin(self, manifests: Mapping[str, Manifest], began: float) -> None:
        """Find the source event, and note who reads it: then entries are taken, in their order. Raises RunNotFound."""
        sources = [*places.sources(manifests)]
        self._sources = {subject: readers for stream, subject, readers in sources if stream == self._stream}
        info, message = await places.source_event(self._bus, self._run, sources, began)
        who = [all for of, subject, all in sources if of == info.name and subjects.matches(subject, message.subject)]
        readers = [reader for all in who for reader in all]
        whole, damaged = await payloads.looked_at(self._bus, self._app, message)
        self._wait_for(whole or message, readers, damaged=damaged)
        self.found = History(
            self._run, info.name, whole or message, [topology for topology, _ in readers], created=info.created
        )

    def _wait_for(self, message: Message, readers: Iterable[tuple[str, tuple[str, int]]], *, damaged: bool = False) -> None:
        """An event of a source: who reads it must read past it. `damaged`: its body is not there, but another one."""
        for topology, (stage, count) in readers:
            where = (topology, stage, partition_of(spread_of(message), count) if count > 1 else 0)
            self.left.wait(where, "source", message.sequence, 0)
            if damaged or not is_elsewhere(message):
                self._events.setdefault(where, {})[message.sequence] = message.data

    async def read(self, manifests: Mapping[str, Manifest], began: float, begun: int) -> History:
        """Read from a sequence on until nothing of the run is open. Raises RunNotFound."""
        await self.begin(manifests, began)
        info, size, patience = await self._bus.stream(self._stream), _FEW, _SOON
        start, ask = begun, begun + patience
        while info is not None and start <= info.last and not self.idle:
            if start >= ask and info.last - start > _LONG:
                there = await leap(self._bus, self._app, self.left, start, info.last, near=_SOON)
                patience = _SOON if there > start else 2 * patience
                start, ask = there, there + patience
            stop = min(info.last, start + size - 1)
            narrow = None if start - begun < _SOON else self.left.partitions
            at, found = await self._piece(start, stop, narrow)
            most = _MANY if narrow is None or found > _FEW else _LONG
            start, size = at + 1, (_FEW if at < stop else min(2 * size, most))
        self.ends()
        return self.found

    def ends(self) -> None:
        """Note what is open now: it is read no further."""
        self.found.done = self.idle
        self.found.changed += self._lost if not self.idle else []  # else what it held was done again
        rows = [row for of in self._open.values() for row in of.values()]
        self.found.open = frozenset(row.id for row in rows if isinstance(row, OpenCall))
        self.found.alarms = frozenset(row.name for row in rows if isinstance(row, Timer) and row.name)

    async def _piece(self, start: int, stop: int, where: Collection[PartitionId] | None) -> tuple[int, int]:
        """Read a piece of the logs; of these partitions alone, until something is outstanding elsewhere. How far it came, and
        of how many messages."""
        which: list[tuple[str, str, int | str]] = [("*", "*", "*")] if where is None else sorted(where)
        patterns = [subjects.log(self._app, *partition) for partition in which]
        found = await self._bus.scan(self._stream, patterns, start=start, stop=stop)
        for message in found:
            await self.entry(message)
            if where is not None and not self.left.partitions <= {*where}:
                return message.sequence, len(found)
        return stop, len(found)

    async def _frame(self, to: PartitionId, message: Message) -> None:
        """A frame for a partition: if it has events of the run, that must take them."""
        if (last := await self._last_event(message)) is not None:
            self.left.wait(to, "events", message.sequence, last)

    async def entry(self, m: Message, read: Commit | None = None) -> None:
        """Take an entry of a log. `read`: the commit that it is, where that was read for others."""
        where = places.partition(m)
        if read is None and where in self.left.partitions and is_damaged_entry(m.data):
            self._lost.append(m.sequence)
        if not self.left.may_be_in(where, m.data) or (commit := read or await commit_of(self._bus, self._app, m)) is None:
            return
        self._lost += [m.sequence] if commit.lost else []
        entry, before = commit.entry, {t: {**self._open.get((where, t), {})} for t in TABLES}
        opened, closed = self._rows(where, commit)
        inputs = [*self._taken(where, entry, {*before["timers"], *before["calls"]})]  # the timer of a call has its number
        if calls := {number: before["calls"][number] for number, _ in commit.rows["calls"] if number in before["calls"]}:
            for number in (number for input, number in inputs if input == "timers"):  # nothing was waited for any longer
                calls.pop(number, None)
            inputs += await self._records(where, entry, calls)
        if not inputs and not opened and not closed:
            return
        messages = await self._messages(commit)
        if await commit.is_changed(self._app, self._stream) or commit.took_another(self._events.get(where, {})):
            self.found.changed.append(m.sequence)
        clock = next((run[4] for run in entry["taken"]), entry["time"])
        told = (tuple(inputs), tuple(opened), tuple(closed), tuple(messages), entry["claim"])
        due = [before["timers"].get(number) for input, number in inputs if input == "timers"]
        woke = tuple((row.node, row.key, row.name) for row in due if isinstance(row, Timer) and row.kind in ("wake", "mark"))
        self.found.taken.append(Taken(where, m.sequence, m.time, clock, *told, woke))
        for message in messages:
            if (to := places.edge(self._app, message.subject)) is not None:
                await self._frame(to, message)
            self._goes_on(message)

    def _goes_on(self, message: Message) -> None:
        """An output may be what the source of another topology takes, as an event of the same run."""
        for subject, readers in self._sources.items():
            if message.headers.get(subjects.RUN) == self._run and subjects.matches(subject, message.subject):
                self._wait_for(message, readers)
                self.found.topologies += [t for t, _ in readers if t not in self.found.topologies]

    def _taken(self, where: PartitionId, entry: Mapping[str, Any], timers: set[int]) -> Iterator[tuple[str, int]]:
        """What an entry has taken of what is waited for. What it took in part is taken again by the next one.

        `timers`: those that were open.
        """
        for input, first, last, _, _, *mark in entry["taken"]:
            begin, (end, item) = places.place(first)[0], places.place(last)
            if input == "timers":
                yield from ((input, number) for number in sorted(timers) if begin <= number <= end)
            waiting = self._waiting.get((where, input), {})
            for sequence, event in [one for one in waiting.items() if begin <= one[0] <= end]:
                yield input, sequence
                if not (mark and mark[0] and mark[0][0] == "part") and (sequence < end or event <= item):
                    self.left.took(where, input, sequence)

    def _rows(self, where: PartitionId, commit: Commit) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """The rows of the run that a commit has opened, and those that it has closed, or that are another run's now."""
        opened, closed = list[tuple[str, int]](), list[tuple[str, int]]()
        for table, rows in commit.rows.items():
            for number, row in rows:
                mine = number in self._open.get((where, table), ())
                if row is not None and row.run == self._run:
                    if not mine:
                        opened.append((table, number))
                    self._open.setdefault((where, table), {})[number] = row
                elif mine:
                    closed.append((table, number))
                    self.left.closed(where, table, number)
        return opened, closed

    async def _records(
        self, where: PartitionId, entry: Mapping[str, Any], calls: Mapping[int, OpenRow]
    ) -> list[tuple[str, int]]:
        """The records of the run that an entry has taken. `calls`: which it changed by that, as they were."""
        found, numbers, lacks = list[tuple[str, int]](), set[int](), False
        filters = [subjects.record(self._app, "*", *where)]
        for input, first, last, count, *_ in entry["taken"]:
            if input != "records":
                continue
            there = await self._bus.scan(self._stream, filters, start=places.place(first)[0], stop=places.place(last)[0])
            lacks = lacks or len(there) < count
            for message in [m for m in there if m.headers.get(subjects.RUN) == self._run]:
                whole, damaged = await payloads.looked_at(self._bus, self._app, message)
                self.found.records.append(whole or message)
                self.found.damaged += [message.headers.get(subjects.MESSAGE_ID, "")] if damaged else []
                found.append((input, message.sequence))
                numbers |= {number} if (number := places.number(message)) is not None else set()
        lost = [row for number, row in calls.items() if lacks and number not in numbers and isinstance(row, OpenCall)]
        self.found.missing |= {(row.id, row.try_number) for row in lost}
        return found

    async def _messages(self, commit: Commit) -> list[Message]:
        """What came of the run in a commit: all that lies right before its entry, and the requests in it."""
        found = [request for request in commit.requests if request.headers.get(subjects.RUN) == self._run]
        before = await commit.before(self._stream)
        if "asks" not in commit.entry and len(before) < commit.entry["covers"]:
            # a letter was redriven, or dropped: what is redriven comes from no entry
            await self._redriven(places.partition(commit.message), commit.message.sequence)
        for message in before:
            if message.headers.get(subjects.RUN) == self._run or await self._last_event(message) is not None:
                found.append(await payloads.checked_out(self._bus, self._app, message) or message)
        return found

    async def _redriven(self, where: PartitionId, after: int) -> None:
        """Wait for the events of the run that were redriven in a partition, where their letters came from."""
        if where in self._looked:
            return
        self._looked.add(where)
        async for page in pages(self._bus, self._stream, [subjects.edge(self._app, *where)], start=after + 1):
            for message in page:
                if subjects.LETTER in message.headers:
                    await self._frame(where, message)

    def _may_be_of(self, frame: Message) -> bool:
        """Whether a frame that cannot be read may have events of the run: one of another session has none."""
        return frame.headers.get(subjects.SESSION) in (None, self.found.source.headers.get(subjects.SESSION))

    async def _last_event(self, message: Message) -> int | None:
        """Which event of a frame is the last one of the run; None where it has none, and for what is no frame."""
        if places.edge(self._app, message.subject) is None:
            return None
        events, whole = list[NodeEvent](), await payloads.checked_out(self._bus, self._app, message)
        with suppress(DecodeError):  # no engine wrote it
            events = unpack_frame(whole.data) if whole is not None else []
            self.found.cut += [message.sequence] if whole is None and self._may_be_of(message) else []
        return max((index for index, event in enumerate(events) if event.origin.run == self._run), default=None)
