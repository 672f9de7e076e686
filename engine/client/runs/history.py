"""The history of a run: the commits in which an engine took something of it, and what came of each.

Only the commit logs are read through, from when the run began until nothing of it is open: an entry names what it has taken,
which calls and timers it opens and closes, and how many messages lie right before it. Everything else is fetched by its place.
So it costs as much as happened while the run lasted, however much the application's stream holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

from dspex.bus import subjects
from dspex.bus.errors import DecodeError, RunNotFound
from dspex.bus.message import Message, id_time, partition_of, run_of, spread_of
from dspex.bus.port import Bus
from dspex.bus.records import unpack_frame
from dspex.bus.serving import payloads
from dspex.engine.client.following.follower import PartitionId
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.entries import LogAddress, readable, requests_in
from dspex.engine.log.positions import pages, sequence_before
from dspex.engine.log.reading import changes
from dspex.engine.log.rows import OpenCall, Timer

_BEFORE = 2.0  # seconds before a run began by its id, from which on logs are read: clocks of servers differ
_TABLES = ("calls", "timers")
_FEW, _MANY = 256, 8192  # sequences that are looked through at a time: most runs are short
_AFTER = 0.01  # seconds behind the time in its id, at which its event is stored at the latest: the id has milliseconds


class Taken(NamedTuple):
    """A commit in which something of the run was taken.

    Attributes:
        sequence, time: of its entry. clock: of the engine, for what it took.
        inputs: what was taken: an input, and the sequence in it; for timers, the number.
        opened, closed: numbers of calls and timers, by table.
        messages: of the run, that lie right before the entry or in it: outputs, letters, requests; and frames.
    """

    partition: PartitionId
    sequence: int
    time: float
    clock: float
    inputs: tuple[tuple[str, int], ...]
    opened: tuple[tuple[str, int], ...]
    closed: tuple[tuple[str, int], ...]
    messages: tuple[Message, ...]


@dataclass
class History:
    """What one source event caused.

    Attributes:
        run: its id. stream, source: its source event, and where that lies. created: when the stream was made.
        taken: the commits, in their order. records: of its calls, as they were taken.
        done: nothing of it is open.
    """

    run: str
    stream: str
    source: Message
    topologies: list[str] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    records: list[Message] = field(default_factory=list)
    done: bool = False
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
    start = await sequence_before(bus, info, began.timestamp() - _BEFORE) + 1 if info is not None else 1
    reader = _Reader(bus, app, run, edges=False)
    found = await reader.read(manifests, began.timestamp(), start)
    if reader.lacks:
        reader = _Reader(bus, app, run, edges=True)
        found = await reader.read(manifests, began.timestamp(), start)
    return found


class _Reader:
    """Reads the logs for one run.

    `edges`: and what lies on the edges of partitions, to the end: letters of the run were redriven, and what is redriven comes
    from no entry.
    """

    def __init__(self, bus: Bus, app: str, run: str, *, edges: bool) -> None:
        self._bus, self._app, self._run, self._edges = bus, app, run, edges
        self._waiting: dict[tuple[PartitionId, str], dict[int, int]] = {}  # input of a partition → message → its last event
        self._open: dict[tuple[PartitionId, str], set[int]] = {}  # table of a partition → numbers of rows that are open
        self._stream = subjects.stream(app)
        self.lacks = False  # what came of it in a commit is not there any more: letters that were redriven, or dropped

    @property
    def _idle(self) -> bool:
        """Nothing of the run is open."""
        return not (self._waiting or self._open)

    async def _source(self, manifests: Mapping[str, Manifest], began: float) -> History:
        """Find the source event, and note who reads it. Raises RunNotFound."""
        for stream, subject, readers in _sources(manifests):
            if (message := await self._event(stream, subject, began)) is None:
                continue
            for topology, (stage, count) in readers:
                partition = partition_of(spread_of(message), count) if count > 1 else 0
                self._waiting[(topology, stage, partition), "source"] = {message.sequence: 0}
            whole = await payloads.checked_out(self._bus, self._app, message) or message
            info = await self._bus.stream(stream)
            created = info.created if info is not None else 0.0
            return History(self._run, stream, whole, [topology for topology, _ in readers], created=created)
        fix = "its stream does not keep it any more; dspex runs ls shows those there are"
        raise RunNotFound(f"no source holds the event {self._run}", run=self._run, fix=fix)

    async def _event(self, stream: str, subject: str, began: float) -> Message | None:
        if (info := await self._bus.stream(stream)) is None:
            return None
        async for page in pages(self._bus, stream, [subject], start=await sequence_before(self._bus, info, began) + 1):
            for message in page:
                if run_of(stream, info.created, message) == self._run:
                    return message
                if message.time > began + _AFTER:
                    return None
        return None

    async def read(self, manifests: Mapping[str, Manifest], began: float, start: int) -> History:
        """Read from a sequence on until nothing of the run is open. Raises RunNotFound."""
        self._history = await self._source(manifests, began)
        patterns = [subjects.log(self._app, "*", "*", "*"), *([subjects.edge(self._app, "*", "*", "*")] if self._edges else [])]
        info, size = await self._bus.stream(self._stream), _FEW
        while info is not None and start <= info.last and (self._edges or not self._idle):
            stop = min(info.last, start + size - 1)
            for message in await self._bus.scan(self._stream, patterns, start=start, stop=stop):
                if (to := _edge(self._app, message.subject)) is None:
                    await self._entry(message)
                elif (last := await self._last_event(message)) is not None:
                    self._waiting.setdefault((to, "events"), {})[message.sequence] = last
            start, size = stop + 1, min(2 * size, _MANY)
        self._history.done = self._idle
        return self._history

    async def _entry(self, m: Message) -> None:
        """Take an entry of a log."""
        where = _partition(m)
        if not any(partition == where for partition, _ in (*self._waiting, *self._open)):
            return
        entry = readable(m.data)
        if entry is None or entry["kind"] != "commit":
            return
        address, before = LogAddress.of(self._app, *where), {table: {*self._open.get((where, table), ())} for table in _TABLES}
        changed = await changes(self._bus, address, m, entry) or {}
        opened, closed = self._rows(where, changed)
        inputs = [*self._taken(where, entry, before["timers"] | before["calls"])]  # the timer of a call has its number
        if before["calls"] & {number for number, _ in changed.get("calls", ())}:
            inputs += await self._records(where, entry)
        if not inputs and not opened and not closed:
            return
        messages = await self._messages(m, entry)
        clock = next((run[4] for run in entry["taken"]), entry["time"])
        found = Taken(where, m.sequence, m.time, clock, tuple(inputs), tuple(opened), tuple(closed), tuple(messages))
        self._history.taken.append(found)
        for message in messages if not self._edges else ():
            to = _edge(self._app, message.subject)
            if to is not None and (last := await self._last_event(message)) is not None:
                self._waiting.setdefault((to, "events"), {})[message.sequence] = last

    def _taken(self, where: PartitionId, entry: Mapping[str, Any], timers: set[int]) -> Iterator[tuple[str, int]]:
        """What an entry has taken of what is waited for. What it took in part is taken again by the next one.

        `timers`: those that were open.
        """
        for input, first, last, _, _, *mark in entry["taken"]:
            begin, (end, item) = _place(first)[0], _place(last)
            if input == "timers":
                yield from ((input, number) for number in sorted(timers) if begin <= number <= end)
            waiting = self._waiting.get((where, input), {})
            for sequence, event in [one for one in waiting.items() if begin <= one[0] <= end]:
                yield input, sequence
                part = mark and mark[0] and mark[0][0] == "part"
                if not part and (sequence < end or event <= item):
                    self._drop(self._waiting, (where, input), sequence)

    def _rows(self, where: PartitionId, changed: Mapping[str, Any]) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """The rows of the run that an entry has opened, and those that it has closed."""
        opened, closed = list[tuple[str, int]](), list[tuple[str, int]]()
        for table, kind in zip(_TABLES, (OpenCall, Timer)):
            for number, raw in changed.get(table, ()):
                mine = number in self._open.get((where, table), ())
                if raw is None and mine:
                    closed.append((table, number))
                    self._drop(self._open, (where, table), number)
                elif raw is not None and not mine and kind(*raw).run == self._run:
                    opened.append((table, number))
                    self._open.setdefault((where, table), set()).add(number)
        return opened, closed

    async def _records(self, where: PartitionId, entry: Mapping[str, Any]) -> list[tuple[str, int]]:
        """The records of the run that an entry has taken."""
        found = list[tuple[str, int]]()
        filters = [subjects.record(self._app, "*", *where)]
        for input, first, last, *_ in entry["taken"]:
            if input != "records":
                continue
            for message in await self._bus.scan(self._stream, filters, start=_place(first)[0], stop=_place(last)[0]):
                if message.headers.get(subjects.RUN) == self._run:
                    self._history.records.append(await payloads.checked_out(self._bus, self._app, message) or message)
                    found.append((input, message.sequence))
        return found

    async def _messages(self, m: Message, entry: Mapping[str, Any]) -> list[Message]:
        """What came of the run in a commit: all that lies right before its entry, and the requests in it."""
        found = [
            Message(ask.subject, ask.data, dict(ask.headers or {}), m.sequence, m.time)
            for ask in requests_in(entry).values()
            if (ask.headers or {}).get(subjects.RUN) == self._run
        ]
        count = 0 if "asks" in entry else entry["covers"]
        before = await self._bus.scan(self._stream, [">"], start=m.sequence - count, stop=m.sequence - 1) if count else []
        self.lacks = self.lacks or len(before) < count
        for message in before:
            if message.headers.get(subjects.RUN) == self._run or await self._last_event(message) is not None:
                found.append(await payloads.checked_out(self._bus, self._app, message) or message)
        return found

    async def _last_event(self, message: Message) -> int | None:
        """Which event of a frame is the last one of the run; None where it has none, and for what is no frame."""
        if _edge(self._app, message.subject) is None:
            return None
        whole = await payloads.checked_out(self._bus, self._app, message)
        try:
            events = unpack_frame(whole.data) if whole is not None else []
        except DecodeError:
            return None  # no engine wrote it
        return max((index for index, event in enumerate(events) if event.origin.run == self._run), default=None)

    @staticmethod
    def _drop(table: dict[Any, Any], key: Any, one: int) -> None:
        kept = table[key]
        kept.pop(one) if isinstance(kept, dict) else kept.remove(one)
        if not table[key]:
            del table[key]


def _sources(manifests: Mapping[str, Manifest]) -> Iterator[tuple[str, str, list[tuple[str, tuple[str, int]]]]]:
    """The sources of all topologies: stream and subject, and who reads them: topology, stage and its partitions."""
    found: dict[tuple[str, str], list[tuple[str, tuple[str, int]]]] = {}
    for topology, applied in manifests.items():
        for source, stream in applied.streams.items():
            found.setdefault((stream, applied.subject(source)), []).append((topology, applied.stages[source]))
    return ((*where, readers) for where, readers in found.items())


def _place(at: int | tuple[int, int]) -> tuple[int, float]:
    """The sequence of what was taken first or last, and up to which event of it."""
    return (at, inf) if isinstance(at, int) else at


def _partition(m: Message) -> PartitionId:
    topology, stage, partition = m.subject.split(".")[-3:]
    return topology, stage, int(partition)


def _edge(app: str, subject: str) -> PartitionId | None:
    """The partition that a frame is for; None for another message."""
    if not subjects.matches(subjects.edge(app, "*", "*", "*"), subject):
        return None
    topology, stage, partition = subject.split(".")[-3:]
    return topology, stage, int(partition)
