"""Whether the operators of a test give the same again: what was taken is processed once more, from the log, and compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from dspex.bus.port import Bus
from dspex.engine.replay.partition import PartitionReplay
from dspex.engine.runtime.stage import StageRunner
from dspex.engine.runtime.walk.compile import Stage

_WHY: Final = """\
A function behind it depends on more than its data, its state and its context: on chance, a clock, what it keeps between calls,
or the order of a set.
fix: take ctx.now, ctx.random and ctx.uuid(); keep what it remembers as state (stateful); ask the world in a call (enrich)"""


@dataclass(frozen=True)
class Log:
    """The log of a partition, and what replays it. `source_stream`: where its source is read. `count`: of partitions."""

    stage: Stage
    source_stream: str
    index: int
    count: int
    limit: int


def logs_of(runners: Iterable[StageRunner]) -> list[Log]:
    """Those that may have taken anything."""
    found: list[Log] = []
    for r in runners:
        idle = {p.index for p in r.partitions.values() if not p.tables.positions.rows}
        found += [Log(r.stage, r.source_stream, index, r.count, r.s.limit) for index in range(r.count) if index not in idle]
    return found


async def first_difference(bus: Bus, app: str, logs: Iterable[Log]) -> str | None:
    """What gives something else now, in words; None for nothing. Raises BusError.

    A function that failed, then or now, need not be one that is not the same: tests let functions fail once, and redrive.
    """
    for log in logs:
        replay = PartitionReplay(bus, app, log.stage, log.source_stream, log.index, log.count, log.limit)
        async for difference in replay.differences():
            if replay.excused:
                break  # all that follows may differ because of it
            stage, graph = log.stage.name, log.stage.graph.name
            return f"{graph}: what {stage} took gives something else when it is processed again: {difference.what}\n{_WHY}"
    return None
