"""The inputs of a stage: logs that a partition reads in order from a recorded position. One pump reads any of them.

input     log                                         arrives as
--------  ------------------------------------------  ------------------------------
source    a subject of any stream                     an event
events    the partition's subject for events          an event that is redriven
records   the partition's subject for records         the record of a call
timers    the partition's own table (timers.py)       a timer that is due
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

import structlog

from dspex.bus import codecs, subjects
from dspex.bus.errors import DecodeError
from dspex.bus.message import Message, cause_of, event_time, partition_of, place_id
from dspex.bus.port import Bus, Reader
from dspex.bus.records import CallRecord, CallRequest, NodeEvent, Origin, StoredAt, unpack_event, unpack_frame
from dspex.engine.log.reading import stored
from dspex.engine.log.rows import Place, Position
from dspex.engine.runtime.arrival import Answered, Arrival
from dspex.engine.runtime.compile import Stage
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.request import event_digest

_READ_HERE = subjects.OWN_HEADERS | {subjects.TRACEPARENT}
_log = structlog.get_logger("dspex.engine")


class Input(Protocol):
    """A log as a pump reads it. `name`: the key of its position in the tables. `gated`: see Arrival."""

    name: ClassVar[str]
    gated: ClassVar[bool]

    async def open(self, partitions: Sequence[Partition], after: int, name: str) -> Reader:
        """Read what is for these partitions, behind a sequence. `name`: of the consumer."""
        ...

    async def verify(self, partitions: Sequence[Partition], clock: float) -> None:
        """Compare the positions with the log, before anything is read."""
        ...

    def owner(self, message: Message) -> int:
        """The index of the partition that a message is for."""
        ...

    async def fetched(self, p: Partition, message: Message) -> Any:
        """What `arrivals` needs besides the message, asked of the bus."""
        ...

    def arrivals(self, p: Partition, message: Message, fetched: Any, clock: float) -> Iterator[Arrival]:
        """What arrives with a message, one after another: each is taken before the next is asked for."""
        ...


class SourceInput:
    """The events of a source.

    Attributes:
        created: when the stream was made; ids of events depend on it.

    `check` compares positions with the stream, and gives when that was made. Raises SourceGap.
    """

    name: ClassVar[str] = "source"
    gated: ClassVar[bool] = True

    def __init__(
        self, bus: Bus, stage: Stage, stream: str, count: int, check: Callable[[Sequence[Partition], float], Awaitable[float]]
    ) -> None:
        self._bus, self._stage, self.stream, self._count, self._check = bus, stage, stream, count, check
        self.created = 0.0

    async def open(self, partitions: Sequence[Partition], after: int, name: str) -> Reader:
        return await self._bus.reader(self.stream, [self._stage.settings.subject], after=after, name=name)

    async def verify(self, partitions: Sequence[Partition], clock: float) -> None:
        self.created = await self._check(partitions, clock)

    def owner(self, message: Message) -> int:
        if self._count == 1:
            return 0
        h = message.headers
        return partition_of(h.get(subjects.KEY) or h.get(subjects.SESSION) or message.subject, self._count)

    async def fetched(self, p: Partition, message: Message) -> None:
        return None

    def arrivals(self, p: Partition, message: Message, fetched: Any, clock: float) -> Iterator[Arrival]:
        sequence, time = message.sequence, message.time
        yield Arrival(
            place=Place("source", sequence),
            position=Position(sequence, -1, self.created, time),
            clock=clock,
            number=p.tables.number,
            what=self.event(message),
            time=time,
            gated=True,
            stored=StoredAt(self.stream, sequence),
            headers=message.headers,
        )

    def event(self, m: Message) -> NodeEvent:
        """The event that a message of the source holds."""
        h, id = m.headers, place_id(self.stream, self.created, m)
        node, content_type = self._stage.source.name, h.get(subjects.CONTENT_TYPE) or codecs.JSON
        if not h or (len(h) == 1 and subjects.MESSAGE_ID in h):  # the usual case: the event has no headers of ours
            return NodeEvent(node, Origin(id, m.subject, id, None, None, None, m.time, m.sequence), content_type, m.data)
        at = event_time(m).timestamp() if subjects.TIME in h else m.time
        own = {k: v for k, v in h.items() if k not in _READ_HERE and not k.startswith(subjects.FROM_SERVER)}
        origin = Origin(
            id=id,
            subject=m.subject,
            run=h.get(subjects.RUN) or id,
            cause=cause_of(h),
            key=h.get(subjects.KEY),
            session=h.get(subjects.SESSION),
            time=at,
            sequence=m.sequence,
            trace=h.get(subjects.TRACEPARENT),
            headers=own or None,
        )
        return NodeEvent(node, origin, content_type, m.data)


class EventsInput:
    """Events at a node, in frames: redriven ones."""

    name: ClassVar[str] = "events"
    gated: ClassVar[bool] = True

    def __init__(self, bus: Bus, app: str, topology: str, stage: str) -> None:
        self._bus, self._stream = bus, subjects.stream(app)
        self._topology, self._stage, self._app = topology, stage, app

    async def open(self, partitions: Sequence[Partition], after: int, name: str) -> Reader:
        return await self._bus.reader(self._stream, [self._subject(p) for p in partitions], after=after, name=name)

    def _subject(self, p: Partition) -> str:
        return subjects.edge(self._app, self._topology, self._stage, p.index)

    async def verify(self, partitions: Sequence[Partition], clock: float) -> None:
        """Only what was taken is ever removed from our own stream."""

    def owner(self, message: Message) -> int:
        return int(message.subject.rpartition(".")[2])

    async def fetched(self, p: Partition, message: Message) -> Message | None:
        """The stored message that has the data, where the frame refers to one."""
        place = _stored(message)
        return await stored(self._bus, place.stream, place.sequence) if place is not None else None

    def arrivals(self, p: Partition, message: Message, fetched: Message | None, clock: float) -> Iterator[Arrival]:
        sequence, stored = message.sequence, _stored(message)
        try:
            events = self.events(message, fetched)
        except DecodeError as e:
            _log.error("what is no frame of events is passed over", subject=message.subject, sequence=sequence, why=e.message)
            events = []
        if not events:
            yield Arrival(Place("events", sequence), Position(sequence), clock, p.tables.number, None)
        position = p.tables.position("events")
        for index, event in enumerate(events):
            place = Place("events", sequence, index)
            if not position.has(place):
                after = Position(sequence, index if index + 1 < len(events) else -1)
                yield Arrival(place, after, clock, p.tables.number, event, message.time, gated=True, stored=stored)

    @staticmethod
    def events(message: Message, stored: Message | None) -> list[NodeEvent]:
        """The events of a frame. `stored`: what has the data of its only event."""
        events = unpack_frame(message.data)
        return [e._replace(data=stored.data) for e in events] if stored is not None else events


def _stored(message: Message) -> StoredAt | None:
    """Where the data of a frame's only event is stored, if not in the frame."""
    stream, _, sequence = message.headers.get(subjects.STORED, "").rpartition(":")
    return StoredAt(stream, int(sequence)) if stream and sequence.isdecimal() else None


