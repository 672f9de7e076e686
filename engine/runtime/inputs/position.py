"""Whether what a stage has not read of its source yet is still there.

A stream that was trimmed or made anew shows no gap to a reader: it starts at what is left. So the position is compared with
the stream before the first delivery of every reader.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from dspex.bus import telemetry
from dspex.bus.errors import BusError, SourceGap
from dspex.bus.port import Bus, StreamInfo
from dspex.bus.seldom import logger
from dspex.engine.graph.nodes import Source
from dspex.engine.log.reading import PAUSES
from dspex.engine.log.rows import Place, Position
from dspex.engine.runtime.arrival import Arrival, Gap
from dspex.engine.runtime.inputs.source import SourceInput, SourceNotThere
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.pump import Pump

_log = logger("dspex.engine")
WATCH = 5.0  # seconds between looks at the source stream
LAG = 1000  # messages that a partition's position may lie behind what its process has read
LATE = 30.0  # seconds that it may: else a partition without events keeps what all others have read


class SourceCheck:
    """Compares the positions of partitions with the stream of their source."""

    def __init__(self, bus: Bus, stream: str, source: Source, start: int, counters: Counter[str]) -> None:
        self.bus, self.stream, self.source, self.start, self._counters = bus, stream, source, start, counters

    async def __call__(self, partitions: Sequence[Partition], clock: float) -> float:
        """When the source stream was made. Raises SourceGap where events were lost behind a position (`on_gap="stop"`)."""
        info = await self._stream(partitions)
        if info is None:
            why = f"the stream {self.stream} of source {self.source.subject!r} is not there"
            fix = "restore it, or make it again: then on_gap= says what happens"
            raise SourceNotThere(why, node=self.source.subject, fix=fix)
        places = [p.tables.position("source") for p in partitions]
        # asked of all at once: over a slow wire one after another would take minutes
        gaps = await asyncio.gather(*[self._gap(p, info, at) if at.created else _none() for p, at in zip(partitions, places)])
        for p, at, lost in zip(partitions, places, gaps):
            if not at.created:  # nothing was read up to there: it is where to begin
                if at.sequence < self.start:
                    self._move(p, self.start, info, clock, None)
                continue
            if lost is None:
                continue
            go_on, what = lost
            why = (
                f"{self.stream} was {what}: partition {p.index} had read up to {at.sequence}, the stream begins at {info.first}"
            )
            if self.source.on_gap == "stop":
                raise SourceGap(why, node=self.source.subject)
            _log.error("a gap in the source, recorded and skipped", why=why, source=self.source.subject)
            telemetry.emit("gap", **p.where, stream=self.stream, after=at.sequence, up_to=go_on)
            self._move(p, go_on, info, clock, Gap(at.sequence, go_on))
        return info.created

    async def _stream(self, partitions: Sequence[Partition]) -> StreamInfo | None:
        """The stream. Where it ends before a position, its new leader may not have all of it yet: that is waited for."""
        places = [p.tables.position("source") for p in partitions]
        info = await self.bus.stream(self.stream)
        for pause in PAUSES:
            if info is None or all(at.sequence <= info.last or at.created != info.created for at in places):
                break
            await asyncio.sleep(pause)
            info = await self.bus.stream(self.stream)
        return info

    def _move(self, p: Partition, to: int, info: StreamInfo, clock: float, gap: Gap | None) -> None:
        position = Position(to, -1, info.created if gap else 0.0, mark=p.tables.position("source").mark)
        p.take_in(Arrival(Place("source", to), position, clock, gap))

    async def _gap(self, p: Partition, info: StreamInfo, at: Position) -> tuple[int, str] | None:
        """(go on behind, what happened); None where nothing is missing."""
        begin = max(0, info.first - 1)
        if at.sequence > info.last:
            return begin, "made anew or truncated"
        if info.created != at.created:
            return begin, "made anew"
        there = await self.bus.get(info.name, at.sequence) if at.time else None
        if there is not None and there.time != at.time:  # rolled back to an older copy, and filled again
            return begin, "rolled back"
        if not info.own and info.first > at.sequence + 1:
            if info.subjects == (self.source.subject,):
                return begin, "trimmed"
            self._counters["possible_gap"] += 1
            telemetry.emit("possible_gap", **p.where, stream=info.name, read=at.sequence, first=info.first)
            _log.warning(  # what is gone may all have been of other subjects
                "a possible gap in the source: its stream was trimmed beyond what was read",
                stream=info.name,
                source=self.source.subject,
                read=at.sequence,
                first=info.first,
            )
        return None


class SourceWatch:
    """Looks at a source stream now and then while a stage reads it."""

    def __init__(self, bus: Bus, input: SourceInput, pump: Pump) -> None:
        self.bus, self.input, self.source, self.pump = bus, input, input.settings, pump
        self._behind: dict[int, float] = {}  # partition → since when its position lies behind what was read
        self._gone = False

    async def run(self, partitions: Sequence[Partition], clock: Callable[[], float]) -> str:
        """Look until the stream was made anew or trimmed, is gone, or is there again; what happened."""
        while True:
            try:
                if why := await self._look(partitions, clock):
                    return why
            except BusError as e:
                _log.debug("cannot look at the source now, trying again", why=e.message)
            await asyncio.sleep(WATCH)

    async def _look(self, partitions: Sequence[Partition], clock: Callable[[], float]) -> str:
        """Look once; what happened to the source, or "" and the positions are moved on to what the pump has read."""
        read, time = self.pump.at, self.pump.at_time  # before the stream is looked at, which goes on meanwhile
        info = await self.bus.stream(self.input.stream)
        if info is None:
            known, self._gone = self._gone or read is None, True  # who does not read yet finds out by itself
            return "" if known else "the source stream is gone"
        if self._gone or self.input.missing:
            return "the source stream is there again"
        if read is None:  # it still finds out where to begin, or cannot begin
            return ""
        begun = any(p.tables.position("source").created for p in partitions)  # else it may wait for a later place to begin
        if info.created != self.input.created or (begun and info.last < read):
            return "the source stream was made anew or truncated"
        if not info.own:
            last = await self.bus.last(info.name, self.source.subject)
            if last is None or last.sequence <= read:
                read, time = (info.last, 0.0) if info.last > read else (read, time)
            elif info.first > read + 1:
                return "the source stream was trimmed before it was read"
            alone = info.subjects == (self.source.subject,)  # else verify can only say that it is possible
            if alone and any(info.first > self.pump.reached(p) + 1 for p in partitions if self.pump.catches_up(p)):
                return "the source stream was trimmed before a partition that waits has read it"
        self._move_on(partitions, Position(read, -1, self.input.created, time), 0 if not info.own else LAG, clock())
        return ""

    def _move_on(self, partitions: Sequence[Partition], to: Position, lag: int, clock: float) -> None:
        """Bring positions to what the pump has read: a restart does not read it again, and finds no gap in it."""
        for p in partitions:
            sequence, time = self.pump.before[p.index] if self.pump.catches_up(p) else (to.sequence, to.time)
            behind = sequence - p.tables.position("source").sequence
            if p.revoked or behind <= 0:
                self._behind.pop(p.index, None)
            elif behind > lag or clock - self._behind.setdefault(p.index, clock) >= LATE:
                self._behind.pop(p.index, None)
                mark = p.tables.position("source").mark
                if not self.pump.catches_up(p):  # a restart does not read again what the others' events said, either
                    mark = max(mark, self.input.highest)
                moved = to._replace(sequence=sequence, time=time, mark=mark)
                p.take_in(Arrival(Place("source", sequence), moved, clock, None))


async def _none() -> None:
    return None
