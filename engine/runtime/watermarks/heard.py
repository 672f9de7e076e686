"""What a partition has heard of the watermarks of the stages before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import Final

from dspex.bus import codecs
from dspex.bus.errors import DecodeError
from dspex.bus.message import Message
from dspex.bus.seldom import Seldom, logger
from dspex.engine.log.rows import NO_MARK

_log = logger("dspex.engine")
_seldom = Seldom(_log)
AHEAD: Final = 300.0  # seconds that an event may be ahead of the clock, so that its time counts for a watermark


def read(message: Message, counts: Mapping[str, int], now: float) -> tuple[str, Mapping[int, float | None]] | None:
    """The stage of a statement, and the watermarks of its partitions; None for what no engine has written.

    `counts`: stages that may be meant, with their partitions. A watermark is None where the partition has nothing to wait for.
    """
    stage = message.subject.split(".")[-2]
    try:
        said = codecs.decode(message.data, codecs.MSGPACK)
    except DecodeError:
        said = None
    count = counts.get(stage, 0)
    if isinstance(said, dict) and all(type(i) is int and 0 <= i < count and _sound(at, now) for i, at in said.items()):
        return stage, said
    _seldom.error("what is no statement of watermarks is passed over", subject=message.subject)
    return None


def _sound(at: object, now: float) -> bool:
    """Whether it can be a watermark. It may lie before the year 1, by the seconds by which operators may be late."""
    return at is None or (type(at) is float and NO_MARK <= at <= now + 2 * AHEAD)


class Heard:
    """The watermarks of all partitions before a stage, as one partition of it has heard of them.

    Args:
        counts: stages before it, with their partitions.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.counts = counts
        self._upto = 0
        self._marks: dict[tuple[str, int], float | None] = {}
        self._again: dict[tuple[str, int], float] = {}  # what was said before the reader began, and is still to be heard
        self._lowest: float | None = -inf  # of all; so low while that of one is not known

    def copy(self) -> Heard:
        """What was heard so far, for a partition that hears the rest at another time."""
        found = Heard(self.counts)
        found._upto, found._marks, found._lowest = self._upto, dict(self._marks), self._lowest
        found._again = dict(self._again)
        return found

    @classmethod
    def before(cls, counts: Mapping[str, int], said: Iterable[Message], after: int, now: float) -> Heard:
        """What was heard where a reader begins.

        Args:
            said: all statements that are stored. after: the message behind which the reader begins.
        """
        found, whole = cls(counts), cls(counts)
        for message in said:
            whole.hear(message, now)
            if message.sequence <= after:
                found.hear(message, now)
        for one, at in whole._marks.items():
            heard = found._marks.get(one)
            if at is not None and at > NO_MARK and (heard is None or heard < at):
                found._again[one] = at
        return found

    def hear(self, message: Message, now: float) -> None:
        """Take in a statement, once. Watermarks never go back, whoever states them."""
        found = read(message, self.counts, now) if message.sequence > self._upto else None
        if found is None:
            return
        self._upto, (stage, said) = message.sequence, found
        for index, at in said.items():
            before = self._marks.get((stage, index))
            if at is not None or before is None:
                self._marks[stage, index] = at if before is None or at is None else max(at, before)
            if at is not None and at >= self._again.get((stage, index), inf):
                del self._again[stage, index]
        if len(self._marks) == sum(self.counts.values()):
            self._lowest = min([at for at in self._marks.values() if at is not None], default=None)

    def lowest(self, taken: float) -> float | None:
        """The watermark of the stage; NO_MARK while nobody knows, None while nothing at all comes from before it.

        `taken`: the one that the partition has. What is behind it is a source that was added, and counts from where it is not.
        """
        for one, said in self._again.items():
            if said >= taken and ((heard := self._marks.get(one)) is None or heard < taken):
                return taken  # who had the partition before knew more of this one, which was not added: it is read again
        lowest = self._lowest
        if lowest is None or lowest >= taken:  # nearly always, and it is asked for every partition
            return lowest
        if lowest == -inf:
            return NO_MARK
        return min([at for at in self._marks.values() if at is not None and at >= taken], default=taken)
