"""How much work a JSON Schema can make of one value: found out before it is compiled.

A schema is a small program. `anyOf` with the same reference twice, in forty definitions each of which refers to the next,
is a page of JSON and 2⁴⁰ checks; jsonschema-rs would run them, and run out of memory. So the schema is unfolded here, in
numbers only: how many subschemas there are when each reference is written out, and whether a schema that refers to itself
does so more than once for the same part of the data, which doubles the work with each level of the data.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

from dspex.bus.errors import TopologyError
from dspex.operators.native.suggestions import problem

MAX_UNFOLDED = 20_000  # subschemas with each reference written out
MAX_CHAIN = 200  # subschemas one inside the other, for the same data
MAX_ENUM = 1000  # values of several types: each is compared, where values of one type are looked up
_MAX_WORK = 100_000  # subschemas at the deepest level of data, where each level multiplies them

_HERE = ("not", "if", "then", "else")
_HERE_MANY = ("allOf", "anyOf", "oneOf")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_ITEMS = ("items", "prefixItems", "contains", "additionalItems", "unevaluatedItems")
_OTHER_FIELDS = ("additionalProperties", "unevaluatedProperties", "propertyNames")
_ANY_FIELD, _ANY_ITEM = "*", "[]"

Node = dict[str, Any]


class Cost(NamedTuple):
    """`unfolded`: subschemas with each reference written out. `deepest`: levels of data that are not too many; None: any."""

    unfolded: int
    deepest: int | None


def cost(schema: Mapping[str, Any]) -> Cost:
    """The cost of a schema. Raises TopologyError (DX226) for one that is too large, or refers to something outside."""
    root = dict(schema)
    graph = _Graph(root)
    graph.read(root)
    graph.finish()
    unfolded = graph.sizes[id(root)]
    if unfolded > MAX_UNFOLDED:
        raise _too_large()
    branching = max(map(graph.branching, graph.edges), default=0)
    return Cost(unfolded, None if branching < 2 else int(math.log(_MAX_WORK, branching)))


def _refused(what: str, fix: str) -> TopologyError:
    return problem("DX226", f"the JSON Schema cannot be used: {what}", fix)


def _too_large() -> TopologyError:
    return _refused(f"it has more than {MAX_UNFOLDED} parts when its references are written out", "refer to a part once")


class _Graph:
    """Subschemas that check a part of the data of their own, and which of them follow from which."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.anchors: dict[str, Node] = {}
        self.edges: dict[int, list[tuple[str, int]]] = {}  # node -> (part of the data, node)
        self.local: dict[int, int] = {}  # node -> subschemas that see the same part of the data
        self.sizes: dict[int, int] = {}
        self.circle: dict[int, int] = {}  # node -> one of those that it follows from and that follow from it
        self.parts = 0
        self._find_anchors(root)

    def _find_anchors(self, root: Node) -> None:
        todo: list[Any] = [root]
        while todo:
            node = todo.pop()
            if isinstance(node, dict):
                node = cast("Node", node)
                if "$id" in node and node is not root and isinstance(node["$id"], str):
                    raise _refused("a part of it has an $id", "refer to parts by #/$defs/...")
                for key in ("$anchor", "$dynamicAnchor"):
                    if isinstance(node.get(key), str):
                        self.anchors[node[key]] = node
                _check_enum(node.get("enum"))
                todo += node.values()
            elif isinstance(node, list):
                todo += node

    def read(self, root: Node) -> None:
        """Read the nodes that follow from this one. Not by recursion: a chain of references may be long."""
        todo = [root]
        while todo:
            node = todo.pop()
            if id(node) in self.edges:
                continue
            self.edges[id(node)], self.local[id(node)] = [], 0
            for where, inner in self._parts(node, node, []):
                self.edges[id(node)].append((where, id(inner)))
                todo.append(inner)

    def _parts(self, entry: Node, node: Any, above: list[int]) -> Iterator[tuple[str, Node]]:
        """What this node and those for the same data want of its parts."""
        if not isinstance(node, dict):
            return
        if id(node) in above:
            raise _refused("it refers to itself for the same data", "let it refer to itself for a field or an item only")
        self.local[id(entry)] += 1
        self.parts += 1
        if self.parts > MAX_UNFOLDED or len(above) > MAX_CHAIN:
            raise _too_large()
        above = [*above, id(node)]
        for inner in self._here(cast("Node", node)):
            yield from self._parts(entry, inner, above)
        yield from _of_parts(cast("Node", node))

    def _here(self, node: Node) -> Iterator[Any]:
        yield from (self._target(node[key]) for key in _REFERENCES if isinstance(node.get(key), str))
        yield from (node[key] for key in _HERE if key in node)
        for key in _HERE_MANY:
            yield from node[key] if isinstance(node.get(key), list) else ()
        for key in ("dependentSchemas", "dependencies"):
            yield from cast("Node", node[key]).values() if isinstance(node.get(key), dict) else ()

    def _target(self, reference: str) -> Any:
        if reference in ("#", self.root.get("$id")):
            return self.root
        if reference.startswith("#/"):
            return self._pointed(reference)
        if reference.startswith("#") and reference[1:] in self.anchors:
            return self.anchors[reference[1:]]
        raise _refused(f"it refers to {reference[:100]!r}, which is not in it", "put it in: #/$defs/Name; nothing is fetched")

    def _pointed(self, reference: str) -> Any:
        from urllib.parse import unquote

        found: Any = self.root
        for part in unquote(reference[2:]).split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and part.isdecimal() and len(part) < 10 and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, dict) and part in found:
                found = cast("Node", found)[part]
            else:
                raise _refused(f"it refers to {reference[:100]!r}, which is not in it", "correct the reference: #/$defs/Name")
        return found

    # -- sums
    def finish(self) -> None:
        """Number the circles of references (Kosaraju), and count the subschemas below each node."""
        order = self._in_order()
        back: dict[int, list[int]] = {n: [] for n in order}
        for n in order:
            for _, m in self.edges[n]:
                back[m].append(n)
        for n in reversed(order):
            todo = [n]
            while todo:
                m = todo.pop()
                if m not in self.circle:
                    self.circle[m] = n
                    todo += back[m]
        for n in order:  # those behind come first; a circle counts once
            sizes = (self.sizes[m] for _, m in self.edges[n] if self.circle[n] != self.circle[m])
            self.sizes[n] = min(self.local[n] + sum(sizes), 10**9)

    def _in_order(self) -> list[int]:
        """All nodes, each behind those that follow from it; the root is the last."""
        order, seen, todo = list[int](), set[int](), [(id(self.root), False)]
        while todo:
            n, left = todo.pop()
            if left:
                order.append(n)
            elif n not in seen:
                seen.add(n)
                todo += [(n, True), *((m, False) for _, m in self.edges[n])]
        return order

    def branching(self, node: int) -> int:
        """How many schemas of the same circle check one part of the data."""
        parts = Counter(where for where, m in self.edges[node] if self.circle[node] == self.circle[m])
        named = max((n for where, n in parts.items() if where not in (_ANY_FIELD, _ANY_ITEM)), default=0)
        return max(named + parts[_ANY_FIELD], parts[_ANY_ITEM])


def _of_parts(node: Node) -> Iterator[tuple[str, Node]]:
    """Subschemas for parts of the data: of the field of a name, of any field, of any item."""
    for key, where in (*((k, _ANY_ITEM) for k in _ITEMS), *((k, _ANY_FIELD) for k in _OTHER_FIELDS)):
        found = node.get(key)
        for inner in found if isinstance(found, list) else [found]:
            if isinstance(inner, dict):
                yield where, cast("Node", inner)
    for key in ("properties", "patternProperties"):
        if isinstance(node.get(key), dict):
            for name, inner in cast("Node", node[key]).items():
                if isinstance(inner, dict):
                    yield (name if key == "properties" else _ANY_FIELD), cast("Node", inner)


def _check_enum(values: Any) -> None:
    if isinstance(values, list) and len(values) > MAX_ENUM:
        kinds = {type(v) for v in values}
        if len(kinds) > 1 or kinds & {dict, list, float}:
            raise _refused(f"an enum has more than {MAX_ENUM} values of several types", "split it by type: anyOf")
