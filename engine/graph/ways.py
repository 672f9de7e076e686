"""Ways through a graph: where events come from, where their ways part, and which source has to be read before another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import HopNode, Node, SourceNode, StateNode

OF_SEVERAL: Final = frozenset({"window", "session_window", "batch"})
"""Operators of which each output is made of several events."""


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


def fork_of(nodes: Mapping[str, Node], gather: Node) -> str | None:
    """The last node that every event of each input of a gather has come through: there its ways part. None: there is none."""
    through: dict[str, set[str]] = {}
    for name, node in nodes.items():  # every node comes after its inputs
        before = [through[inlet.node] for inlet in node.inputs if inlet.node in through]
        through[name] = set.intersection(*before) | {name} if before else {name}
        if name == gather.name:
            break
    common = set.intersection(*(through[inlet.node] for inlet in gather.inputs)) if gather.inputs else set[str]()
    return next((name for name in reversed(list(nodes)) if name in common), None)


def no_gather(nodes: Mapping[str, Node], gather: Node) -> tuple[str, str] | None:
    """Why the inputs of a gather can never meet, and what to do; None where they can."""
    fork = fork_of(nodes, gather)
    if fork is None:
        what = f"{gather.name} gathers branches of one event, and no event comes to all of its inputs"
        return (
            what,
            "gather streams that were made of one: a = s.predict(…), b = s.predict(…); to pair events of several, join them",
        )
    taken: list[set[int]] = []
    for first in gather.inputs:
        outlets, seen, todo = set[int](), set[str](), [first]
        while todo:
            inlet = todo.pop()
            if inlet.node == fork:
                outlets.add(inlet.outlet)
            elif inlet.node not in seen:
                seen.add(inlet.node)
                todo += nodes[inlet.node].inputs
                if isinstance(nodes[inlet.node], HopNode):
                    what = f"{gather.name} gathers over the hop {inlet.node}: behind it a branch may be in another partition"
                    return what, "put the hop before the branches part, or behind the gather"
                if nodes[inlet.node].op in OF_SEVERAL:
                    what = f"{gather.name} gathers what {inlet.node} gives, which is made of several events: no branch of one"
                    return what, f"gather before {inlet.node}; or join its stream with the other one"
        taken.append(outlets)
    if not set.intersection(*taken):
        what = f"{gather.name} gathers outlets of {fork}, and an event takes one of them alone"
        return what, "merge them: a.merge(b)"
    return None
