"""Runs as a client sees them: is everything that an event caused finished, and what did it bring?

A run is done when every event of it lies behind its stage's position and no call of it is open (ADR-0004). All of that is in
the commit logs, so following a run is reading; the engine keeps no index for it and sends nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from dspex.bus import subjects
from dspex.bus.message import Message, id_time, message_id, new_id, partition_of
from dspex.bus.port import Bus
from dspex.bus.records import CallRecord, Usage
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.commit_log import unpack
from dspex.engine.log.positions import sequence_before
from dspex.engine.log.state import OpenCall


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run. `status`: "running", "done" or "failed" (it has dead letters). Times in UTC."""

    id: str
    topology: str
    digest: str
    parent: str | None
    status: str
    started: datetime
    finished: datetime | None
    calls: int
    usage: Usage
    dead_letters: int


PartitionId: TypeAlias = tuple[str, str, int]  # topology, stage, partition
Spot: TypeAlias = tuple[str, int]  # subject, ordinal or sequence


@dataclass
class Progress:
    """One run while it is followed."""

    id: str
    topology: str = ""
    waiting: dict[tuple[str, str, int], int] = field(default_factory=dict)  # (topology, stage, partition) → sequence
    open: set[tuple[str, int]] = field(default_factory=set)  # (log subject, ordinal)
    parked: set[tuple[str, int]] = field(default_factory=set)  # (inbox subject, sequence) to be run again, not read yet
    delayed: set[tuple[str, int]] = field(default_factory=set)  # read, and due later
    started: bool = False  # its source event was seen
    finished: datetime | None = None
    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    dead_letters: int = 0

    @property
    def done(self) -> bool:
        return self.started and not (self.waiting or self.open or self.parked or self.delayed)

    def info(self, manifests: Mapping[str, Manifest]) -> RunInfo:
        status = "running" if not self.done else "failed" if self.dead_letters else "done"
        digest = manifests[self.topology].digest if self.topology in manifests else ""
        started = id_time(self.id) or datetime.now(UTC)
        finished = self.finished if self.done else None
        return RunInfo(
            self.id, self.topology, digest, None, status, started, finished, self.calls, self.usage, self.dead_letters
        )


