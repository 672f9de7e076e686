"""Events at a node, in frames: redriven ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import structlog

from dspex.bus import subjects
from dspex.bus.errors import DecodeError
from dspex.bus.message import Message
from dspex.bus.port import Bus, Reader
from dspex.bus.records import NodeEvent, StoredAt, unpack_frame
from dspex.engine.log.reading import stored
from dspex.engine.log.rows import Place, Position
from dspex.engine.runtime.arrival import Arrival
from dspex.engine.runtime.partition import Partition

_READ_HERE = subjects.OWN_HEADERS | {subjects.TRACEPARENT}
_log = structlog.get_logger("dspex.engine")


class EventsInput:
    """Events at a node, in frames: redriven ones."""

    name: ClassVar[str] = "events"
    gated: ClassVar[bool] = True

    def __init__(self, bus: Bus, app: str, topology: str, stage: str, source_stream: str) -> None:
        self._bus, self._stream, self._source_stream = bus, subjects.stream(app), source_stream
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
        """The stored message that has the data, where the frame refers to one.

        Whoever may write frames could refer to the streams of others: only those that the stage reads are looked at.
        """
        place = _stored(message)
        if place is None or place.stream not in (self._stream, self._source_stream):
            return None
        return await stored(self._bus, place.stream, place.sequence)

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
    known = stream and sequence.isascii() and sequence.isdecimal() and len(sequence) < 19
    return StoredAt(stream, int(sequence)) if known else None
