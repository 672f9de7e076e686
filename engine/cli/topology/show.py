"""A topology as text for people: the tree of what follows what, then the types that flow in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from dspex.engine.cli.terminal.terminal import to_json
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import CallNode, NativeNode, Node, SinkNode
from dspex.operators.formats.describe import describe, outlet_name

_WIDEST = 60  # characters of a name in its tree, and of an operator's argument


class _Line(NamedTuple):
    tree: str  # indentation and name
    op: str
    rest: str


def text(graph: Graph) -> str:
    """The head line, the tree of each stage, and the fields of each type."""
    lines = [line for source in graph.sources for line in _tree(graph, source, "", "", set())]
    left, middle = max(len(line.tree) for line in lines), max(len(line.op) for line in lines)
    body = [f"{line.tree:<{min(left, _WIDEST)}}  {line.op:<{middle}}  {line.rest}".rstrip() for line in lines]
    types = [f"  {name}: {fields}" for name, fields in _types(graph).items()]
    return "\n".join([_head(graph), *body, *(["types", *types] if types else [])])


def _head(graph: Graph) -> str:
    info = describe(graph)
    sources = len(info.sources)
    parts = [f"{len(info.nodes)} nodes", f"{sources} stage" if sources == 1 else f"{sources} stages"]
    parts += [f"pools {', '.join(info.pools)}"] if info.pools else []
    parts += [f"programs {', '.join(info.programs)}"] if info.programs else []
    return f"{graph.name} {graph.digest}  {'; '.join(parts)}"


def _tree(graph: Graph, node: Node, before: str, below: str, seen: set[str]) -> Iterator[_Line]:
    """The node and all that follows it. `before` and `below`: what stands left of it, and left of what follows."""
    if node.name in seen and not isinstance(node, SinkNode):
        yield _Line(f"{before}{node.name}", node.op, "as above")
        return
    seen.add(node.name)
    yield _Line(f"{before}{node.name}", node.op, _detail(node))
    behind = graph.outputs(node.name)
    for i, (outlet, follower) in enumerate(behind):
        branch, beside = ("└ ", "  ") if i == len(behind) - 1 else ("├ ", "│ ")
        label = outlet_name(graph, node.name, outlet)[len(node.name) :]
        yield from _tree(graph, follower, f"{below}{branch}{f'{label} ' if label else ''}", f"{below}{beside}", seen)


def _detail(node: Node) -> str:
    main = node.options.get(node.op)
    if isinstance(main, Mapping):
        words = to_json(main)
    else:  # several, or one: a window's length is a number
        words = ", ".join(map(str, main)) if isinstance(main, list | tuple) else str(main or "")
    short = words if len(words) <= _WIDEST else f"{words[: _WIDEST - 1]}…"
    call = node.call if isinstance(node, CallNode) else None
    pool = f"pool {call.pool}" if call else ""
    lm = f"lm {', '.join(call.spec.lm)}" if call and call.spec.lm else ""
    kind = f"→ {node.type}" if node.type and isinstance(node, NativeNode | CallNode) and node.op != "branch" else ""
    return "  ".join(part for part in (short, kind, pool, lm) if part)


def _types(graph: Graph) -> dict[str, str]:
    """The fields of each type by its name, as far as they are known; in graph order."""
    return {n.type: ", ".join(f"{k}: {v}" for k, v in n.fields.items()) for n in graph.nodes.values() if n.type and n.fields}