class RecordsInput:
    """The records of a partition's calls, whichever pool they are of."""

    name: ClassVar[str] = "records"
    gated: ClassVar[bool] = False

    def __init__(self, bus: Bus, app: str, topology: str, stage: str) -> None:
        self._bus, self._stream = bus, subjects.stream(app)
        self._topology, self._stage, self._app = topology, stage, app

    async def open(self, partitions: Sequence[Partition], after: int, name: str) -> Reader:
        return await self._bus.reader(self._stream, [self._subject(p) for p in partitions], after=after, name=name)

    def _subject(self, p: Partition) -> str:
        return subjects.record(self._app, "*", self._topology, self._stage, p.index)

    async def verify(self, partitions: Sequence[Partition], clock: float) -> None:
        """Only what was taken is ever removed from our own stream."""

    def owner(self, message: Message) -> int:
        return int(message.subject.rpartition(".")[2])

    async def fetched(self, p: Partition, message: Message) -> Answered | None:
        return await answered(self._bus, self._stream, p, message)

    def arrivals(self, p: Partition, message: Message, fetched: Answered | None, clock: float) -> Iterator[Arrival]:
        sequence = message.sequence
        yield Arrival(Place("records", sequence), Position(sequence), clock, p.tables.number, fetched)


async def answered(bus: Bus, stream: str, p: Partition, message: Message) -> Answered | None:
    """What a message with a record says; None where it says nothing about an open call.

    Whoever may write records can say what they like: the pool is that of the subject, and the event is the one that the
    call was made for, or it is read from the request.
    """
    try:
        record = CallRecord.unpack(message.data)
    except DecodeError as e:
        _log.error("what is no record is passed over", subject=message.subject, sequence=message.sequence, why=e.message)
        return None
    row = p.tables.calls.rows.get(record.number) if record.number is not None else None
    if row is None or row.pool != message.subject.split(".")[3]:
        return None
    if event_digest(record.event) == row.digest:
        return Answered(record, unpack_event(record.event))
    return Answered(record, await requested(bus, stream, row.work))


async def requested(bus: Bus, stream: str, sequence: int) -> NodeEvent | None:
    """The event that a stored request is for; None where it is not stored any more."""
    message = await stored(bus, stream, sequence) if sequence > 0 else None
    request = CallRequest.unpack(message.data) if message is not None else None
    return unpack_event(request.record.event) if request is not None and request.record is not None else None
