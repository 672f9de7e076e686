"""Runs as a client sees them: is everything that an event caused finished, and what did it bring?

A run is done when every event of it lies behind its stage's position, no call of it is open, and none of its events was put
off (ADR-0004). All of that is in the commit logs, so following a run is reading the changes of tables; the engine keeps no
index for it and sends nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog

from dspex.bus import codecs, subjects
from dspex.bus.errors import DecodeError
from dspex.bus.message import Message, id_time, new_id, partition_of, run_of, spread_of
from dspex.bus.port import Bus
from dspex.bus.records import CallRecord, Usage
from dspex.bus.serving import payloads
from dspex.engine.client.following.commit import TABLES, waited_for
from dspex.engine.client.following.progress import PartitionId, RowId, RunProgress, Waits
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.entries import LogAddress, readable
from dspex.engine.log.positions import pages, sequence_before
from dspex.engine.log.reading import changes
from dspex.engine.log.rows import Position

_NEAR: Final = 64  # sequences that are read for nothing, in place of some questions where runs began
_log = structlog.get_logger("dspex.client")


class Follower:
    """Follows some runs of an application through its commit logs."""

    def __init__(self, bus: Bus, app: str, manifests: Mapping[str, Manifest], runs: Iterable[str]) -> None:
        self.bus = bus
        self.app = app
        self.stream = subjects.stream(app)
        self.manifests = manifests
        self.runs = {id: RunProgress(id) for id in runs}
        self._logs = subjects.log(app, "*", "*", "*")
        self._events = subjects.edge(app, "*", "*", "*")
        self._records = subjects.record(app, "*", "*", "*", "*")
        self._dead = subjects.dead_pattern(app)
        self._created = 0.0  # when the application stream was made
        # How far inputs are taken, with the partition's log in mind: an event may be seen after the entry that covers it.
        self._taken: dict[Waits, int] = {}
        self._moved: dict[Waits, int] = {}  # the entry that took them so far
        self._begun = 0
        # Who waits for what, so that an entry costs as much as it says, and not as much as there are runs.
        self._waiting: dict[Waits, deque[tuple[int, RunProgress]]] = {}
        self._open: dict[RowId, RunProgress] = {}
        self._sources: dict[tuple[str, str], list[tuple[str, tuple[str, int]]]] = {}  # stream and subject → who reads it
        for topology, m in manifests.items():
            for source, stream in m.streams.items():
                self._sources.setdefault((stream, m.subject(source)), []).append((topology, m.stages[source]))

    async def begin(self) -> int:
        """The sequence of the application stream behind which all of these runs began."""
        info = await self.bus.stream(self.stream)
        if info is None:
            return 0
        self._created = info.created
        self._begun = await sequence_before(self.bus, info, self._since(), within=_NEAR)
        return self._begun

    def _since(self) -> float:
        """A moment before all of these runs: the id of a run begins with the time at which its source event was stored."""
        times = [at for id in self.runs if (at := id_time(id)) is not None]
        return (min(times) - timedelta(seconds=2)).timestamp() if times else 0.0

    async def sources(self) -> None:
        """Find the source events in streams that are not the application's own."""
        for stream in sorted({stream for stream, _ in self._sources if stream != self.stream}):
            if (info := await self.bus.stream(stream)) is None:
                continue
            after = await sequence_before(self.bus, info, self._since(), within=_NEAR)
            for source, readers in [(source, readers) for (of, source), readers in self._sources.items() if of == stream]:
                async for page in pages(self.bus, stream, [source], start=after + 1):
                    for message in page:
                        self._arrived(stream, message, readers, info.created)

    def filters(self) -> list[str]:
        """The subjects of which the messages concern runs."""
        own = [source for (stream, source) in self._sources if stream == self.stream]
        return [self._logs, self._events, self._records, self._dead, *own]

    async def take(self, m: Message) -> None:
        """Note what one message says. What no engine wrote is passed over. Raises Unreachable."""
        try:
            await self._take(m)
        except (DecodeError, TypeError, LookupError, ValueError) as e:
            _log.warning("what no engine wrote is passed over", subject=m.subject, sequence=m.sequence, why=str(e))

    async def _take(self, m: Message) -> None:
        if subjects.matches(self._logs, m.subject):
            self._entry(m, *await self._changes(m))
        elif subjects.matches(self._events, m.subject):
            for id in {str(event["origin"]["run"]) for event in codecs.decode(m.data, codecs.MSGPACK)}:
                self._wait_for(id, (_partition(m), "events"), m.sequence)
        elif subjects.matches(self._records, m.subject):
            self._record(m)
        elif subjects.matches(self._dead, m.subject):
            if (run := self._of(m.headers.get(subjects.RUN, ""))) is not None:
                run.dead_letters += 1
                run.cancelled = run.cancelled or subjects.CANCELLED in m.headers
        else:
            for (stream, source), readers in self._sources.items():
                if stream == self.stream and subjects.matches(source, m.subject):
                    self._arrived(stream, m, readers, self._created)

    def _of(self, id: str) -> RunProgress | None:
        """The run with this id; None for one that is not followed."""
        return self.runs.get(id)

    def _arrived(self, stream: str, m: Message, readers: list[tuple[str, tuple[str, int]]], created: float) -> None:
        """An event of a source: its stages must read past it."""
        run = self._of(run_of(stream, created, m))
        if run is None:
            return
        run.started = True
        for topology, (stage, count) in readers:
            partition = partition_of(spread_of(m), count) if count > 1 else 0
            run.topology = run.topology or topology
            self._wait_for(run.id, ((topology, stage, partition), "source"), m.sequence)

    def _wait_for(self, id: str, what: Waits, sequence: int) -> None:
        run = self._of(id)
        if run is not None and self._taken.get(what, 0) < sequence:
            run.waiting[what] = sequence
            run.finished = None
            self._waiting.setdefault(what, deque()).append((sequence, run))

    async def _changes(self, m: Message) -> tuple[Mapping[str, Any], int]:
        """What an entry changes in tables: it says so itself, or pieces before it do, where that is too much. And how many
        messages before it are what came of what it has taken.
        """
        entry = readable(m.data)
        if entry is None or entry["kind"] != "commit":
            return {}, 0
        found = await changes(self.bus, LogAddress.of(self.app, *_partition(m)), m, entry)
        if found is None:
            raise ValueError("it changes what no table has, or its pieces are gone")
        return found, entry["covers"]

    def _entry(self, m: Message, changes: Mapping[str, Any], covers: int) -> None:
        partition = _partition(m)
        touched = [*self._rows(partition, changes), *self._positions(partition, changes, m.sequence, covers)]
        for run in touched:
            if run.idle and run.finished is None:
                run.finished = datetime.fromtimestamp(m.time, tz=UTC)

    def _rows(self, partition: PartitionId, changes: Mapping[str, Any]) -> Iterator[RunProgress]:
        """Calls that the entry opened and closed, and events that it put off or released."""
        rows = [(t, n, waited_for(kind, raw)) for t, kind in TABLES.items() for n, raw in changes.get(t, ())]
        for table, number, found in rows:
            row = (partition, table, number)
            before = self._open.get(row)
            if before is not None and (found is None or found.run != before.id):  # it is gone, or taken over by a later event
                del self._open[row]
                before.open.discard(row)
                before.calls += table == "calls"
                yield before
            if found is not None and (run := self._of(found.run)) is not None:
                run.open.add(row)
                self._open[row] = run

    def _positions(
        self, partition: PartitionId, changes: Mapping[str, Any], sequence: int, covers: int
    ) -> Iterator[RunProgress]:
        """Events that the entry with this sequence has taken."""
        for input, raw in changes.get("positions", ()):
            what, taken = (partition, input), Position(*raw).after
            # of an event that took several commits, what came of it lies also behind those before
            before = self._moved.get(what, self._begun) if changes.get("splits") else sequence - covers - 1
            self._taken[what], self._moved[what] = taken, sequence
            waiting = self._waiting.get(what, deque())
            while waiting and waiting[0][0] <= taken:
                number, run = waiting.popleft()
                if run.waiting.get(what) == number:
                    del run.waiting[what]
                    run.after = before if run.after is None else min(run.after, before)
                    yield run

    def _record(self, m: Message) -> None:
        run = self._of(m.headers.get(subjects.RUN, ""))
        if run is None:
            return
        try:
            record = CallRecord.unpack(m.data)
        except DecodeError:
            return  # the engine passes it over, and logs it
        if record.usage:
            run.usage = run.usage + Usage.read(record.usage)

    async def follow(self) -> AsyncIterator[list[RunProgress]]:
        """The runs that have just finished, as they do, until all have."""
        left = set(self.runs)
        await self.sources()
        name = f"dspex-{self.app}-follow-{new_id()}"
        reader = await self.bus.reader(self.stream, self.filters(), after=await self.begin(), name=name)
        try:
            while left:
                for message in await reader.read(500):
                    await self.take(await self._whole(message))
                finished = [self.runs[id] for id in left if self.runs[id].done]
                left -= {run.id for run in finished}
                if finished:
                    yield finished
        finally:
            await reader.close()

    async def look(self) -> None:
        """Take what is stored now, and wait for nothing. What lies behind the end of all runs says nothing more of them, unless
        dead letters of one are redriven.
        """
        after, _ = await asyncio.gather(self.begin(), self.sources())
        async for page in pages(self.bus, self.stream, self.filters(), start=after + 1):
            for message in page:
                await self.take(await self._whole(message))
            if all(run.done and not run.dead_letters for run in self.runs.values()):
                return

    async def _whole(self, m: Message) -> Message:
        """The message; a record of these runs with its body, which says what was used, and a frame with its events."""
        if payloads.is_whole(m.headers):
            return m
        record = m.headers.get(subjects.RUN) in self.runs and subjects.matches(self._records, m.subject)
        needed = record or subjects.matches(self._events, m.subject)
        return (await payloads.checked_out(self.bus, self.app, m) if needed else None) or m


def _partition(m: Message) -> PartitionId:
    topology, stage, partition = m.subject.split(".")[-3:]
    return topology, stage, int(partition)
