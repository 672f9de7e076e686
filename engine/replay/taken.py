"""What an entry of a log says that its commit took: the same arrivals again, of what lies there now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any, Final

from dspex.bus import subjects
from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.bus.records import NodeEvent
from dspex.bus.serving.keys.hashes import is_damaged
from dspex.engine.log.entries import readable
from dspex.engine.log.rows import Place, Position
from dspex.engine.replay import damage
from dspex.engine.replay.ahead import Ahead, HowMany, inputs_of
from dspex.engine.replay.marks import marked
from dspex.engine.replay.stored import StoredCommit
from dspex.engine.runtime.arrival import Arrival, Gap, Mark, Reset
from dspex.engine.runtime.batch import mark_of
from dspex.engine.runtime.inputs.events import EventsInput
from dspex.engine.runtime.inputs.input import Input
from dspex.engine.runtime.inputs.records import RecordsInput
from dspex.engine.runtime.inputs.source import SourceInput
from dspex.engine.runtime.inputs.timers import TimersInput
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.walk.compile import Stage
from dspex.engine.runtime.walk.request import Address

_GONE: Final = ("payload_gone", "record_gone")  # marks of what had no body when it was taken


async def _unchecked(partitions: Sequence[Partition], clock: float) -> float:
    """Nothing is read from a position here."""
    return 0.0


class TakenAgain:
    """Reads what the partitions of a stage take. `timer`: the number that a timer has now."""

    def __init__(self, bus: Bus, app: str, stage: Stage, source_stream: str, count: int, timer: Callable[[int], int]) -> None:
        self._bus, self._app, self._stage, self._source_stream, self._timer = bus, app, stage, source_stream, timer
        self._source = (
            SourceInput(bus, app, stage, stage.source, source_stream, count, _unchecked, asyncio.Event())
            if stage.source
            else None
        )
        records = RecordsInput(bus, app, stage)
        inputs: list[Input | None] = [
            self._source,
            EventsInput(bus, app, stage.graph.name, stage.id, self._source),
            records,
            TimersInput(bus, app, self._source, asyncio.Event(), records, lambda: 0.0),
        ]
        self._inputs = {one.name: one for one in inputs if one is not None}
        self._logs = dict[str, Ahead]()

    async def begin(self, address: Address, reads: HowMany, lasts: Mapping[str, int]) -> None:
        """Read the logs of one partition from now on. `lasts`: see PartitionReplay. Raises BusError."""
        self._logs = inputs_of(self._bus, address, self._stage, self._source_stream, reads, lasts)
        if self._source is not None:
            info = await self._bus.stream(self._source_stream)
            self._source.created = info.created if info is not None else 0.0

    async def arrivals(self, p: Partition, taken: Sequence[Any], runs: Collection[str] | None) -> AsyncIterator[Arrival]:
        """A run of arrivals, each made when the one before it was taken. `runs`: those that count; None: all.

        Raises RecordingIncomplete for what is not there as it was taken.
        """
        input, start, stop, count, clock, *more = taken
        mark: Sequence[Any] | None = more[0] if more else None
        first, last = (at if isinstance(at, int) else at[0] for at in (start, stop))
        if mark and (made := _no_message(input, first, clock, mark)) is not None:
            yield made
            return
        reader = self._inputs[input]
        timer = Message(str(p.index), b"", {}, self._timer(first))  # the number of a timer is its sequence
        for message in [timer] if input == "timers" else await self._logs[input].between(first, last):
            if reader.owner(message) != p.index:
                continue
            at_once = reader.at_once(p, message, clock)  # which takes no damaged record
            if at_once is None and is_damaged(message) and not (mark and mark[0] == "record_gone"):
                raise damage.of_record(message)  # it was not when it was taken
            for arrival in (at_once,) if at_once is not None else await reader.arrivals(p, message, clock):
                if count:
                    count -= 1
                    if at_once is None and (now := mark_of(arrival)) is not None and now[0] in _GONE and now != _plain(mark):
                        await damage.need_body(self._bus, self._app, message, arrival, runs)
                    yield marked(arrival, mark) if mark else arrival

    def sent(self, message: Message) -> NodeEvent | None:
        """What the source of the stage makes of a message; None where it has none."""
        return self._source.event(message) if self._source is not None else None

    async def need_frames(self, taken: Sequence[Sequence[Any]]) -> None:
        """Raise RecordingIncomplete where frames that were taken are not what the commits stored that made them."""
        stream, logs = subjects.stream(self._app), subjects.log(self._app, "*", "*", "*")
        for at in [one[1:3] for one in taken if one[0] == "events" and len(one) == 5]:
            first, last = (place if isinstance(place, int) else place[0] for place in at)
            for frame in await self._logs["events"].between(first, last):
                behind = await self._bus.next(stream, logs, frame.sequence + 1)
                entry = readable(behind.data) if behind is not None else None
                if behind is not None and entry is not None and behind.sequence - entry.get("covers", 0) <= frame.sequence:
                    await StoredCommit(self._bus, self._app, behind.sequence, entry).need_unchanged()


def _plain(mark: Sequence[Any] | None) -> tuple[Any, ...] | None:
    return tuple(mark) if mark else None


def _no_message(input: str, at: int, clock: float, mark: Sequence[Any]) -> Arrival | None:
    """The arrival that lies in no log; None where it does."""
    if mark[0] in ("gap", "moved", "watermark"):
        what = Gap(mark[1], mark[2]) if mark[0] == "gap" else Mark(mark[1]) if mark[0] == "watermark" else None
        return Arrival(Place(input, at), Position(*mark[-1]), clock, what)
    if mark[0] == "reset":
        return Arrival(Place(input, at), Position(*mark[-1]), clock, Reset(mark[1]))
    return None
