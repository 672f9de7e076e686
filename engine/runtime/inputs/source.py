"""The events of a source."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import ClassVar, Literal

from dspex.bus import codecs, subjects
from dspex.bus.codecs import tracing
from dspex.bus.errors import BusError, SourceGap, Unreachable
from dspex.bus.message import SEQUENCE, Message, cause_of, content_type, event_time, opened, partition_of, place_form, spread_of
from dspex.bus.port import Bus, Reader, Sealing
from dspex.bus.records import NodeEvent, Origin
from dspex.bus.serving import payloads
from dspex.engine.graph.boundary import is_before
from dspex.engine.graph.nodes import Source
from dspex.engine.log.rows import NO_MARK, Place, Position
from dspex.engine.runtime.arrival import Arrival
from dspex.engine.runtime.failure import Failure, attempt
from dspex.engine.runtime.inputs.input import Input
from dspex.engine.runtime.inputs.tables_first import TablesFirst
from dspex.engine.runtime.inputs.upto import BOUNDARY, UpTo, meeting
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.walk.compile import Stage
from dspex.engine.runtime.watermarks.heard import AHEAD

_READ_HERE = subjects.OWN_HEADERS | {subjects.TRACEPARENT, subjects.TRACESTATE}
_INHERITED = (subjects.RUN, subjects.KEY, subjects.SESSION, subjects.TRACEPARENT)
_new = tuple.__new__  # the class itself as constructor takes twice as long, and five are made for every event


def time_of(source: Source, event: NodeEvent) -> float | None:
    """The event time that a source's own function gives; None where it fails, which is said when the event is walked."""

    def found() -> float:
        whole = opened(event)
        data = codecs.decode(whole.data, whole.content_type)
        return source.time(source.accept(data) if source.accept else data).timestamp() if source.time else whole.origin.time

    at = attempt(found, lambda: source.subject)
    return None if isinstance(at, Failure) else at


def without_time(at: Position) -> bool:
    """Whether it is not known when its last event was stored: it was moved on, over messages of other subjects or a gap."""
    return at.created > 0.0 and not at.time


class SourceNotThere(SourceGap):
    """The source's stream is not there."""


