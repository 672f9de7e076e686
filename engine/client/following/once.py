"""Reading a stream once for many runs: their histories lie side by side, and each looks at much of what the others do."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final, cast

from dspex.bus import subjects
from dspex.bus.message import Message
from dspex.bus.port import Bus, StreamInfo

_SIZE: Final = 512  # sequences of a block
_KEPT: Final = 16  # blocks
_WIDE: Final = 16 * _SIZE  # sequences from which on a question is one of its own, asked of the bus
_ALL: Final = (">",)
_sequence = attrgetter("sequence")


def reading_once(bus: Bus) -> Bus:
    """The bus, for who only reads: its streams end where they do when they are asked about first, and what lies near to what
    was read is not asked for again.
    """
    return cast("Bus", _ReadOnce(bus))


class _Block:
    """Messages that lie in a row. Those that match a filter are looked for once."""

    def __init__(self, messages: list[Message]) -> None:
        self._of: dict[str, list[Message]] = {">": messages}

    def matching(self, filter: str, start: int, stop: int) -> list[Message]:
        """From one sequence to another."""
        if filter not in self._of:
            self._of[filter] = [m for m in self._of[">"] if subjects.matches(filter, m.subject)]
        found = self._of[filter]
        return found[bisect_left(found, start, key=_sequence) : bisect_right(found, stop, key=_sequence)]


class _ReadOnce:
    """What is not written out here is asked of the bus itself."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._infos = dict[str, StreamInfo | None]()
        self._blocks = OrderedDict[tuple[str, int], _Block]()
        self._next = dict[tuple[str, str, int], Message | None]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def stream(self, name: str) -> StreamInfo | None:
        if name not in self._infos:
            self._infos[name] = await self._bus.stream(name)
        return self._infos[name]

    async def get(self, stream: str, sequence: int) -> Message | None:
        return next(iter(await self.scan(stream, _ALL, start=sequence, stop=sequence)), None)

    async def next(self, stream: str, subject: str, sequence: int) -> Message | None:
        """Where the stream is halved to find a time, the first questions are the same for each run."""
        block = self._blocks.get((stream, sequence // _SIZE)) if subject == ">" else None
        if block is not None and (found := block.matching(">", sequence, (sequence // _SIZE + 1) * _SIZE - 1)):
            return found[0]
        key = (stream, subject, sequence)
        if key not in self._next:
            self._next[key] = await self._bus.next(*key)
        return self._next[key]

    async def scan(self, stream: str, filters: Sequence[str], *, start: int, stop: int) -> list[Message]:
        info = await self.stream(stream)
        if info is None or stop - start >= _WIDE or stop > info.last:
            return await self._bus.scan(stream, filters, start=start, stop=stop)
        found = dict[int, Message]()
        for number in range(start // _SIZE, stop // _SIZE + 1):
            block = await self._block(stream, number, info.last)
            found |= {m.sequence: m for filter in filters for m in block.matching(filter, start, stop)}
        return [message for _, message in sorted(found.items())]

    async def _block(self, stream: str, number: int, last: int) -> _Block:
        key = (stream, number)
        if key not in self._blocks:
            start, stop = max(1, number * _SIZE), min(last, (number + 1) * _SIZE - 1)
            self._blocks[key] = _Block(await self._bus.scan(stream, _ALL, start=start, stop=stop))
            if len(self._blocks) > _KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        return self._blocks[key]
