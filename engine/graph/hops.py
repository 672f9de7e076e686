"""Hops: where an event changes its owner, and which of them lead to one stage.

Behind a hop an event belongs to the partition of its key. Hops whose ways meet share a stage, because an operator with two
inputs has its state in one place; all others have a stage each, so that they go at their own pace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dspex.bus.errors import TopologyError
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import KEYED_PARTITIONS, HopNode, Node


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


def new_id(*stages: Mapping[str, tuple[str, int]]) -> str:
    """The id of a new stage. Ids are never used again: what was dropped is kept."""
    return f"s{len({id for known in stages for id, _ in known.values()}) + 1}"


def with_hops(
    graph: Graph, before: Mapping[str, tuple[str, int]], others: Mapping[str, tuple[str, int]]
) -> dict[str, tuple[str, int]]:
    """Hop → (id of the stage behind it, partitions), of all hops that there ever were. `others`: the other stages.

    Raises TopologyError where hops that led to one stage would lead to several, or the other way round: what these stages hold
    would have no owner.
    """
    found = dict(before)
    for hop in graph.hops:
        was = graph.renamed_from.get(hop.name, "")
        if hop.name not in found and was in found:
            found[hop.name] = found.pop(was)
    taken: dict[str, str] = {}  # stage → one of its hops
    for hops in groups(graph):
        names = [hop.name for hop in hops]
        ids = sorted({found[name][0] for name in names if name in found})
        if len(ids) > 1:
            raise _stranded(graph, f"{' and '.join(names)} meet now, so their stages would be joined")
        if ids and ids[0] in taken:
            raise _stranded(graph, f"{taken[ids[0]]} and {names[0]} do not meet any more, so their stage would be divided")
        id = ids[0] if ids else new_id(others, found)
        taken[id] = names[0]
        found |= dict.fromkeys(names, (id, KEYED_PARTITIONS))
    return found


def _stranded(graph: Graph, what: str) -> TopologyError:
    message = f"{graph.name}: {what}, and what they hold would have no owner"
    return TopologyError(message, code="DX234", fix="leave the ways as they were; or begin anew: give the key_by another name=")
