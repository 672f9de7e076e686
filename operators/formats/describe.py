"""A frozen graph as plain data, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import CallNode, Node


@dataclass(frozen=True)
class NodeInfo:
    """One operator. `inputs`: names, with `.outlet` behind a branch's. `fields`: None where not known before run time."""

    name: str
    role: str
    op: str
    inputs: list[str]
    options: Mapping[str, object]
    type: str | None
    fields: Mapping[str, str] | None
    place: str | None
    pool: str | None = None
    signature: str | None = None


@dataclass(frozen=True)
class TopologyInfo:
    """What a topology is made of. `pools`: those that its calls go to. `programs`: refs run in workers."""

    name: str
    digest: str
    codec: str
    retention: float
    nodes: list[NodeInfo]
    sources: list[str]
    sinks: list[str]
    pools: list[str]
    programs: list[str]

    def as_dict(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def describe(graph: Graph) -> TopologyInfo:
    """The graph as plain data, nodes in graph order."""
    calls = [n.call for n in graph.calls]
    return TopologyInfo(
        name=graph.name,
        digest=graph.digest,
        codec=graph.codec,
        retention=graph.retention,
        nodes=[_node(graph, n) for n in graph.nodes.values()],
        sources=[n.name for n in graph.sources],
        sinks=[n.name for n in graph.sinks],
        pools=sorted({c.pool for c in calls}),
        programs=sorted({c.spec.target for c in calls if c.spec.kind in ("program", "enrich")}),
    )


def _node(graph: Graph, n: Node) -> NodeInfo:
    call = n.call if isinstance(n, CallNode) else None
    return NodeInfo(
        name=n.name,
        role=n.role,
        op=n.op,
        inputs=[outlet_name(graph, i.node, i.outlet) for i in n.inputs],
        options=dict(n.options),
        type=n.type,
        fields=n.fields,
        place=f"{n.place.file}:{n.place.line}" if n.place else None,
        pool=call.pool if call else None,
        signature=(call.spec.signature or None) if call else None,
    )


def outlet_name(graph: Graph, node: str, outlet: int) -> str:
    """How YAML writes an edge's start: `clean`, `branch.0`, `branch.rest`."""
    count = graph.nodes[node].outlets
    if count == 1:
        return node
    return f"{node}.rest" if outlet == count - 1 else f"{node}.{outlet}"
