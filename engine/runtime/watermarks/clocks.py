"""The watermark of each node: the time before which nothing reaches it any more.

It is that of the stage, held back by whatever is still to come out of the nodes that lead there: open calls, events that were
put off, and what operators keep to let out later. So a window may follow a call in one stage, and stays open for what the model
has not answered yet. The obvious alternative, one watermark for the partition, makes every answer late for a window behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import NamedTuple

from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import CallNode, HopNode, SourceNode, StateNode
from dspex.engine.log.rows import NO_MARK
from dspex.engine.log.tables import Tables


class NodeClock(NamedTuple):
    """How the watermark of a node follows from that of its stage.

    Attributes:
        delay: seconds by which the nodes before it may be late.
        holders: nodes before it that may keep something, with the seconds by which those in between may be late.
    """

    delay: float
    holders: tuple[tuple[str, float], ...]

    def at(self, tables: Tables, mark: float, now: float) -> float:
        """The watermark of the node. `mark`: of the stage; `now`: on the clock of the engine."""
        if mark <= NO_MARK:
            return -inf
        return min([mark - self.delay, *(tables.hold(node, now) - delay for node, delay in self.holders)])


def clocks(graph: Graph, entries: Iterable[str], nodes: Iterable[str]) -> dict[str, NodeClock]:
    """Those of all nodes of a stage, and of the hops that leave it.

    Args:
        entries: where events come in: its source, or hops. nodes: all that is in it, entries and hops that leave it too.
    """
    first, mine = set(entries), set(nodes)
    behind: dict[str, tuple[float, dict[str, float]]] = {}  # node → what holds whatever follows it
    found: dict[str, NodeClock] = {}
    for name, node in graph.nodes.items():  # every node comes after its inputs
        if name not in mine and name not in first:
            continue
        delay, holders = 0.0, dict[str, float]()
        if name not in first:
            for inlet in node.inputs:
                if inlet.node in behind:
                    before, held = behind[inlet.node]
                    delay = max(delay, before)
                    holders = {n: max(d, holders.get(n, 0.0)) for n, d in {**holders, **held}.items()}
            found[name] = NodeClock(delay, tuple(sorted(holders.items())))
        own = node.state.delay if isinstance(node, StateNode) else 0.0
        after = {n: d + own for n, d in holders.items()}
        if name in first or isinstance(node, (CallNode, StateNode)):
            after[name] = 0.0
        if name in first or not isinstance(node, (HopNode, SourceNode)):
            behind[name] = (delay + own, after)
    return found


def of_hops(graph: Graph, found: Mapping[str, NodeClock], hops: Iterable[str]) -> NodeClock:
    """The clock of what leaves a stage on all its hops together."""
    delay, holders = 0.0, dict[str, float]()
    for hop in hops:
        delay = max(delay, found[hop].delay)
        for node, late in found[hop].holders:
            holders[node] = max(late, holders.get(node, 0.0))
    return NodeClock(delay, tuple(sorted(holders.items())))
