"""One stage partition in the hands of its owner: its tables, and the batches that the next commits will make durable.

Taking an arrival in is never interrupted: its outputs, the changes of its tables and its position go together, so a pump may
be cancelled at any await and nothing is half done. That is why `add` does not wait for room but starts another batch, and
pumps ask `crowded` before they take the next arrival.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import structlog

from dspex.bus import telemetry
from dspex.bus.port import COMMIT_LIMIT, NewMessage
from dspex.bus.records import NodeEvent
from dspex.engine.log.commit_log import CommitLog
from dspex.engine.log.entries import Snapshot
from dspex.engine.log.rows import OpenCall, Place, Split
from dspex.engine.log.tables import Tables
from dspex.engine.runtime.arrival import Answered, Arrival, Due, Effects, Note, What, digest
from dspex.engine.runtime.batch import MOST_BYTES, MOST_OUTPUTS, Batch, mark_of, most_that_fit, note_taken, size_of
from dspex.engine.runtime.failure import Failure
from dspex.engine.runtime.process import Process
from dspex.engine.runtime.request import Ask
from dspex.engine.runtime.walk import Output

_log = structlog.get_logger("dspex.engine")


class Partition:
    """Tables and batches of one partition. Changes happen in memory first; `take` and `landed` frame each commit.

    Attributes:
        process: its `handle`.
        revoked: fenced, recovered or released: nothing of this object may be committed any more.
        one_by_one: arrivals that are still to be committed one by one, to find the one that is refused.
        poison: place → why the server refuses what comes of the arrival there.
    """

    def __init__(
        self,
        index: int,
        log: CommitLog,
        tables: Tables,
        process: Process,
        counters: Counter[str],
        alarm: asyncio.Event,
        *,
        most: int,
        most_open: int,
    ) -> None:
        self.index, self.log, self.tables, self.process = index, log, tables, process
        self.most_arrivals, self.most_open = most, most_open
        self._counters, self._alarm = counters, alarm
        self.one_by_one = 0
        self.poison: dict[Place, str] = {}
        self.copied: tuple[int, dict[str, Any]] | None = None  # the tables as of an entry, to be stored as a snapshot
        self._copy: dict[str, Any] | None = None  # the same, while the entry is in flight
        self.snapshot: Snapshot | None = None  # stored, and not yet named by an entry
        a = process.address
        self.where = {"topology": a.topology, "stage": a.stage, "partition": index}  # for telemetry
        self.batches: deque[Batch] = deque([Batch()])
        self.flying: Batch | None = None
        self._taken = 0.0  # when that one was taken, on the monotonic clock
        self.revoked = False
        self.committed = 0
        self.room = asyncio.Event()
        self.settled = asyncio.Event()
        self.settled.set()

    # -- taking arrivals in -----------------------------------------------------------------------------------------
    @property
    def crowded(self) -> bool:
        """Whether the next arrival should wait until a commit has made room."""
        b = self.batches[-1]
        return (
            len(self.batches) > 1 or b.arrivals >= self.most_arrivals or len(b.messages) >= MOST_OUTPUTS or b.size >= MOST_BYTES
        )

    @property
    def full(self) -> bool:
        """Whether too much is open to admit more: what closes or wakes something is still taken."""
        return len(self.tables.calls.rows) + self.tables.timers.parked >= self.most_open

    def take_in(self, arrival: Arrival) -> Effects:
        """Handle an arrival, and take in what it causes."""
        if self.poison and (why := self.poison.get(arrival.place)):
            arrival = arrival._replace(refused=why)
        if (split := self.tables.splits.rows.get(arrival.place)) is not None:  # some of its outputs are committed already
            arrival = arrival._replace(clock=split.clock, number=split.number)
        effects = self.process.handle(arrival, self.tables)
        self._add(arrival, effects)
        for note in effects.notes:
            self._counters[note] += 1
            if note != "event":  # the usual thing is said with the commit
                self._say(note, arrival, effects.failure if note == "dead_letter" else None)
        if effects.failure is not None:
            _log.warning("dead letter", node=effects.failure.node, why=effects.failure.error.message[:500])
        if effects.changes:
            self._alarm.set()  # a timer may be due at once
            self.room.set()  # a call may have finished, and a pump may wait for that
        return effects

    def _say(self, note: Note, arrival: Arrival, failure: Failure | None) -> None:
        node, run = _about(arrival.what)
        error = {"error": type(failure.error).__name__, "code": failure.error.code} if failure else {}
        telemetry.emit(note, **self.where, node=failure.node if failure else node, run=run, **error)

    def _add(self, arrival: Arrival, effects: Effects) -> None:
        rest = effects.outputs[effects.done :] if effects.done else effects.outputs
        if rest and not self._fits(rest):
            rest = self._in_parts(arrival, effects.outputs, effects.done)
        batch = self.batches[-1]
        if rest:
            self._append(batch, rest)
        if effects.changes:
            self.tables.change(effects.changes)
        if self.tables.splits.rows:
            self.tables.splits.drop(arrival.place)
        if arrival.position is not None:
            self.tables.positions.put(arrival.place.input, arrival.position)
        note_taken(batch, arrival, mark_of(arrival))
        self.settled.clear()
        if self.one_by_one:
            self.one_by_one -= 1
            self._next_batch()

    def _in_parts(self, arrival: Arrival, outputs: Sequence[Output], done: int) -> Sequence[Output]:
        """Fill commits with outputs that one cannot hold; what is left goes with the position.

        Each commit but the last keeps how much of the arrival is done, and its clock and numbers, which are then taken: what
        arrives before the rest of it, after a crash, must not get the same numbers.
        """
        self.tables.number = max([self.tables.number, *(o.number + 1 for o in outputs if isinstance(o, Ask))])
        while done < len(outputs) and not self._fits(outputs[done:]):
            if self.batches[-1].arrivals:
                self._next_batch()
                continue
            count = most_that_fit(outputs[done:])
            batch = self.batches[-1]
            self._append(batch, outputs[done : done + count])
            done += count
            split = Split(done, arrival.clock, arrival.number, digest(outputs[:done]))
            self.tables.splits.put(arrival.place, split)
            note_taken(batch, arrival, ("part", done))
            self._next_batch()
        return outputs[done:]

    def _next_batch(self) -> None:
        self.batches[-1].changes = self.tables.changes()
        self.batches.append(Batch())

    def _fits(self, outputs: Sequence[Output]) -> bool:
        b = self.batches[-1]
        if len(b.messages) + len(outputs) > MOST_OUTPUTS:
            return False
        return len(outputs) < 2 or b.size + sum(map(size_of, outputs)) <= MOST_BYTES

    def _append(self, batch: Batch, outputs: Sequence[Output]) -> None:
        for output in outputs:
            message = output.message if isinstance(output, Ask) else output
            if isinstance(output, Ask):
                batch.asked[output.number] = len(batch.messages)
                self.tables.change((("calls", output.number, output.call), ("timers", output.number, output.timer)))
            batch.size += len(message.data)
            batch.messages.append(message)

    # -- committing -----------------------------------------------------------------------------------------------
    @property
    def pending(self) -> int:
        """Messages that the next commit would have besides its entry."""
        return len(self.batches[0].messages)

    @property
    def weight(self) -> int:
        """Bytes of the next commit, about."""
        return self.batches[0].size

    def take(self, at: float, room: int = COMMIT_LIMIT) -> list[NewMessage]:
        """The next commit, of at most `room` messages, the log entry last; empty where there is none, or one is in flight."""
        if self.flying or self.settled.is_set() or self.revoked:
            return []
        if len(self.batches) == 1:
            self._next_batch()
        batch = self.batches.popleft()
        self.flying, self._taken = batch, monotonic()
        self.room.set()
        changes, count = dict(batch.changes or {}), len(batch.messages)
        if batch.asked:  # a request lies so many messages before the entry, whose sequence is not known yet
            changes["calls"] = [(n, _relative(n, row, batch.asked, count)) for n, row in changes["calls"]]
        body: dict[str, Any] = {"digest": digest(batch.messages), "taken": batch.taken}
        batch.snapshot, self.snapshot = self.snapshot, None
        *pieces, entry = self.log.entry(body, changes, covers=count, at=at, snapshot=batch.snapshot)
        batch.entry = len(entry.data) + sum(len(piece.data) for piece in pieces)
        alone = len(self.batches) == 1 and not self.batches[0].arrivals and not self.batches[0].messages
        if alone and self.log.snapshot_due and self.copied is None and batch.snapshot is None:
            self._copy = self.tables.snapshot()
        return [*pieces, *batch.messages, entry]

    @property
    def unsure(self) -> int:
        """Arrivals that were taken in and are not known to be committed."""
        return (self.flying.arrivals if self.flying else 0) + sum(b.arrivals for b in self.batches)

    def landed(self, sequence: int) -> None:
        """The commit that was taken is stored; its entry has `sequence`."""
        batch, self.flying = self.flying, None
        if batch is None:
            raise AssertionError("no commit is in flight")
        self.log.landed(sequence, batch.entry, batch.snapshot)
        self.committed += batch.arrivals
        size, seconds = batch.size + batch.entry, monotonic() - self._taken
        telemetry.emit(
            "commit",
            **self.where,
            arrivals=batch.arrivals,
            messages=len(batch.messages),
            bytes=size,
            seconds=seconds,
            sequence=sequence,
        )
        first = sequence - len(batch.messages)
        self._located({number: first + index for number, index in batch.asked.items()})
        if self._copy is not None:
            asked = {n: first + index for n, index in batch.asked.items()}
            self._copy["calls"] = [(n, row._replace(work=asked.get(n, row.work))) for n, row in self._copy["calls"]]
            self.copied, self._copy = (sequence, self._copy), None
        if len(self.batches) == 1 and not self.batches[0].arrivals and not self.batches[0].messages:
            self.settled.set()

    def _located(self, places: dict[int, int]) -> None:
        """Requests of calls lie at these sequences. Records may have come before it was known: their rows do not say it yet."""
        for batch in self.batches:
            for number in batch.asked:
                places.pop(number, None)  # asked again since: that request counts
            if batch.changes and "calls" in batch.changes:
                rows = batch.changes["calls"]
                batch.changes["calls"] = [(n, row._replace(work=places[n]) if row and n in places else row) for n, row in rows]
        for number in places.keys() & self.tables.calls.rows.keys():
            self.tables.calls.stored(number, places[number])


def _about(what: What) -> tuple[str, str]:
    """Node and run that an arrival is about; "" where it does not say."""
    match what:
        case NodeEvent():
            return what.node, what.origin.run
        case Answered():
            return what.record.node, what.event.origin.run if what.event else ""
        case Due():
            return _about(what.what)
        case _:
            return "", ""


def _relative(number: int, row: OpenCall | None, asked: Mapping[int, int], count: int) -> OpenCall | None:
    if row is None or number not in asked:
        return row
    return row._replace(work=asked[number] - count)
