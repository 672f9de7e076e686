"""One stage partition in the hands of its owner: its tables, and the batches that the next commits will make durable.

Taking an arrival in is never interrupted: its outputs, the changes of its tables and its position go together, so a pump may
be cancelled at any await and nothing is half done. That is why `add` does not wait for room but starts another batch, and
pumps ask `takes` before they take the next arrival.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic, time
from typing import Any, cast

from msgpack import packb

from dspex.bus import telemetry
from dspex.bus.port import COMMIT_LIMIT, NewMessage
from dspex.bus.records import NodeEvent
from dspex.bus.seldom import logger
from dspex.engine.log.commit_log import CommitLog
from dspex.engine.log.entries import Snapshot, sum_of
from dspex.engine.log.rows import NO_MARK, WITHIN, Place
from dspex.engine.log.tables import Tables
from dspex.engine.runtime.arrival import Answered, Arrival, Effects, Handled, about, in_line
from dspex.engine.runtime.batch import MOST_BYTES, MOST_OUTPUTS, MOST_PIECES, Batch, Owner, in_parts, located, mark_of
from dspex.engine.runtime.process import Process
from dspex.engine.runtime.walk.request import Ask, Output
from dspex.engine.runtime.watermarks.heard import Heard

_log = logger("dspex.engine")


class Partition:
    """Tables and batches of one partition. Changes happen in memory first; `take` and `landed` frame each commit.

    Args:
        request_commit: called when there is something to commit, and nothing was before.
        most: arrivals in one commit, and open calls and events that were put off.
        outward: the watermark of what leaves the stage here, by its tables; None where nobody asks.

    Attributes:
        mark: that watermark as of the last commit that is stored. heard: those of the stages before; None where none is heard.
        closing: its watermark has something to wake, which comes before other gated arrivals.
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
        owner: Owner,
        request_commit: Callable[[Partition], None],
        alarm: asyncio.Event,
        most: tuple[int, int],
        outward: Callable[[Partition], float] | None = None,
    ) -> None:
        self.index, self.log, self.tables, self.process, self.owner = index, log, tables, process, owner
        self._request_commit = request_commit
        self.most_arrivals, self.most_open = most
        self._outward, self.mark = outward, NO_MARK
        self.heard: Heard | None = None
        self.closing = False
        self._alarm = alarm
        self._piece = log.piece
        self.most_changed = (MOST_PIECES - 1) * self._piece  # bytes; one arrival may have more rows than were left
        self.one_by_one = 0
        self.poison: dict[Place, str] = {}
        self.copied: tuple[int, dict[str, Any]] | None = None  # the tables as of an entry, to be stored as a snapshot
        self._copy: dict[str, Any] | None = None  # the same, while the entry is in flight
        self.snapshot: Snapshot | None = None  # stored, and not yet named by an entry
        a = process.address
        self.where = {"topology": a.topology, "stage": a.stage, "partition": index}  # for telemetry
        self._positions = tables.positions.rows
        self.durable = dict(self._positions)  # as of the last commit that is stored
        self._sealed = log.bus.sealing is not None  # what is logged is stored, too: then it may not quote an event
        self.batches = [Batch(self._sealed)]
        self.flying: Batch | None = None
        self._taken = 0.0  # when that one was taken, on the monotonic clock
        self.revoked = False
        self.committed = 0
        self.room = asyncio.Event()
        self.settled = asyncio.Event()
        self.settled.set()

    # -- taking arrivals in -----------------------------------------------------------------------------------------
    def takes(self, gated: bool) -> bool:
        """Whether the next arrival may be taken in now, and need not wait for a commit to make room, or for calls to finish.

        `gated`: it opens things, so it also waits while too much is open.
        """
        b = self.batches[-1]
        if len(self.batches) > 1 or b.arrivals >= self.most_arrivals or len(b.messages) >= MOST_OUTPUTS:
            return False
        if b.size + b.changed >= MOST_BYTES or b.changed >= self.most_changed:
            return False
        if not gated:
            return True
        return not self.closing and len(self.tables.calls.rows) + self.tables.timers.put_off < self.most_open  # not `full`

    @property
    def full(self) -> bool:
        """Whether too much is open to admit more: what closes or wakes something is still taken."""
        return len(self.tables.calls.rows) + self.tables.timers.put_off >= self.most_open

    def take_in(self, arrival: Arrival) -> None:
        """Handle an arrival, and take in what it causes."""
        if self.poison and (why := self.poison.get(arrival.place)):
            arrival = arrival._replace(refused=why)
        if (splits := self.tables.splits.rows) and (split := splits.get(arrival.place)) is not None:
            arrival = arrival._replace(clock=split.clock)  # some of its outputs are committed already
        effects = self.process.handle(arrival, self.tables)
        self._add(arrival, effects)
        _, changes, _, notes, failure, _ = effects
        if notes and telemetry.listeners:
            self._say(arrival, effects)
        if failure is not None:
            why = failure.error.code if self._sealed else failure.error.message[:500]
            _log.warning("dead letter", node=failure.node, why=why, **in_line(arrival, self.process.address))
        if changes:
            self._alarm.set()  # a timer may be due at once
            self.room.set()  # a call may have finished, and a pump may wait for that

    def _say(self, arrival: Arrival, effects: Effects) -> None:
        for note in effects.notes:
            if note == "event" or not telemetry.is_heard(note):
                continue  # the usual thing is said with the commit
            node, run = about(arrival.what)
            failure = effects.failure if note == "dead_letter" else None
            error = {"error": type(failure.error).__name__, "code": failure.error.code} if failure else {}
            telemetry.emit(note, **self.where, node=failure.node if failure else node, run=run, **error)

    def _add(self, arrival: Arrival, effects: Effects) -> None:
        outputs, changes, done, notes, failure, _ = effects
        rest = outputs[done:] if done else outputs
        size = len(packb(changes) or b"") if changes else 0
        if size > self._piece and self.batches[-1].arrivals:
            self.next_batch()  # an entry has so many pieces at most
        batch = self.batches[-1]
        if (len(rest) > 1 or len(batch.messages) >= MOST_OUTPUTS) and not batch.fits(rest, self.most_changed):
            rest = in_parts(self, arrival, effects)
            batch = self.batches[-1]
        if rest:
            self.append(batch, rest)
        if changes:
            self.tables.change(changes)
            batch.changed += size
        if self.tables.splits.rows:
            self.tables.splits.drop(arrival.place)
        batch.notes += notes
        if notes and notes[-1] != "event":
            batch.told.append((arrival.what, notes, failure))
        if telemetry.listeners and telemetry.is_heard("handled"):
            batch.handled.append(Handled(arrival, effects, time()))
        self._note_taken(batch, arrival)
        if self.one_by_one:
            self.one_by_one -= 1
            self.next_batch()
        if self.settled.is_set():
            self.settled.clear()
            self._request_commit(self)

    def _note_taken(self, batch: Batch, arrival: Arrival) -> None:
        """Add an arrival to what the batch has taken. Arrivals that follow each other in one log are one run."""
        batch.place, position, clock, what, _, _, gone, refused = arrival
        input, sequence, item = batch.place
        batch.arrivals += 1
        if position is not None:
            self._positions[input] = batch.moved[input] = position  # put in the table once a batch: see next_batch
        where, mark = sequence if item < 0 else (sequence, item), None
        plain = type(what) is NodeEvent or (type(what) is Answered and what.event is not None and not what.gone)
        if not plain or refused or gone:
            mark = mark_of(arrival)
        elif input == "source":
            batch.read.append(sum_of(cast("NodeEvent", what).data, sequence))
        run = batch.taken[-1] if batch.taken and mark is None and input != "timers" else ()
        if len(run) == 5 and run[0] == input and run[4] == clock:
            run[2] = where
            run[3] += 1
            return
        batch.taken.append([input, where, where, 1, clock, *((mark,) if mark else ())])

    def next_batch(self) -> None:
        """End the batch that is filled: what comes goes into another one."""
        for input, position in self.batches[-1].moved.items():
            self.tables.positions.put(input, position)
        if self._outward is not None:
            self.batches[-1].mark = self._outward(self)
        if self.batches[-1].frames:
            self.batches[-1].write_frames()
        self.batches[-1].changes = self.tables.changes()
        self.batches.append(Batch(self._sealed))

    def append(self, batch: Batch, outputs: Sequence[Output]) -> None:
        """Put outputs in a batch, and the rows of their calls in the tables."""
        for output in outputs:
            if type(output) is NewMessage:  # as `add` does it: there is one for most events
                batch.size += len(output.data)
                batch.messages.append(output)
                continue
            batch.add(output)
            if isinstance(output, Ask):
                self._alarm.set()  # its deadline may be near
                self.tables.change((("calls", output.number, output.call), ("timers", output.number, output.timer)))

    # -- committing -----------------------------------------------------------------------------------------------
    @property
    def pending(self) -> int:
        """Messages that the next commit would have besides its entry."""
        return len(self.batches[0].messages)

    @property
    def weight(self) -> int:
        """Bytes of the next commit, about."""
        return self.batches[0].size + self.batches[0].changed

    @property
    def ready(self) -> bool:
        """Whether there is a next commit, and none is in flight."""
        return not (self.flying or self.settled.is_set() or self.revoked)

    @property
    def light(self) -> bool:
        """Whether the next commit has a few requests and nothing else. Not the first one behind a claim: of a log that has lost
        its begin, the batches tell commits from copies.
        """
        return self.batches[0].fits_in(self._piece // 2) and self.log.sequence != self.log.claimed

    def take(self, at: float, room: int = COMMIT_LIMIT) -> list[NewMessage] | None:
        """The next commit, the log entry last; empty for none, or while one is in flight; None where it needs more room."""
        if not self.ready:
            return []
        if len(self.batches) == 1:
            self.next_batch()
        batch = self.batches[0]
        batch.at, count = at, len(batch.messages)
        *pieces, entry = batch.entry_in(self.log, range(-count, 0), self.snapshot)
        if len(pieces) + count >= room < COMMIT_LIMIT:
            return None
        self._fly()
        return [*pieces, *batch.messages, entry]

    def take_lightly(self, at: float) -> tuple[NewMessage, list[NewMessage]]:
        """The log entry of the next commit, which is light and ready, and its requests, which it holds."""
        if len(self.batches) == 1:
            self.next_batch()
        batch = self._fly()
        batch.at, batch.within = at, True
        (entry,) = batch.entry_in(self.log, [WITHIN] * len(batch.messages), batch.snapshot, batch.messages)
        return entry, batch.messages

    def _fly(self) -> Batch:
        """The next commit, which is in flight from now on."""
        self.flying = batch = self.batches.pop(0)
        self._taken = monotonic()
        self.room.set()
        batch.snapshot, self.snapshot = self.snapshot, None
        alone = len(self.batches) == 1 and not self.batches[0].arrivals and not self.batches[0].messages
        if alone and self.log.snapshot_due and self.copied is None and batch.snapshot is None:
            self._copy = self.tables.snapshot()
        return batch

    @property
    def unsure(self) -> int:
        """Arrivals that were taken in and are not known to be committed."""
        return (self.flying.arrivals if self.flying else 0) + sum(b.arrivals for b in self.batches)

    def landed(self, sequence: int) -> Batch:
        """The commit that was taken, which is stored; its entry has `sequence`."""
        batch, self.flying = self.flying, None
        if batch is None:
            raise AssertionError("no commit is in flight")
        self.log.landed(sequence, batch.entry, batch.snapshot)
        self.committed += batch.arrivals
        self.durable.update(batch.moved)
        self.mark = max(self.mark, batch.mark)
        if telemetry.listeners:
            batch.say(self.where, sequence, monotonic() - self._taken, self.process.stage.calls)
        first = sequence - len(batch.messages)
        asked = {n: sequence if batch.within else first + index for n, index in batch.asked.items()}
        located(self.batches, self.tables.calls, dict(asked))
        if self._copy is not None:
            self._copy["calls"] = [(n, row._replace(work=asked.get(n, row.work))) for n, row in self._copy["calls"]]
            self.copied, self._copy = (sequence, self._copy), None
        if len(self.batches) == 1 and not self.batches[0].arrivals and not self.batches[0].messages:
            self.settled.set()
        return batch
