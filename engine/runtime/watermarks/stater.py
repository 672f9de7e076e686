"""States the watermarks of what leaves a stage, for the stages behind its hops.

One message names all partitions that this engine has claimed, at most four times a second. It is stored after the commits
that it speaks of, in the same stream, so whoever reads that in order has read their events before. So it needs no fence: what
is said of a commit that is stored stays true, whoever owns the partition next. Only an idle source is another matter: there the
clock moves the watermark, and the server is asked first whether anything is unread, and whether the claims still stand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from dspex.bus import codecs, subjects
from dspex.bus.errors import BusError, Fenced
from dspex.bus.port import NewMessage
from dspex.bus.seldom import logger
from dspex.engine.log.rows import NO_MARK
from dspex.engine.runtime.inputs.source import SourceInput, without_time
from dspex.engine.runtime.inputs.upto import REST
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.pump import Pump
from dspex.engine.runtime.services import Services
from dspex.engine.runtime.walk.compile import Stage
from dspex.engine.runtime.watermarks.clocks import of_hops
from dspex.engine.runtime.watermarks.reached import newest

_log = logger("dspex.engine")
OFTEN: Final = 0.25  # seconds between two statements, at least
LOOK: Final = 2.0  # seconds between two looks at what moves by itself: idle sources, and holds that end
SELDOM: Final = 10.0  # the same of a source that has long been silent, and where nothing is open
KEPT: Final = 64  # statements after which the earlier ones are removed


class Stater:
    """Of one stage.

    Args:
        pump: of its source, or of its events. source: None behind hops. changed: set when a watermark may have moved.
    """

    def __init__(
        self,
        services: Services,
        stage: Stage,
        partitions: Mapping[int, Partition],
        pump: Pump,
        source: SourceInput | None,
        changed: asyncio.Event,
    ) -> None:
        self._s, self._stage, self._partitions, self._pump, self._source = services, stage, partitions, pump, source
        self._begins = any(node.state.begins for node in stage.states.values())
        self._clock = of_hops(stage.graph, stage.clocks, stage.says)
        self._subject = subjects.time(services.app, stage.graph.name, stage.id, services.engine)
        self._changed = changed
        self._every = LOOK
        self._idle: dict[int, float | None] = {}  # partition → what its source's silence makes of its watermark; None: no event
        self._said: dict[int, float | None] = {}
        self._sequences: list[int] = []

    def outward(self, p: Partition) -> float:
        """The watermark of what leaves a partition, by its tables: true once they are stored."""
        mark = p.tables.position("source").mark if self._source is not None else newest(p)
        return max(self._clock.at(p.tables, mark, self._s.clock()), NO_MARK)

    async def run(self) -> None:
        """State what changed until cancelled."""
        self._idle.clear()
        self._every = LOOK  # whoever had these partitions before may have been about to state what windows wait for
        while True:
            try:
                async with asyncio.timeout(self._every):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            try:
                if self._source is not None:
                    await self._look(self._source)
                else:
                    self._every = LOOK if any(_keeps(p) for p in self._partitions.values()) else SELDOM
                await self._state()
            except BusError as e:
                _log.debug("cannot state a watermark now, trying again", why=e.message)
            await asyncio.sleep(OFTEN)

    async def _state(self) -> None:
        mine = {index: self._watermark(p) for index, p in self._partitions.items() if not p.revoked}
        said = dict(self._said)  # of what others have now, too: it stays true, and who has it may know less for a while
        for index, at in mine.items():
            before = said.get(index)
            said[index] = at if before is None or (at is not None and at > before) else before
        if not mine or said == self._said:
            return
        ack = await self._s.bus.publish(NewMessage(self._subject, codecs.encode(said, "msgpack")[0]))
        self._said = said
        self._sequences.append(ack.sequence)
        if len(self._sequences) > KEPT:
            await self._s.bus.purge(self._s.stream, self._subject, below=self._sequences[-1])
            self._sequences = self._sequences[-1:]

    def _watermark(self, p: Partition) -> float | None:
        """Of a partition with nothing in flight: what its input has; else what its last commit that is stored has."""
        if not p.settled.is_set() or self._pump.catches_up(p) or self._pump.at is None:
            return max(p.mark, NO_MARK)
        mark = self.mark(p)
        return max(self._clock.at(p.tables, mark, self._s.clock()), p.mark, NO_MARK) if mark is not None else None

    def mark(self, p: Partition) -> float | None:
        """The watermark of the stage, of which nothing is held back; None where no source ever had an event."""
        if self._source is None:
            lowest = p.heard.lowest(p.tables.position("time").mark) if p.heard is not None else NO_MARK
            return newest(p) if lowest is not None else None
        idle = self._idle.get(p.index, NO_MARK)
        mark = max(p.tables.position("source").mark, self._source.highest, idle or NO_MARK)
        return None if idle is None and mark == NO_MARK else mark

    # -- sources that are silent ----------------------------------------------------------------------------------------
    async def _look(self, source: SourceInput) -> None:
        """See whether the silence of the source moves the watermark. Raises BusError."""
        now, read, partitions = self._s.clock(), self._pump.at, [p for p in self._partitions.values() if not p.revoked]
        taken = [p.tables.position("source") for p in partitions]
        highest = max([source.highest, *(at.mark for at in taken)], default=NO_MARK)  # before one asks: more is read then
        seen = max([self._pump.at_time, *(at.time for at in taken)], default=0.0)  # of none there is nothing to wait for
        # events that do not count do not move the watermark, so they are silence, too
        since = source.counted if any(map(without_time, taken)) else min(seen, source.counted)
        self._every = min(max(LOOK, (now - since) / 10), SELDOM)
        if read is None:
            self._every = LOOK
            return
        if now - since < source.settings.idle or source.upto.of(REST) is not None:
            return  # or it is to stand still, and with it what the watermark wakes
        last = await self._s.bus.last(source.stream, source.settings.subject)
        if last is not None and last.sequence > read:  # whatever is taken: another partition may not have taken what is before
            self._every = LOOK
            return
        for p in partitions:
            if p.settled.is_set() and not self._pump.catches_up(p) and await self._stands(p):
                self._idle[p.index] = self._silent(highest, since, now, source.settings.idle)

    def _silent(self, highest: float, since: float, now: float, idle: float) -> float | None:
        """What the silence of a source makes of its watermark; None for one that never had an event.

        `since`: when its last event was stored; 0 for none.
        """
        if highest > NO_MARK:
            return highest + (now - since) - idle
        if self._begins:  # its events are those of a schedule, whose next time holds this
            return now - idle
        # Where no event counts, all lie ahead of the clock: it has come to now, and what is open holds times to come.
        return now if since else None

    async def _stands(self, p: Partition) -> bool:
        """Whether the claim of a partition still stands, asked of the leader.

        One that does not is given up: who commits nothing would never find out, and nobody would say what its watermark is.
        """
        last = await self._s.bus.last(self._s.stream, p.log.address.subject)
        if p.revoked or not p.settled.is_set():
            return False
        if last is not None and last.sequence > p.log.sequence:
            p.owner.failed(p, Fenced(f"{p.log.address.subject} was claimed by another engine"))
            return False
        return last is not None and last.sequence == p.log.sequence


def _keeps(p: Partition) -> bool:
    """Whether a partition has anything that may hold a watermark back, or stop doing so, as time goes by."""
    return bool(p.tables.timers.rows or p.tables.calls.rows)


def stater(
    services: Services,
    stage: Stage,
    partitions: Mapping[int, Partition],
    pumps: Mapping[str, Pump],
    source: SourceInput | None,
    changed: asyncio.Event,
) -> Stater | None:
    """That of a stage; None where nobody asks for its watermarks."""
    if not stage.says:
        return None
    return Stater(services, stage, partitions, pumps["source" if source is not None else "events"], source, changed)
