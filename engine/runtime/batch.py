"""What one commit of a partition will hold, and the order in which its arrivals were taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from struct import pack
from typing import TYPE_CHECKING, Any, Protocol

from msgpack import Packer

from dspex.bus import telemetry
from dspex.bus.errors import DspexError
from dspex.bus.message import in_session
from dspex.bus.port import COMMIT_LIMIT, NewMessage
from dspex.engine.log.commit_log import CommitLog
from dspex.engine.log.entries import Snapshot, is_request, packed
from dspex.engine.log.rows import NO_MARK, OpenCall, Place, Position
from dspex.engine.log.tables import Calls
from dspex.engine.runtime.arrival import Answered, Arrival, Due, Effects, Gap, Handled, Mark, Note, Reset, Told, digest
from dspex.engine.runtime.walk.request import Ask, Forward, Output
from dspex.engine.runtime.walk.state import split_of

if TYPE_CHECKING:
    from dspex.engine.runtime.partition import Partition

MOST_PIECES = 31  # of what one log entry cannot hold
MOST_OUTPUTS = COMMIT_LIMIT - MOST_PIECES - 1  # the rest of a batch is the log entry, and its pieces
MOST_BYTES = 8 << 20  # of one commit: a batch is staged in the server's memory
MOST_LIGHT = 64  # requests that are stored one by one
MOST_FRAME = 128 << 10  # bytes of a frame, about: larger than what one event needs, and below what is put in the object store


class Owner(Protocol):
    """What owns a partition: it hears how its commits end."""

    def landed(self, partition: Partition, batch: Batch, /) -> None: ...
    def failed(self, partition: Partition, error: DspexError, /) -> None: ...


@dataclass
class _Frame:
    """Events for one partition. `index`: of their message in the commit; `size`: bytes."""

    index: int
    events: list[bytes] = field(default_factory=list)
    size: int = 0


@dataclass(slots=True)  # each partition has one, and there may be thousands
class Batch:
    """What one commit will hold, but for its log entry.

    The events that go to another partition are one message, a frame, in their order. Frames are never merged across the
    partitions that send them, so what a fenced one would send drops out whole.

    Attributes:
        sealed: whether payloads are: then a frame has events of one session, whose key seals it.
        taken: the order in which its arrivals were taken, as runs: [input, from, to, count, clock, mark].
        read: the sums of the events that it has taken of the source.
        changes: of the tables; None while arrivals are still added.
        asked: number of a call → index in `messages` of its request.
        size: bytes of the messages. changed: of the changes, about.
        mark: watermark of what leaves the stage here, once it is stored.
        entry: bytes of the log entry, without requests. snapshot: the one that it names.
        notes: what happened, which counts once it is committed; told: the same with what it happened to, but for the usual.
        handled: its arrivals, where somebody traces them.
        arrivals: how many; `place`: of the last one; `moved`: positions of the inputs that they came from, behind them.
        at: when it was taken, by the engine's clock; 0 before. within: its entry holds its requests.
    """

    sealed: bool = False
    messages: list[NewMessage] = field(default_factory=list)
    taken: list[list[Any]] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    changes: dict[str, Any] | None = None
    asked: dict[int, int] = field(default_factory=dict)
    arrivals: int = 0
    notes: list[Note] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    handled: list[Handled] = field(default_factory=list)
    place: Place | None = None
    moved: dict[str, Position] = field(default_factory=dict)
    size: int = 0
    changed: int = 0
    entry: int = 0
    mark: float = NO_MARK
    snapshot: Snapshot | None = None
    at: float = 0.0
    within: bool = False
    frames: dict[tuple[str, str | None], _Frame] = field(default_factory=dict)

    def add(self, output: Output) -> None:
        """Put in an output."""
        if isinstance(output, Forward):
            self.size += len(output.data)
            self._forward(output)
            return
        if isinstance(output, Ask):
            self.asked[output.number], self.changed = len(self.messages), self.changed + rows_of(output)
            message = output.message
        else:
            message = output
        self.size += len(message.data)
        self.messages.append(message)

    def _forward(self, event: Forward) -> None:
        session = event.session if self.sealed else None
        frame = self.frames.get((event.subject, session))
        if frame is None or frame.size + len(event.data) > MOST_FRAME:
            if frame is not None:
                self._write(frame)
            frame = self.frames[event.subject, session] = _Frame(len(self.messages))
            self.messages.append(NewMessage(event.subject, b"", in_session(session) or None))
        frame.events.append(event.data)
        frame.size += len(event.data)

    def _write(self, frame: _Frame) -> None:
        data = b"".join(
            (Packer().pack_array_header(len(frame.events)), *frame.events)
        )  # as records.pack_frame, of packed events
        self.messages[frame.index] = self.messages[frame.index]._replace(data=data)

    def write_frames(self) -> None:
        """Make the messages of the events for other partitions: nothing more is added."""
        for frame in self.frames.values():
            self._write(frame)

    def say(self, where: Mapping[str, Any], sequence: int, seconds: float, calls: Mapping[str, Any]) -> None:
        """Say that it is stored. `where`: its partition; `seconds` it took; `calls`: recorded operators of its stage."""
        said = {"arrivals": self.arrivals, "messages": len(self.messages), "bytes": self.size + self.entry}
        telemetry.emit("commit", **where, **said, seconds=seconds, sequence=sequence)
        if self.told:
            telemetry.emit("noted", **where, told=self.told)
        if self.handled:
            telemetry.emit("handled", **where, calls=calls, arrivals=self.handled)

    def fits(self, outputs: Sequence[Output], most_changed: int) -> bool:
        """Whether it can hold these outputs of one arrival besides what it has. `most_changed`: as in `most_that_fit`."""
        count = len(outputs)
        room = len(self.messages) + count <= MOST_OUTPUTS
        return room and (count < 2 or most_that_fit(outputs, self, most_changed) == count)

    def entry_in(
        self, log: CommitLog, places: Sequence[int], snapshot: Snapshot | None, within: Sequence[NewMessage] | None = None
    ) -> list[NewMessage]:
        """The log entry of the commit, and before it its pieces. `places`: see `placed`. `within`: the requests that it holds;
        None: all messages lie right before it.
        """
        changes = dict(self.changes or {})
        if self.asked:
            changes["calls"] = [(n, placed(n, row, self.asked, places)) for n, row in changes["calls"]]
        body: dict[str, Any] = {"digest": digest(self.messages), "taken": self.taken}
        if self.read:
            body["read"] = pack(f">{len(self.read)}I", *self.read)
        if within:
            body["asks"] = [(number, *within[index][:3]) for number, index in self.asked.items()]
        covers = len(self.messages) if within is None else 0
        found = log.entry(body, changes, covers=covers, at=self.at, snapshot=snapshot)
        self.entry = sum(len(message.data) for message in found) - (self.size if within else 0)
        return found

    def fits_in(self, size: int) -> bool:
        """Whether a log entry of so many bytes can hold it: it has a few requests and no other messages."""
        few = len(self.messages) == len(self.asked) <= MOST_LIGHT
        return few and self.size + self.changed <= min(size, MOST_FRAME) and all(map(is_request, self.messages))

    def part(self, arrival: Arrival, done: int) -> None:
        """Note that the batch has so many outputs of an arrival, and not all."""
        self.place, where = arrival.place, arrival.place.sequence
        self.arrivals += 1
        at = where if arrival.place.item < 0 else (where, arrival.place.item)
        self.taken.append([arrival.place.input, at, at, 1, arrival.clock, ("part", done)])


def mark_of(arrival: Arrival) -> tuple[Any, ...] | None:
    """What decided about an arrival besides what its log holds."""
    what = arrival.what
    if arrival.refused:
        return "refused", arrival.refused
    if arrival.gone:
        return ("payload_gone",)
    answered = what.what if isinstance(what, Due) else what
    if isinstance(answered, Answered) and answered.gone:
        return ("record_gone",)
    if isinstance(what, Mark):
        return "watermark", what.time, arrival.position
    if isinstance(what, Gap):
        return "gap", what.after, what.up_to, arrival.position
    if isinstance(what, Reset):
        return "reset", what.nodes, arrival.position
    if (isinstance(what, Due) and what.what is None) or (isinstance(what, Answered) and what.event is None):
        return ("gone",)
    if isinstance(what, Due) and what.timer.kind == "again":
        return ("again",)
    return None if what is not None else ("moved", arrival.position)


def most_that_fit(outputs: Sequence[Output], batch: Batch, most_changed: int) -> int:
    """How many of them a batch can hold besides what it has; at least one if it has nothing.

    `most_changed`: bytes that all its changes may have.
    """
    size, changed, most = batch.size + batch.changed, batch.changed, MOST_OUTPUTS - len(batch.messages)
    for count, output in enumerate(outputs[:most]):
        if isinstance(output, Ask):
            rows = rows_of(output)
            size, changed = size + len(output.message.data) + rows, changed + rows
        else:
            size += len(output.data)
        if (size > MOST_BYTES or changed > most_changed) and (count or batch.messages):
            return count
    return min(len(outputs), most)


def rows_of(asked: Ask) -> int:
    """Bytes of the rows that come with a request."""
    return len(packed((asked.number, asked.call, asked.number, asked.timer)))


def next_number(effects: Effects) -> int:
    """The first number that no call and no timer of an arrival has got."""
    asked: list[int] = [output.number for output in effects.outputs if isinstance(output, Ask)]
    return 1 + max([0, *asked, *(int(key) for table, key, _ in effects.changes if table == "timers")])


def placed(number: int, row: OpenCall | None, asked: Mapping[int, int], places: Sequence[int]) -> OpenCall | None:
    """The row of a call as an entry has it. `places`: of the requests, before it; below 0: so many messages before the entry,
    whose sequence is not known yet; or WITHIN.
    """
    return row if row is None or number not in asked else row._replace(work=places[asked[number]])


def located(batches: Iterable[Batch], calls: Calls, places: dict[int, int]) -> None:
    """Requests of calls lie at these sequences. Records may have come before it was known: their rows do not say it yet.

    `batches`: those that are not committed.
    """
    for batch in batches:
        for number in batch.asked:
            places.pop(number, None)  # asked again since: that request counts
        if batch.changes and "calls" in batch.changes:
            rows = batch.changes["calls"]
            batch.changes["calls"] = [(n, row._replace(work=places[n]) if row and n in places else row) for n, row in rows]
    for number in places.keys() & calls.rows.keys():
        calls.stored(number, places[number])


def in_parts(p: Partition, arrival: Arrival, effects: Effects) -> Sequence[Output]:
    """Fill commits of a partition with outputs that one cannot hold; what is left goes with the position.

    Each commit but the last keeps how much of the arrival is done, and its clock, watermarks and numbers, which are then taken:
    what arrives before the rest of it, after a crash, must not get the same numbers.
    """
    outputs, done = effects.outputs, effects.done
    split = split_of(p.process.stage, arrival, p.tables)
    p.tables.number = max(p.tables.number, next_number(effects))
    while done < len(outputs) and not p.batches[-1].fits(outputs[done:], p.most_changed):
        if p.batches[-1].arrivals:
            p.next_batch()
            continue
        batch = p.batches[-1]
        count = most_that_fit(outputs[done:], batch, p.most_changed)
        p.append(batch, outputs[done : done + count])
        done += count
        p.tables.splits.put(arrival.place, split._replace(done=done, digest=digest(outputs[:done])))
        batch.part(arrival, done)
        p.next_batch()
    return outputs[done:]
