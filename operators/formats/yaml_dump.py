"""A frozen graph in YAML, which `yaml_load` reads back to the same digest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import yaml

from dspex.bus.errors import TopologyError
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import Inlet
from dspex.operators.formats.describe import outlet_name
from dspex.operators.formats.yaml_read import VERSION
from dspex.operators.plan import HOP
from dspex.operators.registry import operators
from dspex.operators.typing.refs import Local


def dump(graph: Graph) -> str:
    """The graph in YAML. Raises one TopologyError (DX223) that names every node with a lambda or a local type."""
    _refuse_local(graph)
    document: dict[str, Any] = {"dspex": VERSION, "topology": graph.name}
    if graph.codec != "json":
        document["codec"] = graph.codec
    if graph.retention != 7 * 86400.0:
        document["retention"] = graph.retention
    if graph.renamed_from:
        hops = {n.name for n in graph.nodes.values() if n.op == HOP}
        document["renamed_from"] = {new: old for new, old in graph.renamed_from.items() if new not in hops}
    if graph.drop:
        document["drop"] = list(graph.drop)
    sections = {"source": "sources", "sink": "sinks"}
    document |= {"sources": {}, "nodes": {}, "sinks": {}}
    for n in graph.nodes.values():
        if n.op == HOP:
            continue
        edges = [outlet_name(graph, i.node, i.outlet) for i in (_written(graph, inlet) for inlet in n.inputs)]
        start: dict[str, Any] = (
            {"from": edges if n.op in operators() and operators()[n.op].many_inputs else edges[0]} if edges else {}
        )
        document[sections.get(n.role, "nodes")][n.name] = start | dict(n.options)
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def _written(graph: Graph, inlet: Inlet) -> Inlet:
    """Where data comes from that an operator takes over a hop of its own."""
    node = graph.nodes[inlet.node]
    return node.inputs[0] if node.op == HOP else inlet


def _refuse_local(graph: Graph) -> None:
    found = [(n.name, local) for n in graph.nodes.values() for local in _locals(n.options)]
    if found:
        what = "; ".join(f"{name} uses {local}" for name, local in found)
        fix = "define it at the top level of a module, so that a ref can name it"
        if "->" in found[0][1]:  # a signature
            fix = "write this node's YAML yourself, with types of yours in `types:`; descriptions and defaults stay in Python"
        raise TopologyError(f"cannot be written as YAML: {what}", code="DX223", fix=fix, node=found[0][0])


def _locals(value: Any) -> Iterator[str]:
    if isinstance(value, Local):
        yield str(value)
    elif isinstance(value, Mapping):
        for v in cast("Mapping[str, Any]", value).values():
            yield from _locals(v)
    elif isinstance(value, list):
        for v in value:
            yield from _locals(v)