class SourceInput(Input):
    """The events of a source.

    Attributes:
        created: when the stream was made; ids of events depend on it. 0 until that is known.
        settings: of the source, as the topology says.
        highest: the highest event time of what was read, whatever partition it is for. counted: when the last event was stored
            whose time counts for that; of what was taken before it is not known, so it counts from the last one. It does not go
            back while that is read again: what was taken since would be silence.
        tables: what is to be read before it; None for nothing.
        free: set while nothing holds it back; see `hold_back`.
        upto: up to when it brings what is stored, where it may not go further yet.
        readable: whether the source could be read when it was looked at last. missing: whether its stream was not there then.

    `check` compares positions with the stream, and gives when that was made. Raises SourceGap. `room`: set while the
    application's stream has room for what a source brings. `clock`: None where nothing depends on the watermark.
    """

    name: ClassVar[str] = "source"
    gated: ClassVar[bool] = True

    def __init__(
        self,
        bus: Bus,
        app: str,
        stage: Stage,
        source: Source,
        stream: str,
        count: int,
        check: Callable[[Sequence[Partition], float], Awaitable[float]],
        room: asyncio.Event,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._bus, self._app, self._stage, self.stream, self._count, self._check = bus, app, stage, stream, count, check
        self.room, self._node, self.settings = room, stage.name, source
        self.created, self.readable, self.missing = 0.0, False, False
        self.highest, self.counted = NO_MARK, 0.0
        self.tables: TablesFirst | None = None
        self.free, self._held = asyncio.Event(), dict[str, Sequence[str]]()
        self.free.set()
        self.upto, self._in_lane = UpTo(), any(stage.name in lane.sources for lane in stage.graph.lanes.values())
        self.upto.set(BOUNDARY, meeting(stage.graph, stage.name).boundary)
        self._clock, self._seen = clock, (0, NO_MARK)
        self._form = (0.0, "")  # of the ids of its events, and the `created` that it is for

    async def open(self, partitions: Sequence[Partition], after: int, name: str) -> Reader:
        filters, places = [self.settings.subject], [p.tables.position("source") for p in partitions]
        if self.tables is not None and not any(at.created for at in places):  # else it has taken something
            await self.tables.wait()
        # The stream may be rolled back and filled again since `verify` looked: the reader would not see that by itself.
        time = max((at.time for at in places if at.sequence == after and at.created == self.created), default=0.0)
        reader = await self._bus.reader(self.stream, filters, after=after, name=name, created=self.created, time=time)
        boundary = self.upto.of(BOUNDARY)
        if boundary is not None and not all(is_before(at.time, boundary) for at in places):  # it has been there
            self.upto.set(BOUNDARY, None)
        return _WhileThereIsRoom(reader, (self.room, self.free), self.upto, self._bus.sealing)

    @property
    def waits_for(self) -> dict[str, str]:
        """Sources that it waits for, as a "table" that is to be read first or as "behind" in event time; and stages, with too
        much "unread"."""
        tables = self.tables.waits_for if self.tables is not None else []
        return {**{name: why for why, names in self._held.items() for name in names}, **dict.fromkeys(tables, "table")}

    def hold_back(self, why: Literal["behind", "unread"], names: Sequence[str]) -> bool:
        """Wait for these from now on, or for nobody for that reason; whether it begins to wait for it."""
        begins = bool(names) and not self._held.get(why)
        self._held[why] = names
        (self.free.clear if any(self._held.values()) else self.free.set)()
        return begins

    async def verify(self, partitions: Sequence[Partition], clock: float) -> None:
        self.missing = False
        try:
            self.created, self.readable = await self._check(partitions, clock), True
        except BusError as e:
            # `created` stays: what was fetched before is still handled
            self.readable, self.missing = False, isinstance(e, SourceNotThere)
            raise

    async def begin(self, partitions: Sequence[Partition]) -> int:
        self.highest = NO_MARK  # what was read before may have been passed over: it is read again
        self._seen = (0, NO_MARK)  # a stream that was made anew has another message there
        places = [p.tables.position("source") for p in partitions]
        self.counted = max((at.time for at in places), default=0.0)
        if self._clock is not None:
            if any(map(without_time, places)):
                last = await self._bus.last(self.stream, self.settings.subject)
                self.counted = last.time if last is not None else 0.0
            self.counted = self.counted or self._clock()
        return await super().begin(partitions)

    async def made(self) -> float:
        """When the stream was made, also before it is read: ids of its events depend on it. Raises Unreachable."""
        if not self.created:
            info = await self._bus.stream(self.stream)
            if info is None:
                raise Unreachable(f"stream {self.stream} is not there", fix="create it again, or apply the topology: dspex run")
            self.created = info.created
        return self.created

    async def is_there(self) -> bool:
        """Whether its events can be read now. Nobody else looks at a source that was dropped."""
        if self._stage.dropped:
            with suppress(BusError):
                self.readable = await self._bus.has("stream", self.stream)
        return self.readable

    async def is_gone(self) -> bool:
        """Whether its events can never be read again: the topology has it no more, and somebody deleted its stream."""
        with suppress(BusError):
            return self._stage.dropped and not await self._bus.has("stream", self.stream)
        return False

    def owner(self, message: Message) -> int:
        if self._clock is not None and (at := self._time(message)) > NO_MARK:
            self.highest, self.counted = max(self.highest, at), max(self.counted, message.time)
        return partition_of(spread_of(message), self._count) if self._count > 1 else 0

    def _time(self, message: Message) -> float:
        """The event time of a message, as far as it counts for the watermark: one ahead of the clock would end all windows."""
        if self._seen[0] != message.sequence:
            at = self._time_of(message)
            counts = self._clock is None or at <= self._clock() + AHEAD
            self._seen = (message.sequence, at if counts else NO_MARK)
        return self._seen[1]

    def _time_of(self, message: Message) -> float:
        source = self.settings
        if source.time is None:
            own = subjects.TIME in message.headers and subjects.AT not in message.headers  # else its time is to come
            return event_time(message).timestamp() if own else message.time
        at = time_of(source, self.event(message))
        return NO_MARK if at is None else at

    def _mark(self, p: Partition, message: Message) -> float:
        """The watermark of a partition once it has taken a message."""
        return max(p.tables.position("source").mark, self._time(message)) if self._clock is not None else NO_MARK

    def at_once(self, p: Partition, message: Message, clock: float) -> Arrival | None:
        headers, sequence = message.headers, message.sequence
        if subjects.CLAIM_CHECK in headers or subjects.SEALED in headers:  # payloads.is_whole, written out
            return None
        place = _new(Place, ("source", sequence, -1))
        mark = NO_MARK if self._clock is None else self._mark(p, message)
        position = _new(Position, (sequence, -1, self.created, message.time, mark))
        return _new(Arrival, (place, position, clock, self.event(message), headers, None, False, ""))

    async def arrivals(self, p: Partition, message: Message, clock: float) -> Sequence[Arrival]:
        arrival = self.at_once(p, message, clock)
        if arrival is not None:
            return [arrival]
        whole = await payloads.checked_out(self._bus, self._app, message)
        mark = self._mark(p, message)
        place, position = Place("source", message.sequence), Position(message.sequence, -1, self.created, message.time, mark)
        found = whole or message  # its headers go into a letter: the same whether the reader has opened it or not
        return [Arrival(place, position, clock, self.event(found), found.headers, None, whole is None)]

    def event(self, m: Message) -> NodeEvent:
        """The event that a message of the source holds."""
        if self._form[0] != self.created:
            self._form = (self.created, place_form(self.stream, self.created))
        subject, data, h, sequence, time = m[:5]
        ms, node = int(time * 1000), self._node
        id = self._form[1] % (ms >> 16, ms & 0xFFFF, sequence & SEQUENCE)  # place_id, written out: it is made for every event
        if not h or (len(h) == 1 and subjects.MESSAGE_ID in h):  # the usual case: the event has no headers of ours
            plain = _new(Origin, (id, subject, id, None, None, None, time, sequence, None, None, None, None))
            return _new(NodeEvent, (node, plain, codecs.JSON, data, None, None, 0))
        at, get = event_time(m).timestamp() if subjects.TIME in h or subjects.AT in h else time, h.get
        own = None if _READ_HERE.issuperset(h) else _publishers(h)
        run, key, session, trace = map(get, _INHERITED)
        if trace is not None:
            trace = tracing.joined(trace, get(subjects.TRACESTATE))
        origin = _new(Origin, (id, subject, run or id, cause_of(h), key, session, at, sequence, trace, own, None, None))
        if self._in_lane and subjects.AT in h:  # it comes about when its time has come: on that side of the boundary
            ms = int(max(at, time) * 1000)
            origin = origin._replace(id=self._form[1] % (ms >> 16, ms & 0xFFFF, sequence & SEQUENCE))
        said = get(subjects.CONTENT_TYPE) or (content_type(own) if own else None)
        return _new(NodeEvent, (node, origin, said or codecs.JSON, data, None, None, 0))


def _publishers(headers: Mapping[str, str]) -> Mapping[str, str] | None:
    """Those of the headers that are neither ours nor the server's."""
    return {k: v for k, v in headers.items() if k not in _READ_HERE and not k.startswith(subjects.FROM_SERVER)} or None


class _WhileThereIsRoom:
    """Reads a source, and waits until it may go on: while the application's stream is nearly full, it may not. It opens what it
    can of sealed events, so that a key is not asked for after another.
    """

    def __init__(self, reader: Reader, may: Sequence[asyncio.Event], upto: UpTo, sealing: Sealing | None) -> None:
        self._reader, self._may, self._upto, self._sealing = reader, may, upto, sealing
        self._later: list[Message] = []  # what was read, and may not go on yet

    async def read(self, limit: int) -> list[Message]:
        self._later = self._later or await self._reader.read(limit)
        for event in self._may:
            await event.wait()
        count = await self._upto.part(self._later) if self._upto.ends else len(self._later)
        messages, self._later = self._later[:count], self._later[count:]
        return messages if self._sealing is None else await self._sealing.opened_early(messages)

    async def close(self) -> None:
        await self._reader.close()
