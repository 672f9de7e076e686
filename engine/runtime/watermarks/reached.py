"""Which timers of a partition its watermark has reached, and the watermark as an arrival.

What a partition has heard stays in memory while nothing depends on it, and is read again after a restart. It becomes an
arrival, and so durable, only when it wakes something.
"""

from __future__ import annotations

from dspex.engine.log.rows import NO_MARK, Place, Position
from dspex.engine.runtime.arrival import Arrival, Due, Mark, Woken
from dspex.engine.runtime.partition import Partition


def newest(p: Partition) -> float:
    """The watermark of the stage as the partition knows it, taken or not."""
    taken = p.tables.position("time").mark
    lowest = p.heard.lowest(taken) if p.heard is not None else None
    return max(taken, lowest if lowest is not None else NO_MARK)


def reached(p: Partition, mark: float, now: float) -> int | None:
    """The number of the first timer that the watermark of its node has reached. `mark`: of the stage."""
    clocks, tables = p.process.stage.clocks, p.tables
    return tables.timers.reached(mark, lambda node: clocks[node].at(tables, mark, now) if node in clocks else mark)


def next_arrival(p: Partition, now: float) -> Arrival | None:
    """What a partition takes next because of its watermark; None for nothing.

    What is half committed comes first: windows that ended meanwhile would miss it.
    """
    if splits := p.tables.splits.rows:
        halves = (sequence for input, sequence, _ in sorted(splits) if input == "timers")
        number = next((n for n in halves if (timer := p.tables.timers.rows.get(n)) is not None and timer.kind == "mark"), None)
        return _due(p, number, now) if number is not None else None
    if not p.tables.timers.rows:
        return None  # most of many partitions, at each statement
    mark, taken = newest(p), p.tables.position("time").mark
    number = reached(p, mark, now)
    waking = any(timer.kind == "wake" for _, timer in p.tables.timers.due(now)) if number is None and mark > taken else False
    if mark > taken and (number is not None or waking):  # what wakes up is to know it
        return Arrival(Place("time", 0), Position(mark=mark), now, Mark(mark))
    if number is None:
        return None
    return _due(p, number, now)


def _due(p: Partition, number: int, now: float) -> Arrival:
    return Arrival(Place("timers", number), None, now, Due(number, p.tables.timers.rows[number], Woken()))
