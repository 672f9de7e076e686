"""Events at a node, in frames: those that come over a hop, and redriven ones."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from dspex.bus import codecs, subjects
from dspex.bus.codecs.times import is_time
from dspex.bus.errors import DecodeError, NotStored, Unreachable
from dspex.bus.message import Message
from dspex.bus.port import Bus, Reader
from dspex.bus.records import NodeEvent, Origin, StoredAt, unpack_frame
from dspex.bus.seldom import logger
from dspex.bus.serving import payloads
from dspex.engine.graph.nodes import KEYED_PARTITIONS, TOLD
from dspex.engine.log.reading import stored_in
from dspex.engine.log.redriven import points_at
from dspex.engine.log.rows import Place, Position
from dspex.engine.runtime.arrival import Arrival
from dspex.engine.runtime.inputs.input import EVERY, Input
from dspex.engine.runtime.inputs.source import SourceInput
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.watermarks.heard import Heard
from dspex.engine.runtime.watermarks.reached import next_arrival

MOST_ATTEMPTS: Final = 1 << 31  # of an event; whoever may write frames can say any number
FAR: Final = 2000  # messages of the stream behind which a partition is asked about, before all since are read for it
MANY: Final = KEYED_PARTITIONS // 4
"""Partitions from which on all frames of a stage are read, and those of others passed over.

