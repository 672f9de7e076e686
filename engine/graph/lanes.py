"""Lanes: operators with state are built from history while all else goes on, and nothing of that is in the engine.

A lane is a change of the graph. All that leads from the sources to such an operator is there a second time, with sources that
begin earlier, and so with stages, positions and watermarks of its own, for good: where nothing is handed over, nothing can get
lost or come twice. Behind the operators of the lane stands a boundary: it lets through what came about after it, and nothing of
the history before.

    orders ── by_customer ── totals ── out          as declared
    count/orders ── count/by_customer ── count ── count/counts/boundary ── counts
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from dspex.bus.errors import TopologyError
from dspex.engine.graph.boundary import Gate, told_apart
from dspex.engine.graph.graph import Graph, Lane
from dspex.engine.graph.hops import behind
from dspex.engine.graph.manifest import Manifest
from dspex.engine.graph.nodes import CallNode, HopNode, Inlet, NativeNode, Node, SinkNode, SourceNode, StateNode

CODE: Final = "DX245"


class Backfill(NamedTuple):
    """So many seconds of history before `at`, which is in seconds since the epoch; 0: what the server's clock says.

    `marks`: operator → up to which watermark its results are known; of others that is found.
    """

    seconds: float
    at: float = 0.0
    marks: Mapping[str, float] = MappingProxyType({})


def with_lanes(graph: Graph, lanes: Mapping[str, Lane]) -> Graph:
    """The graph as it runs, with the lanes of the version before, or new ones. Raises TopologyError (DX245)."""
    if not lanes:
        return graph
    now = {old: new for new, old in graph.renamed_from.items()}
    kept = {
        name: replace(
            lane,
            operators=tuple(n for o in lane.operators if (n := now.get(o, o)) in graph.nodes),
            marks={now.get(o, o): mark for o, mark in lane.marks.items()},
        )
        for name, lane in lanes.items()
    }
    found = graph
    for name, lane in kept.items():
        if lane.operators:
            found = _Laid(found, name, lane).graph()
    return found


class _Laid:
    """One lane in a graph.

    Attributes:
        built: its operators. after: what follows them. between: of that, what leads to one of them again.
        twice: what is copied: all that leads to them.
        named: what has a name of the lane: that, and the hops in between, whose stages begin with the history, too.
    """

    def __init__(self, graph: Graph, name: str, lane: Lane) -> None:
        self._graph, self._name, self._lane = graph, name, lane
        self.built = set(lane.operators)
        before = _before(graph, self.built)
        self.after = _behind(graph, self.built) - self.built
        self.between = before & self.after
        others = {i.node for n in self.after for i in graph.nodes[n].inputs} - self.after - self.built
        self.twice = (before | others | _before(graph, others)) - self.built - self.after
        self.named = self.twice | {n.name for n in graph.hops if n.name in self.between}
        for node in [graph.nodes[n] for n in graph.nodes if n in self.twice or n in self.between]:
            if not isinstance(node, SourceNode | NativeNode | HopNode):
                raise (_not_again if node.name in before else _meets)(graph, node, lane.operators[0])

    def graph(self) -> Graph:
        """The graph with the lane."""
        graph, nodes, stays = self._graph, dict[str, Node](), self._stays()
        for name, node in graph.nodes.items():
            if name in stays:
                nodes[name] = node
            if name in self.twice:
                nodes[self._copy(name)] = self._copied(node)
            elif name in self.built or name in self.after:
                nodes |= self._with_gates(node)
        sources = {self._copy(n.name): n.source.subject for n in graph.sources if n.name in self.twice}
        lanes = {**graph.lanes, self._name: replace(self._lane, sources=sources)}
        renamed = {self._copy(new): self._copy(old) for new, old in graph.renamed_from.items() if new in self.named}
        gone = tuple(name for name in graph.nodes if name not in nodes)
        return replace(
            graph, nodes=nodes, lanes=lanes, renamed_from={**graph.renamed_from, **renamed}, drop=(*graph.drop, *gone)
        )

    def _copy(self, name: str) -> str:
        return f"{self._name}/{name}"

    def _stays(self) -> set[str]:
        """What is not in the lane: all that it copies, too, but for what leads nowhere else."""
        found = self._graph.nodes.keys() - self.built - self.after
        for name in [n for n in reversed(list(self._graph.nodes)) if n in self.twice]:
            outputs = self._graph.outputs(name)
            if outputs and not any(n.name in found for _, n in outputs):
                found.discard(name)
        return set(found)

    def _copied(self, node: Node) -> Node:
        """A node of the lane that leads to its operators. A table is read from where it begins, however old what it says is."""
        inputs = tuple(Inlet(self._copy(i.node), i.outlet) for i in node.inputs)
        found: Any = replace(node, name=self._copy(node.name), inputs=inputs)
        tables = {n.inputs[i].node for n in self._graph.states if n.name in self.built for i in n.state.first}
        if isinstance(found, SourceNode) and node.name not in tables | _before(self._graph, tables):
            found = replace(found, source=replace(found.source, start=self._lane.since))
        return found  # type: ignore[no-any-return]

    def _with_gates(self, node: Node) -> dict[str, Node]:
        """A node of the lane, with the boundary before it where it leads out of what is built."""
        inputs = [Inlet(self._copy(i.node), i.outlet) if i.node in self.named else i for i in node.inputs]
        leads_out, found = node.name in self.after - self.between, dict[str, Node]()
        for index, (inlet, was) in enumerate(zip(inputs, node.inputs)):
            if leads_out and was.node not in self.after - self.between:
                name = self._copy(f"{node.name}/boundary") + (f"/{index}" if index else "")
                found[name] = NativeNode(name=name, op="boundary", inputs=(inlet,), build=Gate(self._lane))
            elif was.node in self.built:
                name = self._copy(f"{was.node}/told-apart")  # so that it is known further on, behind a hop
                found[name] = NativeNode(name=name, op="boundary", inputs=(inlet,), build=told_apart(self._lane))
            else:
                continue
            inputs[index] = Inlet(name)
        own = self._copy(node.name) if node.name in self.named else node.name
        changed: Any = replace(node, name=own, inputs=tuple(inputs))
        return {**found, own: changed}


def new_lanes(graph: Graph, before: Manifest | None, reset: Collection[str], history: Backfill) -> dict[str, Lane]:
    """The lanes of a version, with one for what is new in it and can be built from history. Raises TopologyError (DX245)."""
    was = before.states if before is not None else {}
    there = {*before.nodes, *before.calls, *before.sinks} if before is not None else set()
    old = {name: graph.renamed_from.get(name, name) for name in graph.nodes}
    fresh = [n for n in graph.states if n.name in reset or old[n.name] not in was]
    known = {
        name: replace(lane, operators=tuple(o for o in lane.operators if graph.renamed.get(o, o) not in reset))
        for name, lane in (before.lanes if before is not None else {}).items()
    }
    built = _built(graph, [n for n in fresh if not n.state.clocked])
    if not built:
        return {name: lane for name, lane in known.items() if lane.operators}
    beside = {n.name for name in built for n in behind(graph, graph.nodes[name]) if not isinstance(n, HopNode)}
    for node in [n for n in graph.states if n.name in beside and n not in fresh]:
        raise _was_there(graph, node, built[0])
    taken = {*graph.nodes, *there, *({*before.stages, *before.hops} if before is not None else ())}
    name, count = built[0], 1
    while any(f"{name}/{n}" in taken for n in graph.nodes):
        name, count = f"{built[0]}/{count + 1}", count + 1
    marks = {o: history.marks[o] for o in built if o in history.marks}
    return {**known, name: Lane(tuple(built), max(history.at - history.seconds, 0.0), history.at, history.at, marks)}


def follows_on(graph: Graph, before: Manifest | None, lane: Lane) -> bool:
    """Whether results of a lane go on where others ended: in sinks, or from operators, that the version before has already."""
    there = {*before.nodes, *before.calls, *before.sinks} if before is not None else set()
    kinds = SinkNode | CallNode | StateNode
    all_behind = [graph.nodes[name] for name in _behind(graph, lane.operators)]
    return any(isinstance(n, kinds) and graph.renamed_from.get(n.name, n.name) in there for n in all_behind)


def with_copies(graph: Graph, before: Manifest | None, names: Collection[str]) -> list[str]:
    """Names of operators, and of the hops that lanes have in their place, or besides."""
    there = before.hops if before is not None else {}
    return [*names, *(copy for lane in graph.lanes for name in names if (copy := f"{lane}/{name}") in there)]


def _built(graph: Graph, fresh: Collection[StateNode]) -> list[str]:
    """Which of the operators can be built from history, in graph order. Raises TopologyError where one cannot, and why."""
    names, blocked, found = {n.name for n in fresh}, dict[str, Node](), list[str]()
    for name, node in graph.nodes.items():  # every node comes after its inputs
        first = next((blocked[i.node] for i in node.inputs if i.node in blocked), None)
        if name in names and first is None:
            found.append(name)
        elif name in names and first is not None and first.name not in _behind(graph, set(found)):
            raise _not_again(graph, first, name)
        elif first is not None or not isinstance(node, SourceNode | NativeNode | HopNode | SinkNode):
            blocked[name] = first or node
    return found


def _before(graph: Graph, names: Collection[str]) -> set[str]:
    """What leads to these nodes."""
    found, todo = set[str](), list(names)
    while todo:
        new = {i.node for i in graph.nodes[todo.pop()].inputs} - found
        found |= new
        todo += new
    return found


def _behind(graph: Graph, names: Collection[str]) -> set[str]:
    """What these nodes lead to, themselves included."""
    found = set(names)
    for name, node in graph.nodes.items():  # every node comes after its inputs
        if any(i.node in found for i in node.inputs):
            found.add(name)
    return found


def _not_again(graph: Graph, node: Node, built: str) -> TopologyError:
    """`node`: what lies on the way to an operator that is built from history, and cannot be run on history again."""
    if isinstance(node, CallNode) or (isinstance(node, StateNode) and node.state.told is not None):
        why = f"{node.name} is asked on the way to it, and what it answered in history is not read back in this version"
        fix = f"leave out --backfill: {built} begins now; or put {built} where nothing is asked before it"
    elif isinstance(node, StateNode) and not node.state.clocked:
        why = f"{node.name} lies before it, and what that let out in history is not kept"
        fix = f"build both anew: dspex apply --reset {node.name} --backfill …; or leave out --backfill: {built} begins now"
    else:
        why = f"{node.name} lies before it, and goes by the clock: history would not come out of it as it did"
        fix = f"leave out --backfill: {built} begins now; or put {built} before {node.name}"
    return TopologyError(f"{graph.name}: {built} cannot be built from history: {why}", code=CODE, node=node.name, fix=fix)


def _meets(graph: Graph, node: Node, built: str) -> TopologyError:
    """`node`: what leads to where what comes out of an operator that is built from history goes, too."""
    return TopologyError(
        f"{graph.name}: {built} is built from history in a lane of its own, and behind it meets what comes from {node.name}",
        code=CODE,
        node=node.name,
        fix=f"let {built} and {node.name} end in sinks of their own",
    )


def _was_there(graph: Graph, node: Node, built: str) -> TopologyError:
    return TopologyError(
        f"{graph.name}: {built} cannot be built from history: {node.name} behind it is there already, and what it keeps lies "
        f"in the stage of before",
        code=CODE,
        node=node.name,
        fix=f"build both anew: dspex apply --reset {node.name} --backfill …; or give {node.name} another name",
    )