class Follower:
    """Follows some runs of an application through its commit logs."""

    def __init__(self, bus: Bus, app: str, manifests: Mapping[str, Manifest], runs: Iterable[str]) -> None:
        self.bus = bus
        self.app = app
        self.stream = subjects.stream(app)
        self.manifests = manifests
        self.runs = {id: Progress(id) for id in runs}
        self._logs = subjects.log(app, "*", "*", "*")
        self._inboxes = subjects.result(app, "*", "*", "*")
        self._dead = subjects.dead_pattern(app)
        self._created = 0.0  # when the application stream was made
        self._everything = False  # whether to look at all that is stored: an id's time is its publisher's, who may be ahead
        self._forget()
        self._sources = {
            (m.streams[source], source): [(t, m.stages[source]) for t, m in manifests.items() for s in m.streams if s == source]
            for m in manifests.values()
            for source in m.streams
        }

    def _forget(self) -> None:
        """Begin anew with the runs that are not done."""
        self.runs = {id: run if run.done else Progress(id) for id, run in self.runs.items()}
        # What a stage has read, with the partition's log in mind: an event may be seen after the entry that covers it.
        self._read: dict[PartitionId, int] = {}
        # Who waits for what, so that an entry costs as much as it says, and not as much as there are runs.
        self._waiting: dict[PartitionId, deque[tuple[int, Progress]]] = {}
        self._open: dict[Spot, Progress] = {}
        self._parked: dict[str, dict[int, Progress]] = {}
        self._delayed: dict[Spot, Progress] = {}

    async def begin(self) -> int:
        """The sequence of the application stream behind which all of these runs began."""
        info = await self.bus.stream(self.stream)
        since = self._since()
        if info is None:
            return 0
        self._created = info.created
        return 0 if since is None else await sequence_before(self.bus, info, since)

    def look_at_everything(self) -> bool:
        """Whether there is more to look at than there was: then begin anew, with all that is stored."""
        if self._everything or self._since() is None:
            return False
        self._everything = True
        self._forget()
        return True

    @property
    def _unseen(self) -> bool:
        return any(not run.started for run in self.runs.values())

    def _since(self) -> float | None:
        """Before all of these runs; None where an id does not say when it was made, or cannot be trusted to."""
        if self._everything:
            return None
        times = [id_time(id) for id in self.runs]
        known = [at for at in times if at is not None]
        return (min(known) - timedelta(seconds=2)).timestamp() if known and len(known) == len(times) else None

    async def sources(self) -> None:
        """Find the source events in streams that are not the application's own."""
        for (stream, source), readers in self._sources.items():
            info = await self.bus.stream(stream) if stream != self.stream else None
            if info is None:
                continue
            since = self._since()
            after = 0 if since is None else await sequence_before(self.bus, info, since)
            for message in await self.bus.scan(stream, [source], start=after + 1, stop=info.last):
                self._arrived(message, readers, info.created)

    def filters(self) -> list[str]:
        """The subjects of which the messages concern runs."""
        own = [source for (stream, source) in self._sources if stream == self.stream]
        return [self._logs, self._inboxes, self._dead, *own]

    def take(self, m: Message) -> None:
        """Note what one message says."""
        if subjects.matches(self._logs, m.subject):
            self._entry(m)
        elif subjects.matches(self._inboxes, m.subject):
            self._record(m)
        elif subjects.matches(self._dead, m.subject):
            if (run := self.runs.get(m.headers.get(subjects.RUN, ""))) is not None:
                run.dead_letters += 1
        else:
            for (stream, source), readers in self._sources.items():
                if stream == self.stream and subjects.matches(source, m.subject):
                    self._arrived(m, readers, self._created)

    def _arrived(self, m: Message, readers: list[tuple[str, tuple[str, int]]], created: float) -> None:
        """An event of a source: its stage must read past it."""
        id = message_id(m, created)
        run = self.runs.get(m.headers.get(subjects.RUN) or id)
        if run is None:
            return
        run.started = True
        for topology, (stage, count) in readers:
            spread = m.headers.get(subjects.KEY) or m.headers.get(subjects.SESSION) or m.subject
            place = (topology, stage, partition_of(spread, count) if count > 1 else 0)
            run.topology = run.topology or topology
            if self._read.get(place, 0) < m.sequence:
                run.waiting[place] = m.sequence
                self._waiting.setdefault(place, deque()).append((m.sequence, run))

    def _entry(self, m: Message) -> None:
        entry = unpack(m.data)
        topology, stage, partition = m.subject.split(".")[-3:]
        place = (topology, stage, int(partition))
        touched = [*self._calls(m.subject, entry), *self._resumed(m.subject.replace(".log.", ".result.", 1), entry)]
        if "source" in entry:
            read = self._read[place] = entry["source"][0]
            waiting = self._waiting.get(place, deque())
            while waiting and waiting[0][0] <= read:
                sequence, run = waiting.popleft()
                if run.waiting.get(place) == sequence:
                    del run.waiting[place]
                    touched.append(run)
        for run in touched:
            if run.done and run.finished is None:
                run.finished = datetime.fromtimestamp(m.time, tz=UTC)

    def _calls(self, log: str, entry: Mapping[str, Any]) -> Iterator[Progress]:
        """Calls that the entry opened and closed."""
        for ordinal, raw in entry.get("calls", {}).items():
            if (run := self.runs.get(OpenCall(*raw).run)) is not None:
                run.open.add((log, ordinal))
                self._open[log, ordinal] = run
        for ordinal in entry.get("closed", ()):
            if (run := self._open.pop((log, ordinal), None)) is not None:
                run.open.discard((log, ordinal))
                run.calls += 1
                yield run

    def _resumed(self, inbox: str, entry: Mapping[str, Any]) -> Iterator[Progress]:
        """Events to be run again that were read, and those of them that are done."""
        read, delayed = entry.get("inbox", 0), entry.get("delayed", {})
        parked = self._parked.get(inbox, {})
        for sequence in [s for s in parked if s <= read]:
            run = parked.pop(sequence)
            run.parked.discard((inbox, sequence))
            if sequence in delayed:
                run.delayed.add((inbox, sequence))
                self._delayed[inbox, sequence] = run
            yield run
        for sequence in entry.get("done", ()):
            spot = (inbox, sequence)
            if spot in self._delayed:
                run = self._delayed.pop(spot)
                run.delayed.discard((inbox, sequence))
                yield run

    def _record(self, m: Message) -> None:
        run = self.runs.get(m.headers.get(subjects.RUN, ""))
        if run is None:
            return
        record = CallRecord.unpack(m.data)
        if record.kind == "resume":
            run.parked.add((m.subject, m.sequence))
            self._parked.setdefault(m.subject, {})[m.sequence] = run
            run.finished = None
        elif record.usage:
            run.usage = run.usage + Usage(**record.usage)

    async def follow(self) -> AsyncIterator[list[Progress]]:
        """The runs that have just finished, as they do, until all have."""
        left = set(self.runs)
        while left:
            await self.sources()
            name = f"dspex-{self.app}-follow-{new_id()}"
            reader = await self.bus.reader(self.stream, self.filters(), after=await self.begin(), name=name)
            try:
                while left and not (self._unseen and reader.caught_up and self.look_at_everything()):
                    for message in await reader.read(500):
                        self.take(message)
                    finished = [self.runs[id] for id in left if self.runs[id].done]
                    left -= {run.id for run in finished}
                    if finished:
                        yield finished
            finally:
                await reader.close()

    async def look(self) -> None:
        """Take what is stored now, and wait for nothing."""
        await self.sources()
        info = await self.bus.stream(self.stream)
        if info is not None:
            for message in await self.bus.scan(self.stream, self.filters(), start=await self.begin() + 1, stop=info.last):
                self.take(message)
        if self._unseen and self.look_at_everything():
            await self.look()
