"""What lies in the logs of a partition's inputs, as a replay takes it: from front to back.

A log entry takes a few messages. To ask for those of each entry by themselves costs far more than to process them, so that of a
log that is replayed wholly the next ones are read with them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Final, Literal, TypeAlias

from dspex.bus import subjects
from dspex.bus.message import Message
from dspex.bus.port import PAGE_MESSAGES, Bus
from dspex.engine.log.rows import NONE
from dspex.engine.runtime.walk.compile import Stage
from dspex.engine.runtime.walk.request import Address

_FEW: Final = 32  # messages that are read at first, where not all that lie there are taken
HowMany: TypeAlias = Literal["all", "many", "few"]
"""How many of the messages of a log are taken."""
_sequence = attrgetter("sequence")


class Ahead:
    """The messages of some subjects. `reads`: all of them will be asked for, about in order, or many, or few. `end`: the last
    one that will be.
    """

    def __init__(self, bus: Bus, stream: str, filters: Sequence[str], reads: HowMany, end: int = NONE) -> None:
        self._bus, self._stream, self._filters, self._whole = bus, stream, filters, reads != "few"
        self._end = end
        self._found, self._first, self._last = list[Message](), 1, 0  # what is read, from where to where
        self._size = PAGE_MESSAGES if reads == "all" else _FEW  # of the next page

    async def between(self, first: int, last: int) -> list[Message]:
        """Those that lie from one sequence to another. Raises BusError."""
        if not self._whole or (self._last and first < self._first):
            return await self._bus.scan(self._stream, self._filters, start=first, stop=last)
        del self._found[: bisect_left(self._found, first, key=_sequence)]
        self._first = first
        if first > self._last + 1:
            self._last = first - 1
        while self._last < last and (info := await self._bus.stream(self._stream)) is not None:
            stop = max(last, min(info.last, self._end))
            page = await self._bus.page(self._stream, self._filters, start=self._last + 1, stop=stop, most=self._size)
            self._found += page
            self._last = page[-1].sequence if len(page) == self._size else stop
            self._size = min(2 * self._size, PAGE_MESSAGES)
        return self._found[: bisect_right(self._found, last, key=_sequence)]


def inputs_of(
    bus: Bus, a: Address, stage: Stage, source_stream: str, reads: HowMany, lasts: Mapping[str, int]
) -> dict[str, Ahead]:
    """The logs of the inputs of a partition, by input; but for timers, which have none. `lasts`: see PartitionReplay."""
    stream, where = subjects.stream(a.app), (a.app, a.topology, a.stage, a.partition)
    of = {
        "events": (stream, [subjects.edge(*where), subjects.decision(*where)]),
        "records": (stream, [subjects.record(a.app, "*", a.topology, a.stage, a.partition)]),
    }
    if stage.source is not None:
        of["source"] = source_stream, [stage.source.subject]
    return {name: Ahead(bus, *log, reads, lasts.get(name, NONE)) for name, log in of.items()}
