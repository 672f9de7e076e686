"""The graph: what a topology is once it is frozen. The fluent API and YAML both make it; the engine runs nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

from dspex.bus.errors import TopologyError
from dspex.engine.graph.nodes import CallNode, HopNode, Node, SinkNode, SourceNode, StateNode


@dataclass(frozen=True)
class Lane:
    """How operators with state are built from history: by copies of all that leads to them, which begin earlier. See lanes.py.

    Attributes:
        operators: those that are built in it.
        since: when the history begins. boundary: what comes of events that were stored before goes no further.
        mark: the same of what the watermark brings out: what was due by then. All three in seconds since the epoch.
        marks: another one for some of the operators.
        sources: its own source nodes → their subjects.
    """

    operators: tuple[str, ...]
    since: float
    boundary: float
    mark: float
    marks: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A frozen topology. Nodes are in an order in which every node comes after its inputs. `lanes`: see lanes.py.

    `pools`: which its events may name, where they say what is called. `files`: in which its functions lie, and what those
    import: name → digest. Neither is a part of its digest.
    """

    name: str
    nodes: Mapping[str, Node]
    codec: str = "json"
    retention: float = 7 * 86400.0
    renamed_from: Mapping[str, str] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    file: str | None = None
    lanes: Mapping[str, Lane] = field(default_factory=dict)
    pools: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def outputs(self, name: str) -> list[tuple[int, Node]]:
        """The nodes behind `name`, each with the outlet that leads to it, in graph order."""
        return [(i.outlet, n) for n in self.nodes.values() for i in n.inputs if i.node == name]

    @property
    def sources(self) -> list[SourceNode]:
        return [n for n in self.nodes.values() if isinstance(n, SourceNode)]

    @property
    def calls(self) -> list[CallNode]:
        return [n for n in self.nodes.values() if isinstance(n, CallNode)]

    @property
    def hops(self) -> list[HopNode]:
        return [n for n in self.nodes.values() if isinstance(n, HopNode)]

    @property
    def states(self) -> list[StateNode]:
        return [n for n in self.nodes.values() if isinstance(n, StateNode)]

    @property
    def timed(self) -> bool:
        """Whether anything in it depends on event time."""
        return any(n.state.event_time for n in self.states)

    @property
    def sinks(self) -> list[SinkNode]:
        return [n for n in self.nodes.values() if isinstance(n, SinkNode)]

    @property
    def renamed(self) -> dict[str, str]:
        """Old name → new name of nodes."""
        return {old: new for new, old in self.renamed_from.items()}

    @property
    def digest(self) -> str:
        """12 hex digits over names, operators, options, refs and edges; not over function bodies."""
        shape = [
            [n.name, n.op, [[i.node, i.outlet] for i in n.inputs], dict(n.options)]
            for n in sorted(self.nodes.values(), key=lambda n: n.name)
        ]
        text = json.dumps([self.name, self.codec, self.retention, shape], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def functions(self) -> str:
        """12 hex digits over the byte code of the functions, which `digest` does not see."""
        text = json.dumps(sorted((n.name, n.code) for n in self.nodes.values() if n.code))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def graphs_of(topologies: Sequence[object]) -> list[Graph]:
    """The graphs of what the user wants to run. Raises TopologyError: DX221 for no topology, DX201 for two of a name."""
    for t in topologies:
        if not isinstance(getattr(t, "graph", None), Graph):
            message = f"{t!r} is {type(t).__name__}, not a Topology"
            raise TopologyError(message, code="DX221", fix='Topology.load("triage:topology") gives one')
    graphs = [cast("HasGraph", t).graph for t in topologies]
    for graph in graphs:
        if sum(other.name == graph.name for other in graphs) > 1:
            raise TopologyError(f"two topologies are called {graph.name}", code="DX201", fix="give one of them another name")
    return graphs


class HasGraph(Protocol):
    """What the engine takes for a topology: anything that freezes into a graph."""

    @property
    def graph(self) -> Graph: ...
