"""The work that a JSON Schema can cause for one value, computed before the schema is compiled.

A schema is a small program. Forty definitions that each have an `anyOf` with two references to the next one are a page of
JSON and 2⁴⁰ checks; jsonschema-rs would run them, and run out of memory. So this module counts: how many subschemas there are
when each reference is written out, and whether a schema that refers to itself does so more than once for the same part of the
data, which doubles the work with each level of the data.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from dspex.bus.errors import TopologyError
from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.problems import problem

MAX_UNFOLDED = 20_000  # subschemas with each reference written out
MAX_CHAIN = 200  # subschemas one inside the other, for the same data
MAX_ENUM = 1000  # values of several types: they are compared one by one, while values of one type are looked up
_MAX_WORK = 100_000  # subschemas at the deepest level of data, where each level multiplies them

_HERE = ("not", "if", "then", "else")
_HERE_MANY = ("allOf", "anyOf", "oneOf")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_ITEMS = ("items", "prefixItems", "contains", "additionalItems", "unevaluatedItems")
_OTHER_FIELDS = ("additionalProperties", "unevaluatedProperties", "propertyNames")
_ANY_FIELD, _ANY_ITEM = "*", "[]"


class Cost(NamedTuple):
    """`unfolded`: subschemas with each reference written out. `deepest`: the levels that data may have; None: any number."""

    unfolded: int
    deepest: int | None


def cost(schema: JsonSchema) -> Cost:
    """The cost of a schema. Raises TopologyError (DX226) for one that is too large, or refers to anything outside of it."""
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
    """The subschemas that check different parts of the data, and which of them lead to which."""

    def __init__(self, root: JsonSchema) -> None:
        self.root = root
        self.anchors: dict[str, JsonSchema] = {}
        self.edges: dict[int, list[tuple[str, int]]] = {}  # node → (part of the data, node)
        self.local: dict[int, int] = {}  # node → number of subschemas for the same part of the data
        self.sizes: dict[int, int] = {}
        self.cycle: dict[int, int] = {}  # node → a node of its cycle: one that leads to it and that it leads to
        self.parts = 0
        self._find_anchors(root)

    def _find_anchors(self, root: JsonSchema) -> None:
        todo: list[object] = [root]
        while todo:
            node = todo.pop()
            if isinstance(node, dict):
                node = cast("JsonSchema", node)
                if "$id" in node and node is not root and isinstance(node["$id"], str):
                    raise _refused("a part of it has an $id", "refer to parts by #/$defs/...")
                for key in ("$anchor", "$dynamicAnchor"):
                    if isinstance(node.get(key), str):
                        self.anchors[node[key]] = node
                _check_enum(node.get("enum"))
                todo += node.values()
            elif isinstance(node, list):
                todo += node

    def read(self, root: JsonSchema) -> None:
        """Read the nodes that this one leads to. Without recursion: a chain of references may be long."""
        todo = [root]
        while todo:
            node = todo.pop()
            if id(node) in self.edges:
                continue
            self.edges[id(node)], self.local[id(node)] = [], 0
            for where, inner in self._parts(node, node, []):
                self.edges[id(node)].append((where, id(inner)))
                todo.append(inner)

    def _parts(self, entry: JsonSchema, node: object, above: list[int]) -> Iterator[tuple[str, JsonSchema]]:
        """The subschemas for parts of the data, of this node and of all nodes for the same data."""
        if not isinstance(node, dict):
            return
        if id(node) in above:
            raise _refused("it refers to itself for the same data", "let it refer to itself for a field or an item only")
        self.local[id(entry)] += 1
        self.parts += 1
        if self.parts > MAX_UNFOLDED or len(above) > MAX_CHAIN:
            raise _too_large()
        above = [*above, id(node)]
        for inner in self._here(cast("JsonSchema", node)):
            yield from self._parts(entry, inner, above)
        yield from _of_parts(cast("JsonSchema", node))

    def _here(self, node: JsonSchema) -> Iterator[object]:
        yield from (self._target(node[key]) for key in _REFERENCES if isinstance(node.get(key), str))
        yield from (node[key] for key in _HERE if key in node)
        for key in _HERE_MANY:
            yield from node[key] if isinstance(node.get(key), list) else ()
        for key in ("dependentSchemas", "dependencies"):
            yield from cast("JsonSchema", node[key]).values() if isinstance(node.get(key), dict) else ()

    def _target(self, reference: str) -> object:
        if reference in ("#", self.root.get("$id")):
            return self.root
        if reference.startswith("#/"):
            return self._pointed(reference)
        if reference.startswith("#") and reference[1:] in self.anchors:
            return self.anchors[reference[1:]]
        raise _refused(f"it refers to {reference[:100]!r}, which is not in it", "put it in: #/$defs/Name; nothing is fetched")

    def _pointed(self, reference: str) -> object:
        from urllib.parse import unquote

        found: Any = self.root
        for part in unquote(reference[2:]).split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and part.isdecimal() and len(part) < 10 and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, dict) and part in found:
                found = cast("JsonSchema", found)[part]
            else:
                raise _refused(f"it refers to {reference[:100]!r}, which is not in it", "correct the reference: #/$defs/Name")
        return found

    # -- sums
    def finish(self) -> None:
        """Find the cycles of references (Kosaraju's algorithm), and count the subschemas below each node."""
        order = self._in_order()
        back: dict[int, list[int]] = {n: [] for n in order}
        for n in order:
            for _, m in self.edges[n]:
                back[m].append(n)
        for n in reversed(order):
            todo = [n]
            while todo:
                m = todo.pop()
                if m not in self.cycle:
                    self.cycle[m] = n
                    todo += back[m]
        for n in order:  # from the last to the first; a cycle counts once
            sizes = (self.sizes[m] for _, m in self.edges[n] if self.cycle[n] != self.cycle[m])
            self.sizes[n] = min(self.local[n] + sum(sizes), 10**9)

    def _in_order(self) -> list[int]:
        """All nodes, each after the nodes that it leads to; the root is the last."""
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
        """How many schemas of the same cycle check one part of the data."""
        parts = Counter(where for where, m in self.edges[node] if self.cycle[node] == self.cycle[m])
        named = max((n for where, n in parts.items() if where not in (_ANY_FIELD, _ANY_ITEM)), default=0)
        return max(named + parts[_ANY_FIELD], parts[_ANY_ITEM])


def _of_parts(node: JsonSchema) -> Iterator[tuple[str, JsonSchema]]:
    """Subschemas for parts of the data: of the field of a name, of any field, of any item."""
    for key, where in (*((k, _ANY_ITEM) for k in _ITEMS), *((k, _ANY_FIELD) for k in _OTHER_FIELDS)):
        found = node.get(key)
        for inner in found if isinstance(found, list) else [found]:
            if isinstance(inner, dict):
                yield where, cast("JsonSchema", inner)
    for key in ("properties", "patternProperties"):
        if isinstance(node.get(key), dict):
            for name, inner in cast("JsonSchema", node[key]).items():
                if isinstance(inner, dict):
                    yield (name if key == "properties" else _ANY_FIELD), cast("JsonSchema", inner)


def _check_enum(values: object) -> None:
    if isinstance(values, list) and len(cast("list[object]", values)) > MAX_ENUM:
        kinds = {type(v) for v in cast("list[object]", values)}
        if len(kinds) > 1 or kinds & {dict, list, float}:
            raise _refused(f"an enum has more than {MAX_ENUM} values of several types", "split it by type: anyOf")
