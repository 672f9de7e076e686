"""Ways through a graph: where events come from, and which source has to be read before another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import SourceNode, StateNode


def sources_of(graph: Graph, names: Iterable[str]) -> set[str]:
    """The sources whose events reach any of these nodes."""
    found, todo = set[str](), list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += [inlet.node for inlet in graph.nodes[name].inputs]
    return {name for name in found if isinstance(graph.nodes[name], SourceNode)}


def read_first(graph: Graph) -> Mapping[str, list[str]]:
    """Source → the sources of tables that are read to their end before it is read at all.

    Of two that would wait for each other, none waits.
    """
    waits: dict[str, set[str]] = {}
    for node in graph.nodes.values():
        if isinstance(node, StateNode) and node.state.first:
            tables = sources_of(graph, [node.inputs[i].node for i in node.state.first])
            for source in sources_of(graph, [inlet.node for inlet in node.inputs]) - tables:
                waits.setdefault(source, set()).update(tables)
    return {source: sorted(t for t in tables if source not in _all_before(waits, t)) for source, tables in waits.items()}


def _all_before(waits: Mapping[str, set[str]], source: str) -> set[str]:
    """The sources that one waits for, and those that these wait for."""
    found, todo = set[str](), [source]
    while todo:
        for before in waits.get(todo.pop(), ()):
            if before not in found:
                found.add(before)
                todo.append(before)
    return found
