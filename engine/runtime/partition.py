"""One stage partition in the hands of its owner: its state, and the batches that the next commits will make durable.

Taking an event in is never interrupted: its outputs, the rows of its calls and its position change together, so a pump may be
cancelled at any await and nothing is half done. That is why `add` does not wait for room but starts another batch, and pumps
ask `crowded` before they take the next event.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from dspex.bus import subjects
from dspex.bus.port import COMMIT_LIMIT, NewMessage
from dspex.bus.records import Work
from dspex.engine.log.commit_log import CommitLog, Entry
from dspex.engine.log.state import Changes, InputRef, OpenCall, State
from dspex.engine.runtime.walk import Asked, Output

MOST_OUTPUTS = COMMIT_LIMIT - 1  # one message of a batch is the log entry
MOST_BYTES = 8 << 20  # of one commit: a batch is staged in the server's memory


@dataclass
class Batch:
    """What one commit will hold, but for its log entry."""

    drafts: list[NewMessage] = field(default_factory=list)
    changes: Changes = field(default_factory=Changes)
    works: dict[int, int] = field(default_factory=dict)  # ordinal of a call → index in `drafts` of the message that asks for it
    inputs: int = 0
    event: InputRef = ("", 0)  # the last one in it
    size: int = 0


class Partition:
    """State and batches of one partition. Changes happen in memory first; `take` and `landed` frame each commit."""

    def __init__(
        self,
        index: int,
        log: CommitLog,
        state: State,
        *,
        app: str,
        topology: str,
        reply: str,
        most: int,
    ) -> None:
        self.index = index
        self.log = log
        self.state = state
        self.app = app
        self.topology = topology
        self.reply = reply
        self.most_inputs = most
        self.created = 0.0  # when the source stream was made
        self.one_by_one = 0  # events still to be committed one by one, to find the one that is refused
        self.batches: deque[Batch] = deque([Batch()])
        self.flying: tuple[Batch, Entry] | None = None
        self.revoked = False  # fenced, recovered or released: nothing of this object may be committed any more
        self.committed = 0
        self.room = asyncio.Event()
        self.settled = asyncio.Event()
        self.settled.set()
        self._changes = Changes()  # rows that the event now handled has changed: they go with its last part
        self._changed = False

    # -- taking events in -----------------------------------------------------------------------------------------
    @property
    def crowded(self) -> bool:
        """Whether the next event should wait until a commit has made room."""
        b = self.batches[-1]
        return len(self.batches) > 1 or b.inputs >= self.most_inputs or len(b.drafts) >= MOST_OUTPUTS or b.size >= MOST_BYTES

    def add(self, outputs: Sequence[Output], which: str, sequence: int, id: str = "", clock: float = 0.0) -> None:
        """Take in what one event caused, and its position.

        `which`: "source", "inbox", or "clock" with a negative number of its own. Outputs that one commit
        cannot hold go into several; each but the last pins event, output offset and clock.
        """
        event = (which, sequence)
        done = self.state.parts[event][0] if event in self.state.parts else 0
        if done >= len(outputs):  # it ended in another way before the crash: a function that failed now, or did then
            done = 0
        rest = outputs[done:] if done else outputs
        while rest and not self._fits(rest):
            batch = self.batches[-1]
            if batch.drafts or batch.inputs:
                self.batches.append(Batch())
            if self._fits(rest):
                break
            count = self._most(rest)
            self._append(rest[:count])
            rest, done = rest[count:], done + count
            self._part(event, done, clock)
        self._append(rest)
        if self._changed:
            self.batches[-1].changes.merge(self._changes)
            self._changes, self._changed = Changes(), False
        self._read(event, id)
        if self.one_by_one:
            self.one_by_one -= 1
            self.batches.append(Batch())

    def _part(self, event: InputRef, done: int, clock: float) -> None:
        """End a commit that holds some of the event's outputs, and not yet its position."""
        batch = self.batches[-1]
        self.state.parts[event] = batch.changes.parts[event] = (done, clock)
        batch.inputs, batch.event = 1, event
        self.batches.append(Batch())

    def clock(self, which: str, sequence: int, now: float) -> float:
        """The clock of an event: the recorded one, where a part of its outputs is committed already; else `now`."""
        part = self.state.parts.get((which, sequence))
        return part[1] if part else now

    def _fits(self, outputs: Sequence[Output]) -> bool:
        b = self.batches[-1]
        if len(b.drafts) + len(outputs) > MOST_OUTPUTS:
            return False
        return len(outputs) < 2 or b.size + sum(map(_size, outputs)) <= MOST_BYTES

    @staticmethod
    def _most(outputs: Sequence[Output]) -> int:
        """How many of them one commit can hold; at least one."""
        size = 0
        for count, output in enumerate(outputs[:MOST_OUTPUTS]):
            size += _size(output)
            if size > MOST_BYTES and count:
                return count
        return min(len(outputs), MOST_OUTPUTS)

    def _append(self, outputs: Sequence[Output]) -> None:
        batch = self.batches[-1]
        for output in outputs:
            if isinstance(output, NewMessage):
                draft = output
            elif isinstance(output, Asked):
                draft = self._opened(output, batch)
            else:
                draft = self._send(output.ordinal, output.work, output.pool, batch)
            batch.size += len(draft.data)
            batch.drafts.append(draft)

    def _opened(self, o: Asked, batch: Batch) -> NewMessage:
        """Give a call its ordinal; the work that asks for it."""
        ordinal = self.state.next_ordinal
        deadline = o.clock + o.call.deadline
        work = Work(
            call=o.id,
            ordinal=ordinal,
            attempt=o.attempt,
            topology=self.topology,
            node=o.node,
            reply=self.reply,
            spec=asdict(o.call.spec),
            inputs=o.inputs,
            data=o.data,
            content_type=o.content_type,
            origin=o.origin._asdict(),
            timeout=o.call.timeout,
            deadline=deadline,
        )
        key = o.origin.key if o.node in self.state.ordered else None
        self.put(ordinal, OpenCall(o.node, o.id, o.origin.run, deadline, o.attempt, key=key, first=o.attempt), batch.changes)
        return self._send(ordinal, work, o.call.pool, batch)

    def _send(self, ordinal: int, work: Work, pool: str, batch: Batch) -> NewMessage:
        """The message that asks a worker of `pool`, about to be appended to the batch."""
        row = self.state.calls[ordinal]
        if row.attempt != work.attempt:
            self.put(ordinal, row._replace(attempt=work.attempt, work=0, held=0), batch.changes)
        batch.works[ordinal] = len(batch.drafts)
        subject = subjects.work(self.app, pool, work.topology, work.node)
        return NewMessage(subject, work.pack(), {subjects.RUN: str(work.origin.get("run", "")), subjects.CAUSE: work.call})

    def _read(self, event: InputRef, id: str) -> None:
        (which, sequence), state, batch = event, self.state, self.batches[-1]
        if which == "source":
            state.source_sequence, state.source_id, state.source_created = sequence, id, self.created
            batch.changes.source = (sequence, id, self.created)
        elif which == "inbox" and sequence > state.inbox:
            state.inbox = batch.changes.inbox = sequence
        batch.inputs += 1
        batch.event = event
        self.settled.clear()
        if event in state.parts:
            del state.parts[event]
            batch.changes.unparted.append(event)

    # -- rows, changed by the event that is handled now; `add` ends it -----------------------------------------------
    def put(self, ordinal: int, row: OpenCall, changes: Changes | None = None) -> None:
        """Open a call, or change its row."""
        self.state.put(ordinal, row)
        if changes is None:
            changes, self._changed = self._changes, True
        changes.calls[ordinal] = row

    def close(self, ordinal: int) -> None:
        """A call is finished."""
        self.state.close(ordinal)
        self._changes.closed.append(ordinal)
        self._changed = True

    def delay(self, inbox_sequence: int, until: float) -> None:
        """Look at a message of the inbox again at `until`."""
        self.state.delayed[inbox_sequence] = self._changes.delayed[inbox_sequence] = until
        self._changed = True

    def undelay(self, inbox_sequence: int) -> None:
        """A message that was delayed is looked at now."""
        if self.state.delayed.pop(inbox_sequence, None) is not None:
            self._changes.done.append(inbox_sequence)
            self._changed = True

    # -- committing -----------------------------------------------------------------------------------------------
    @property
    def pending(self) -> int:
        """Messages that the next commit would have besides its entry."""
        return len(self.batches[0].drafts)

    @property
    def weight(self) -> int:
        """Bytes of the next commit, about."""
        return self.batches[0].size

    def take(self, at: float, room: int = COMMIT_LIMIT) -> list[NewMessage] | None:
        """The next commit, of at most `room` messages, the log entry last.

        None where there is nothing to commit, or a commit is in flight.
        """
        if self.flying or self.settled.is_set() or self.revoked:
            return None
        batch = self.batches.popleft()
        alone = not self.batches
        if alone:
            self.batches.append(Batch())
        self.room.set()
        count = len(batch.drafts)
        for ordinal, index in batch.works.items():
            row = batch.changes.calls.get(ordinal)
            if row is not None:
                batch.changes.calls[ordinal] = row._replace(work=index - count)
        # A snapshot is of the state after this commit, so there may be nothing walked beyond it.
        state = self.state if alone else None
        entry = self.log.entry(batch.changes, state, covers=count, at=at, room=room - count - 1)
        self.flying = (batch, entry)
        return [*entry.pieces, *batch.drafts, entry.draft]

    @property
    def unsure(self) -> int:
        """Events that were walked and are not known to be committed."""
        return (self.flying[0].inputs if self.flying else 0) + sum(b.inputs for b in self.batches)

    def landed(self, sequence: int) -> None:
        """The commit that was taken is stored; its entry has `sequence`."""
        assert self.flying is not None
        batch, entry = self.flying
        self.flying = None
        self.log.landed(entry, sequence)
        self.committed += batch.inputs
        for ordinal, row in batch.changes.calls.items():
            live = self.state.calls.get(ordinal)
            if row.work < 0 and live is not None and live.attempt == row.attempt:
                self.state.calls[ordinal] = live._replace(work=sequence + row.work)
        if len(self.batches) == 1 and not self.batches[0].inputs and not self.batches[0].drafts:
            self.settled.set()


def _size(output: Output) -> int:
    if isinstance(output, NewMessage):
        return len(output.data)
    return 2 * len(output.data if isinstance(output, Asked) else output.work.data)
