"""A frozen graph as a drawing."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dspex.engine.graph.graph import Graph
from dspex.operators.formats.describe import outlet_name

_BOX: Mapping[str, tuple[str, str]] = {"source": ("([", "])"), "sink": ("([", "])"), "call": ("[[", "]]")}


def mermaid(graph: Graph) -> str:
    """A Mermaid flow chart in graph order. Ids come from names, so that one new node changes few lines."""
    ids: dict[str, str] = {}
    for name in graph.nodes:
        id = re.sub(r"\W", "_", name)
        ids[name] = f"{id}_{len(ids)}" if id in ids.values() or id == "end" else id
    lines = ["flowchart LR"]
    for n in graph.nodes.values():
        left, right = _BOX.get(n.role, ("[", "]"))
        label = n.name if n.role in ("source", "sink") or n.name == n.op else f"{n.name}<br/>{n.op}"
        lines.append(f'    {ids[n.name]}{left}"{label}"{right}')
    for n in graph.nodes.values():
        for i in n.inputs:
            label = outlet_name(graph, i.node, i.outlet)[len(i.node) + 1 :]
            arrow = f"-->|{label}|" if label else "-->"
            lines.append(f"    {ids[i.node]} {arrow} {ids[n.name]}")
    return "\n".join(lines) + "\n"
