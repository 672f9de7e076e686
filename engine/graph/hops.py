"""Hops: where an event changes its owner, and which of them lead to one stage.

Behind a hop an event belongs to the partition of its key. Hops whose ways meet share a stage, because an operator with two
inputs has its state in one place; all others have a stage each, so that they go at their own pace.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeAlias

from dspex.bus.errors import TopologyError
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import KEYED_PARTITIONS, HopNode, Node, StateNode

Known: TypeAlias = Mapping[str, tuple[str, int]]
"""Hop or source → (id of the stage that it leads to, its partitions)."""


def behind(graph: Graph, node: Node) -> Iterator[Node]:
    """The nodes that events of `node` reach without another hop, that hop itself included, in graph order."""
    reached = {node.name}
    for name, n in graph.nodes.items():  # every node comes after its inputs
        before = {i.node for i in n.inputs if i.node == node.name or not isinstance(graph.nodes[i.node], HopNode)}
        if before & reached:
            reached.add(name)
            yield n


def groups(graph: Graph) -> list[tuple[HopNode, ...]]:
    """The hops that lead to one stage, for each such stage, in graph order."""
    found: list[tuple[set[str], list[HopNode]]] = []
    for hop in graph.hops:
        mine = {n.name for n in behind(graph, hop) if not isinstance(n, HopNode)}
        met = [(nodes, hops) for nodes, hops in found if nodes & mine]
        found = [one for one in found if one not in met]
        found.append((mine.union(*(nodes for nodes, _ in met)), [*(h for _, hops in met for h in hops), hop]))
    order = list(graph.nodes)
    return sorted((tuple(hops) for _, hops in found), key=lambda hops: order.index(hops[0].name))


def timed(graph: Graph) -> set[str]:
    """The hops that watermarks are said over: those behind which something goes by event time, however far behind."""
    found: set[str] = set()
    for name, node in reversed(list(graph.nodes.items())):  # every node comes after its inputs
        if name in found or (isinstance(node, StateNode) and node.state.event_time):
            found |= {name, *(inlet.node for inlet in node.inputs)}
    return {hop.name for hop in graph.hops if hop.name in found}


def circles(graph: Graph) -> list[tuple[HopNode, HopNode]]:
    """Where the watermark of a stage would wait for itself: of each circle the last hop, and the first that leads there, too.

    A stage knows as little as the last of those before it. In a circle of them no window would ever end.
    """
    stage, says = {hop.name: hops[0] for hops in groups(graph) for hop in hops}, timed(graph)
    leads: dict[str, dict[str, None]] = {first.name: {} for first in stage.values()}  # the stages behind one, by first hops
    ways: list[tuple[str, HopNode]] = []
    for hop in graph.hops:
        for out in behind(graph, hop):
            if isinstance(out, HopNode) and out.name in says:
                leads[stage[hop.name].name][stage[out.name].name] = None
                ways.append((stage[hop.name].name, out))
    after = {name: _all_after(leads, name) for name in leads}
    found: dict[frozenset[str], HopNode] = {}
    for first, out in sorted(ways, key=lambda way: graph.hops.index(way[1])):
        if first in after[stage[out.name].name] or first == stage[out.name].name:
            found[frozenset(name for name in after[first] if first in after[name])] = out
    return [(hop, stage[hop.name]) for hop in found.values()]


def _all_after(leads: Mapping[str, Iterable[str]], name: str) -> set[str]:
    """What one leads to, and so on."""
    found, todo = set[str](), [*leads[name]]
    while todo:
        if (at := todo.pop()) not in found:
            found.add(at)
            todo += leads[at]
    return found


def keyed(graph: Graph) -> set[str]:
    """The nodes to which events come behind a hop only, so that each has a key."""
    found: set[str] = set()
    for name, n in graph.nodes.items():
        if isinstance(n, HopNode) or (n.inputs and all(i.node in found for i in n.inputs)):
            found.add(name)
    return found


def new_id(*stages: Known) -> str:
    """The id of a new stage. Ids are never used again: what was dropped is kept."""
    return f"s{len({id for known in stages for id, _ in known.values()}) + 1}"


def regrouped(graph: Graph, before: Known, dropped: Collection[str] = ()) -> set[str]:
    """The stages behind hops of which the hops lead to other ones together now: they are divided, or joined.

    `dropped`: hops that the version before had no more. One that comes back does not divide the stage of those that stayed.
    """
    found: set[str] = set()
    taken: set[str] = set()
    for hops in groups(graph):
        ids = _led_to(graph, hops, before, dropped)
        found |= (ids & taken) | (ids if len(ids) > 1 else set())
        taken |= ids
    return found


def with_hops(
    graph: Graph, before: Known, others: Known, dropped: Collection[str] = (), holding: Collection[str] = ()
) -> dict[str, tuple[str, int]]:
    """Hop → (id of the stage behind it, partitions), of all hops that there ever were.

    Where hops lead to other ones together now, each group of them gets a stage of its own; that of before is dropped, under the
    name `hop@stage`, and hands on what was on its way (engine/runtime/walk/hops.py).

    Args:
        others: the other stages. dropped: see `regrouped`. holding: stages that hold something.

    Raises TopologyError where a stage that is divided or joined holds something: it would have no owner.
    """
    found, moved = dict(before), regrouped(graph, before, dropped)
    if stuck := sorted(moved & set(holding)):
        raise _stranded(graph, stuck[0], before)
    for hop in graph.hops:
        if (was := _was(graph, hop, before)) != hop.name:
            found[hop.name] = found.pop(was)
    for hops in groups(graph):
        kept = _led_to(graph, hops, before, dropped) - moved
        for name in [hop.name for hop in hops]:
            if name in found and found[name][0] not in kept:
                found[f"{name}@{found[name][0]}"] = found[name]
        id = kept.pop() if kept else new_id(others, found)
        found |= dict.fromkeys([hop.name for hop in hops], (id, KEYED_PARTITIONS))
    return found


def _led_to(graph: Graph, hops: Collection[HopNode], before: Known, dropped: Collection[str]) -> set[str]:
    """The stages that these hops led to."""
    stays = {id for name, (id, _) in before.items() if name not in dropped}
    names = [name for hop in hops if (name := _was(graph, hop, before)) in before]
    return {before[name][0] for name in names if name not in dropped or before[name][0] not in stays}


def _was(graph: Graph, hop: HopNode, before: Known) -> str:
    """The name that a hop had in the version before."""
    old = graph.renamed_from.get(hop.name, "")
    return old if hop.name not in before and old in before else hop.name


def _stranded(graph: Graph, stage: str, before: Known) -> TopologyError:
    names = " and ".join(sorted(name for name, (id, _) in before.items() if id == stage))
    message = (
        f"{graph.name}: streams of key_by meet now, or do not meet any more, so the stage behind {names} would be joined or "
        "divided, and what it holds would have no owner"
    )
    fix = "wait until that is done; or leave the ways as they were; or begin anew: give the key_by another name="
    return TopologyError(message, code="DX234", fix=fix)
