"""The input "timers": the partition's own table, read in the order (due, number)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import ClassVar

from dspex.bus import subjects
from dspex.bus.errors import NotStored, Unreachable
from dspex.bus.message import Message
from dspex.bus.port import Bus, Reader
from dspex.bus.records import NodeEvent, StoredAt
from dspex.bus.seldom import logger
from dspex.bus.serving import payloads
from dspex.engine.log.reading import stored, stored_in
from dspex.engine.log.rows import NONE, Place, Timer
from dspex.engine.runtime.arrival import Answered, Arrival, Due, Woken
from dspex.engine.runtime.inputs.events import EventsInput
from dspex.engine.runtime.inputs.input import Input
from dspex.engine.runtime.inputs.lost import LostRequests
from dspex.engine.runtime.inputs.records import RecordsInput, answered, requested
from dspex.engine.runtime.inputs.source import SourceInput
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.watermarks.reached import next_arrival

_log = logger("dspex.engine")
TICK = 0.1  # seconds until a timer is looked at again that is due, and cannot be handled yet
MARKED = 0  # in place of the number of a timer: whatever the watermark of the partition wakes next
MOST_AT_ONCE = 64  # of those, before other partitions have their turn
OPEN_TICK = 1.0  # the same while something is open or waits: it may end by what nobody tells us, such as a call that was lost
IDLE_TICK = 10.0  # the same while nothing is: the first timer wakes us, and each watermark


class TimersInput(Input):
    """Timers that are due.

    Args:
        source: of the stage; None behind hops. alarm: set when a timer may have become due.
        lost: finds calls to ask again; None where nobody asks workers.

    Attributes:
        waiting: operators whose timers are not handled now: those that begin something, in a pause.
    """

    name: ClassVar[str] = "timers"
    gated: ClassVar[bool] = False

    def __init__(
        self,
        bus: Bus,
        app: str,
        source: SourceInput | None,
        alarm: asyncio.Event,
        records: RecordsInput,
        clock: Callable[[], float],
        lost: LostRequests | None = None,
    ) -> None:
        self._bus, self._app, self._stream, self._source = bus, app, subjects.stream(app), source
        self._alarm, self._records, self._clock, self._lost = alarm, records, clock, lost
        self.waiting: Collection[str] = ()

    async def open(self, partitions: Sequence[Partition], after: int, name: str) -> Reader:
        return _Clockwork(self, partitions)

    async def verify(self, partitions: Sequence[Partition], clock: float) -> None:
        """A table has no gap."""

    def owner(self, message: Message) -> int:
        return int(message.subject)

    async def due(self, partitions: Sequence[Partition]) -> list[Message]:
        """The timers that are due now, as messages: the partition as subject, the number as sequence."""
        self._alarm.clear()
        now, found = self._clock(), []
        for p in partitions:
            if p.revoked:
                continue  # nobody takes them, so they would be found again at once, for ever
            if not p.tables.timers.rows and not p.closing:
                continue  # an open call has a timer, too
            if self._closes(p, now):
                found += [Message(str(p.index), b"", {}, MARKED)] * MOST_AT_ONCE
                continue
            due = p.tables.timers.due(now)
            if any(timer.kind == "deadline" for _, timer in due):
                until = await self._records.taken_until(p, now)
                due = [(number, timer) for number, timer in due if timer.kind != "deadline" or timer.due <= until]
            for number, timer in due:
                if timer.node in self.waiting:
                    continue
                row = p.tables.calls.rows.get(number)
                if timer.place is None and timer.kind != "wake" and not (row is not None and row.work):
                    continue  # its request is in a commit whose answer has not come yet, though its record may have
                if await self._waits(timer):
                    continue
                found.append(Message(str(p.index), b"", {}, number))
            if self._lost is not None and not found:
                found += [Message(str(p.index), b"", {}, number) for number in await self._lost.of(p)]
        if not found:
            try:
                first = min((p.tables.timers.first for p in partitions), default=NONE)
                wait = first - self._clock()  # at 0 or below it cannot be taken now: not yet, or somebody else is asked first
                tables = [p.tables for p in partitions]
                busy = any(p.closing for p in partitions) or any(t.calls.rows or t.timers.put_off for t in tables)
                most = OPEN_TICK if busy else IDLE_TICK
                async with asyncio.timeout(min(wait if wait > 0 else TICK, most)):
                    await self._alarm.wait()
            except TimeoutError:
                return []
        return found

    def _closes(self, p: Partition, now: float) -> bool:
        """Whether the watermark of a partition has something to wake. Until that is done nothing else is admitted to it."""
        closes = next_arrival(p, now) is not None
        if p.closing and not closes:
            p.closing = False
            p.room.set()
        p.closing = closes
        return closes and not p.full

    async def _waits(self, timer: Timer) -> bool:
        """Whether the event that was put off cannot be read now: it waits until the source is there again."""
        source = self._source_of(timer.place)
        return source is not None and not await source.is_there() and not await source.is_gone()

    def _source_of(self, place: Place | None) -> SourceInput | None:
        """Where an event lies that was put off, if that is the source."""
        return self._source if place is not None and place.input == "source" else None

    async def arrivals(self, p: Partition, message: Message, clock: float) -> Sequence[Arrival]:
        if message.sequence == MARKED:
            arrival = next_arrival(p, clock) if not p.full else None
            return [arrival] if arrival is not None else []
        due = await self._fetched(p, message.sequence)
        if due is None or due.timer != self._timer(p, due):  # it changed meanwhile
            return []
        lost = due.payload
        return [Arrival(Place("timers", due.number), None, clock, due, stored=lost, gone=lost is not None)]

    def _timer(self, p: Partition, due: Due) -> Timer | None:
        """The timer as it is now."""
        timer, row = p.tables.timers.rows.get(due.number), p.tables.calls.rows.get(due.number)
        if timer is None or due.timer.kind != "again":
            return timer
        still = row is not None and self._lost is not None and self._lost.is_lost(p, due.number, row)
        return timer._replace(kind="again") if still else None

    async def _fetched(self, p: Partition, number: int) -> Due | None:
        """The timer with what its handling needs: the event that was put off, the record that is held, the request's event."""
        timer, row = p.tables.timers.rows.get(number), p.tables.calls.rows.get(number)
        what: NodeEvent | Answered | None = None
        if timer is not None and timer.kind in ("wake", "mark"):
            return Due(number, timer, Woken())
        if timer is None or (timer.place is None and row is None):
            return None
        if self._lost is not None and timer.due > self._clock():
            if row is None or not self._lost.is_lost(p, number, row):
                return None  # it was put off since it was due
            timer = timer._replace(kind="again")
        if timer.place is not None:
            return await self._event(number, timer, timer.place)
        if row is not None and timer.kind == "held":
            held = await stored(self._bus, self._stream, row.held)
            what = await answered(self._bus, self._app, p, held) if held is not None else None
        elif row is not None:
            what = await requested(self._bus, self._app, row.work, number)
        return Due(number, timer, what)

    async def _event(self, number: int, timer: Timer, place: Place) -> Due:
        """The timer of an event that was put off, with the event. Raises Unreachable while its stream is not there."""
        gone, message = Due(number, timer, None), await self._put_off(place, timer.time)
        if message is None:
            _log.error("an event that was put off is stored nowhere any more", run=timer.run, place=place)
            return gone
        whole = await payloads.checked_out(self._bus, self._app, message)
        if (source := self._source_of(place)) is not None:
            lost = StoredAt(source.stream, place.sequence) if whole is None else None
            return Due(number, timer, source.event(whole or message), lost)
        return Due(number, timer, EventsInput.events(whole, None)[place.item]) if whole is not None else gone

    async def _put_off(self, place: Place, time: float) -> Message | None:
        """The message of an event that was put off, stored at `time`; None where it is gone."""
        source = self._source_of(place)
        stream = source.stream if source is not None else self._stream
        if source is not None and await source.is_gone():
            return None
        try:
            if source is not None and time < await source.made():
                # The stream was made anew since, and nobody waits for its leader; or the server's clock was set back.
                message = await self._bus.get(stream, place.sequence)
            else:
                message = await stored_in(self._bus, stream, place.sequence)
        except NotStored as e:
            raise Unreachable(e.message, fix=e.fix) from e
        return message if message is not None and message.time == time else None


class _Clockwork:
    """Reads timers as a Reader reads messages."""

    def __init__(self, input: TimersInput, partitions: Sequence[Partition]) -> None:
        self._input, self._partitions = input, partitions

    async def read(self, limit: int) -> list[Message]:
        while not (found := await self._input.due(self._partitions)):
            pass
        await asyncio.sleep(0)  # a watermark may wake a hundred thousand at once, and nothing else here waits for anything
        return found[:limit]

    async def close(self) -> None:
        """There is nothing to close."""
