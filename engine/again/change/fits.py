"""Whether values that a fork gives fit the types of their fields: else it would go on with what nothing could have given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Literal

from dspex.bus.errors import ConfigError, InvalidOutput, TopologyError
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.settings.similar import listed, nearest
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
    of = node if side == "outputs" else graph.nodes[node.inputs[0].node] if len(node.inputs) == 1 else None
    types, found = (of.fields if of is not None else None) or {}, dict(given)
    for name in given.keys() & types.keys():
        with suppress(TopologyError):  # a type of the user's, which is no text
            found |= _fitting(Signature(f"{name}: {types[name]} -> found"), node.name, "inputs", {name: given[name]})
    return found


def _fitting(signature: Signature, node: str, side: Direction, given: Mapping[str, Any]) -> dict[str, Any]:
    fields, found = signature.inputs if side == "inputs" else signature.outputs, dict(given)
    for name, value in given.items():
        if (field := fields.get(name)) is None or (side == "inputs" and not field.typed):
            continue  # an input without a type takes any value, and an output text
        try:
            typed = Check(name, [field], InvalidOutput)(given)[name]
        except InvalidOutput as error:
            why = f"{node}: {name}: {field.type}, and {_shown(value)} is none"
            fix = _form(name, value, signature.json_schema(side)["properties"][name])
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
