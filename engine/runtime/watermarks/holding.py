"""Who holds the watermark of a stage, for people who wonder why a window does not end."""

from __future__ import annotations

from math import inf

from dspex.engine.graph.nodes import StateNode
from dspex.engine.log.rows import NO_MARK
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.stage import StageRunner
from dspex.engine.runtime.watermarks.reached import newest


def held(r: StageRunner) -> dict[str, float]:
    """Nodes that let nothing behind them see how far the stage is: by how many seconds of event time.

    An open window is none of them: it waits for its end and its lateness, and nothing else.
    """
    found: dict[str, float] = {}
    holders = _holders(r) if r.stage.graph.timed else {}
    now = r.s.clock()
    for p in r.partitions.values() if holders else ():
        if not p.tables.calls.rows and not p.tables.timers.rows:
            continue
        holds = {node: at for node in holders if (at := p.tables.hold(node, now)) < inf}
        mark = _mark(r, p) if holds else NO_MARK  # it takes a while, and there may be thousands of partitions
        for node, at in holds.items():
            behind = mark - holders[node] - at
            if mark > NO_MARK and behind >= 0:
                found[node] = max(round(behind, 3), found.get(node, 0.0))
    return found


def _mark(r: StageRunner, p: Partition) -> float:
    """The watermark of the stage, of which the clock makes more while its source is silent."""
    mark = r.stater.mark(p) if r.stater is not None else newest(p)
    return mark if mark is not None else NO_MARK


def _holders(r: StageRunner) -> dict[str, float]:
    """Nodes that something waits for which goes by event time, with the seconds by which what they let out may be late."""
    clocks, found = r.stage.clocks, dict[str, float]()
    timed = [name for name, node in r.stage.states.items() if node.state.event_time]
    for name in [*timed, *r.stage.says]:
        for node, _ in clocks[name].holders:
            state = r.stage.states.get(node)
            own = state.state.delay if isinstance(state, StateNode) else 0.0
            found[node] = own + (clocks[node].delay if node in clocks else 0.0)
    return found
