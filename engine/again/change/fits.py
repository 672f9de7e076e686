"""Whether values that a fork gives fit the types of their fields: else it would go on with what nothing could have given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Literal

from dspex.bus.errors import ConfigError, InvalidOutput, TopologyError
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.settings.similar import listed, nearest
from dspex.engine.again.change.reached import SIDES
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import Node
from dspex.operators.native.fields.checks import Check
from dspex.operators.native.signature import Signature

Direction = Literal["inputs", "outputs"]
_SCALARS: Final = (str, int, float, bool)
_LONG: Final = 60  # characters of a value in an error
_EXAMPLES: Final = {"integer": "1", "number": "0.5", "boolean": "true", "array": "[…]", "object": "{…}", "null": "null"}


def fitting_call(spec: CallSpec, node: str, side: Direction, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a call, as their types have them. What its signature does not say is taken as it is. Raises ConfigError
    (DX105) for the first one that does not fit.
    """
    if not spec.signature:
        return dict(given)  # of a function that enriches
    return _fitting(Signature.from_plain(spec.plain()), node, side, given)


def fitting_data(graph: Graph, node: Node, side: Direction, given: Mapping[str, Any]) -> dict[str, Any]:
    """The same of the data of an operator of the engine, as far as it is known what fields they have."""
    types, found = _types(graph, node, side), dict(given)
    for name in given.keys() & types.keys():
        before, dot, field = name.rpartition(".")
        with suppress(TopologyError):  # a type of the user's, which is no text
            signature = Signature(f"{field}: {types[name]} -> found")
            fits = _fitting(signature, node.name, "inputs", {field: given[name]}, before + dot)
            found[name] = fits[field]
    return found


def unfit(graph: Graph, node: Node, side: Direction, data: Any) -> list[str]:
    """What data of an operator has that is not of the type of its field, each in a line; as far as it is known what fields
    they have.
    """
    lines = list[str]()
    for name, value in _fields(data).items():
        try:
            fitting_data(graph, node, side, {name: value})
        except ConfigError as error:
            lines.append(f"{error.message}; {error.fix}")
    return lines


def _fields(data: Any) -> dict[str, Any]:
    """The fields of data by name, those of a pair as `merged` calls them."""
    pair: tuple[Any, ...] = data if isinstance(data, tuple) else ()
    if len(pair) == len(SIDES):
        return {f"{side}.{name}": value for side, one in zip(SIDES, pair) for name, value in _fields(one).items()}
    return dict(data if isinstance(data, Mapping) else getattr(data, "__dict__", {}))


def _types(graph: Graph, node: Node, side: Direction) -> dict[str, str]:
    """The types of the fields that go into an operator, or come out of it, as texts."""
    if side == "inputs":
        return _types(graph, graph.nodes[node.inputs[0].node], "outputs") if len(node.inputs) == 1 else {}
    if node.op == "join":
        sides = [_types(graph, graph.nodes[inlet.node], "outputs") for inlet in node.inputs]
        return {f"{side}.{name}": of for side, types in zip(SIDES, sides) for name, of in types.items()}
    return dict(node.fields or {})


def _fitting(signature: Signature, node: str, side: Direction, given: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """`before`: stands before the names of the fields, where they are said."""
    fields, found = signature.inputs if side == "inputs" else signature.outputs, dict(given)
    for name, value in given.items():
        if (field := fields.get(name)) is None or (side == "inputs" and not field.typed):
            continue  # an input without a type takes any value, and an output text
        try:
            typed = Check(name, [field], InvalidOutput)(given)[name]
        except InvalidOutput as error:
            why = f"{node}: {before}{name}: {field.type}, and {_shown(value)} is none"
            fix = _form(before + name, value, signature.json_schema(side)["properties"][name])
            raise ConfigError(why, code="DX105", fix=fix) from error
        found[name] = typed if isinstance(typed, _SCALARS) else value
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"


def _form(name: str, value: Any, schema: Any) -> str:
    """The nearest form that it may have, as a command line has it."""
    words = [one for one in schema.get("enum", ()) if isinstance(one, str)]
    if words:
        near = nearest(value, words) if isinstance(value, str) else None
        return f"{name}={near or words[0]}, of {listed(words)}"
    kinds = [schema.get("type"), *(one.get("type") for one in schema.get("anyOf", ()))]
    if "string" in kinds:
        return f"{name}={value}, as text" if isinstance(value, (int, float)) else f"{name}=text"
    example = next((_EXAMPLES[kind] for kind in kinds if kind in _EXAMPLES), "JSON")
    return f"{name}:={example}, as JSON"