In a stream with other messages, a reader with 64 filters gets 13,000 messages a second, one with 16 gets 17,000, and one with a
wildcard 126,000 (nats-server 2.15.1).
"""
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,3}")
NOTHING: Final[Mapping[str, int]] = {}
_log = logger("dspex.engine")


class EventsInput(Input):
    """Events at a node, in frames: those that come over a hop, and redriven ones; and watermarks, which stand behind the events
    that they speak of.

    Args:
        source: of the stage; None behind hops.
        before: stages before this one whose watermarks are heard, with their partitions; empty where nothing depends on time.
        told: set when a watermark has reached a timer; set when a watermark has moved.
    """

    name: ClassVar[str] = "events"
    gated: ClassVar[bool] = True

    def __init__(
        self,
        bus: Bus,
        app: str,
        topology: str,
        stage: str,
        source: SourceInput | None,
        before: Mapping[str, int] = NOTHING,
        told: tuple[asyncio.Event, asyncio.Event] | None = None,
        *,
        decided: bool = False,
    ) -> None:
        self._bus, self._stream, self._source = bus, subjects.stream(app), source
        self._topology, self._stage, self._app = topology, stage, app
        self._now, self._decided = 0.0, decided
        self._before, (self._alarm, self._moved) = before, told or (asyncio.Event(), asyncio.Event())
        self._time = [subjects.time(app, topology, name, "*") for name in before]
        self._prefix = subjects.time(app, topology, "", "")[:-1]

    async def open(self, partitions: Sequence[Partition], after: int, name: str) -> Reader:
        indexes: list[int | str] = ["*"] if len(partitions) >= MANY else [p.index for p in partitions]
        filters = [subject for index in indexes for subject in self._subjects(index)]
        if self._before:
            info = await self._bus.stream(self._stream)
            said = await self._bus.scan(self._stream, self._time, start=1, stop=info.last if info is not None else 0)
            heard = Heard.before(self._before, said, after, self._now)  # of all who read together: they hear the same
            for p in partitions:
                p.heard = heard
            for p in partitions:
                self._look(p, self._now)
        return await self._bus.reader(self._stream, [*filters, *self._time], after=after, name=name)

    def _subjects(self, index: int | str) -> list[str]:
        """Of a partition: of its events, and of decisions about what waits in it."""
        where = (self._app, self._topology, self._stage, index)
        return [subjects.edge(*where), *([subjects.decision(*where)] if self._decided else [])]

    def tell(self, p: Partition, message: Message, clock: float) -> None:
        if p.heard is not None:
            p.heard.hear(message, clock)
            self._moved.set()
            self._look(p, clock)

    def leaves(self, p: Partition) -> None:
        p.heard = p.heard.copy() if p.heard is not None else None

    def _look(self, p: Partition, clock: float) -> None:
        """See whether the watermark has something to wake."""
        if next_arrival(p, clock) is not None:
            p.closing = True
            self._alarm.set()

    async def begin(self, partitions: Sequence[Partition]) -> int:
        """A partition that has had no event for long must not have all those of the others read again.

        The leader is asked about those far behind, each by itself: replicas may be behind, each by another number of messages.
        """
        behind = {p.index: p.tables.position(self.name).after for p in partitions}
        info = await self._bus.stream(self._stream)
        last = info.last if info is not None else 0
        far = [index for index, after in behind.items() if last - after > FAR]
        edges = [(index, subject) for index in far for subject in self._subjects(index)]
        found = await asyncio.gather(*[self._bus.last(self._stream, subject) for _, subject in edges])
        unread = {
            index for (index, _), message in zip(edges, found) if message is not None and message.sequence > behind[index]
        }
        behind |= dict.fromkeys(set(far) - unread, last)
        return min(behind.values())

    async def verify(self, partitions: Sequence[Partition], clock: float) -> None:
        """Only what was taken is ever removed from our own stream."""
        self._now = clock

    def owner(self, message: Message) -> int:
        if self._before and message.subject.startswith(self._prefix):
            return EVERY
        last = message.subject.removesuffix(subjects.DECIDED).rpartition(".")[2]
        return int(last) if _INDEX.fullmatch(last) else -1  # anybody may have sent it

    async def arrivals(self, p: Partition, message: Message, clock: float) -> Sequence[Arrival]:
        sequence, stored = message.sequence, points_at(message)
        whole, data, gone = await self._fetched(message, stored)
        if whole is None:
            stored, gone = StoredAt(self._stream, sequence), True
        try:
            events = self.events(whole, data) if whole is not None else [self._lost(message, p)]
        except DecodeError as e:
            _log.error("what is no frame of events is passed over", subject=message.subject, sequence=sequence, why=e.message)
            events = []
        if not events:
            return [Arrival(Place("events", sequence), Position(sequence, -1, 0.0, message.time), clock, None)]
        found, taken = [], p.tables.position("events")
        for index, event in enumerate(events):
            place = Place("events", sequence, index)
            if not taken.has(place):
                after = Position(sequence, index if index + 1 < len(events) else -1, 0.0, message.time)
                found.append(Arrival(place, after, clock, event, stored=stored, gone=gone))
        return found

    async def _fetched(self, message: Message, at: StoredAt | None) -> tuple[Message | None, Message | None, bool]:
        """The frame with its body, None where that is stored nowhere any more; the message that has the data of its only
        event, where it refers to one; whether it refers to one whose data is stored nowhere any more.

        Whoever may write frames could refer to the streams of others: only those that the stage reads are looked at.
        """
        whole = await payloads.checked_out(self._bus, self._app, message)
        source = self._source if at is not None and self._source is not None and at.stream == self._source.stream else None
        if at is None or (at.stream != self._stream and source is None):
            return whole, None, False
        try:
            data = await stored_in(self._bus, at.stream, at.sequence)
        except NotStored as e:  # the source is not there now: its events may come back with it
            if source is None or not await source.is_gone():
                raise Unreachable(e.message, fix=e.fix) from e
            return whole, None, True
        data = await payloads.checked_out(self._bus, self._app, data) if data is not None else None
        return whole, data, data is None

    @staticmethod
    def _lost(message: Message, p: Partition) -> NodeEvent:
        """In place of the event of a frame that is stored nowhere any more: what its headers still say."""
        run = message.headers.get(subjects.RUN, "")
        return NodeEvent(p.process.stage.name, Origin(id=run, subject=message.subject, run=run), codecs.JSON, b"")

    @staticmethod
    def events(message: Message, stored: Message | None) -> list[NodeEvent]:
        """The events of a frame, or of a decision: each has a subject of its own, since who decides may write no event.

        `stored`: what has the data of the only event of a frame. Raises DecodeError.
        """
        if message.subject.endswith(subjects.DECIDED):
            node = message.headers.get(subjects.DECIDE)
            if node is None:
                raise DecodeError(f"a decision without the header {subjects.DECIDE}, which names the operator")
            run = message.headers.get(subjects.RUN, "")
            origin = Origin(f"{message.subject}@{message.sequence}", message.subject, run, time=message.time)
            return [NodeEvent(node + TOLD, origin, codecs.JSON, message.data)]
        events = unpack_frame(message.data)
        if not all(is_time(e.origin.time) and 0 <= e.attempts < MOST_ATTEMPTS for e in events):
            raise DecodeError("a frame with a time or a number of attempts that no event has")
        return [e._replace(data=stored.data) for e in events] if stored is not None else events
