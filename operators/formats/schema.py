"""The JSON Schema of topology files, for editors (`dspex show --schema`)."""

from __future__ import annotations

from dspex.engine.graph.check import NAME
from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.operator import FROM
from dspex.operators.parameters import DurationParameter, TypeParameter
from dspex.operators.parameters.values import TEXT
from dspex.operators.registry import operators
from dspex.operators.stateless.sink import CODEC, SINK_OPTIONS
from dspex.operators.stateless.source import SOURCE_OPTIONS

_THROUGH: JsonSchema = {
    "type": "object",
    "properties": {"from": FROM, "through": TEXT},
    "required": ["from", "through"],
    "additionalProperties": False,
}


def _mapping(value: JsonSchema) -> JsonSchema:
    return {"type": "object", "additionalProperties": value}


def yaml_schema() -> JsonSchema:
    """The JSON Schema (2020-12) of a topology file, from the declarations of the operators."""
    nodes = [*(o.schema() for o in operators().values()), _THROUGH]
    source = {n: p.schema() for n, p in SOURCE_OPTIONS.items()}
    sink = {"from": FROM, **{n: p.schema() for n, p in SINK_OPTIONS.items()}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dspex topology",
        "type": "object",
        "required": ["dspex", "topology", "sources"],
        "additionalProperties": False,
        "properties": {
            "dspex": {"const": 1},
            "topology": {"type": "string", "pattern": f"^{NAME.pattern}$"},
            "codec": CODEC.schema(),
            "retention": DurationParameter().schema(),
            "renamed_from": _mapping(TEXT),
            "drop": {"type": "array", "items": TEXT},
            "types": _mapping(TypeParameter().schema()),
            "sources": _mapping({"type": ["object", "null"], "properties": source, "additionalProperties": False}),
            "nodes": _mapping({"oneOf": nodes}),
            "sinks": _mapping({"type": "object", "properties": sink, "required": ["from"], "additionalProperties": False}),
        },
    }
