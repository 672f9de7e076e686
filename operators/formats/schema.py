"""The JSON Schema of topology files, for editors (`dspex show --schema`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from dspex.operators.options import CallOptions, ModuleConfig, SourceOptions
from dspex.operators.stateless.parse import ParseAs
from dspex.operators.vocabulary import OPERATORS

_TEXT = {"type": "string"}
_TYPE = {"type": ["string", "object"], "description": "a ref pkg.module:Name, a name of types:, or a builtin type"}
_DURATION = {"type": ["string", "number"], "description": '"10s", "1m30s", or seconds'}
_ON_ERROR = {"enum": ["dead_letter", "skip"]}
_OPTIONS: Mapping[str, Any] = {
    "pool": _TEXT,
    "lm": {"type": ["string", "array"], "items": _TEXT},
    "inputs": {"type": "object", "additionalProperties": _TEXT},
    "config": {"type": "object", "properties": {k: {} for k in ModuleConfig.__annotations__}, "additionalProperties": False},
    "adapter": {"enum": ["chat", "json", "xml"]},
    "timeout": _DURATION,
    "deadline": _DURATION,
    "retry": {"type": "object"},
    "fallback": {"type": ["string", "object"]},
    "on_error": _ON_ERROR,
    "order": {"enum": ["any", "key"]},
    "route": {"enum": ["auto", "worker", "native"]},
    "into": _TYPE,
    "instructions": _TEXT,
    "field": _TEXT,
    "syntax": {"enum": ["fields", "jinja"]},
    "expected": _TEXT,
    "actual": _TEXT,
    "tools": {"type": "array", "items": _TEXT},
    "max_iters": {"type": "integer", "minimum": 1},
    "signature": _TEXT,
    "state": _TEXT,
}
_OWN: Mapping[tuple[str, str], Any] = {("parse", "adapter"): {"enum": list(get_args(ParseAs))}}  # options of one operator
_SOURCE: Mapping[str, Any] = {
    "type": _TYPE,
    "stream": _TEXT,
    "start": {"type": ["string", "integer"]},
    "time": _TEXT,
    "partitions": {"type": "integer", "minimum": 1},
    "on_gap": {"enum": ["stop", "skip"]},
}
_FROM = {"type": ["string", "array"], "items": _TEXT, "description": "a source, a node, or an outlet: branch.0, branch.rest"}


def _node(op: str, main: Mapping[str, Any], options: tuple[str, ...], required: tuple[str, ...]) -> dict[str, Any]:
    properties = {"from": _FROM, op: main, **{o: _OWN.get((op, o), _OPTIONS[o]) for o in options}}
    return {"type": "object", "properties": properties, "required": ["from", op, *required], "additionalProperties": False}


def _mapping(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": dict(value)}


def yaml_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a topology file."""
    assert set(_OPTIONS) >= set(CallOptions.__annotations__)
    assert set(_SOURCE) >= set(SourceOptions.__annotations__)
    nodes = [_node(op, o.main, o.options, o.required) for op, o in OPERATORS.items()] + [_node("through", _TEXT, (), ())]
    source = {"type": ["object", "null"], "properties": dict(_SOURCE), "additionalProperties": False}
    sink = {"from": _FROM, "stream": _TEXT, "codec": {"enum": ["json", "msgpack", "arrow", "auto"]}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dspex topology",
        "type": "object",
        "required": ["dspex", "topology", "sources"],
        "additionalProperties": False,
        "properties": {
            "dspex": {"const": 1},
            "topology": {"type": "string", "pattern": "^[a-z][a-z0-9_-]{0,47}$"},
            "codec": {"enum": ["json", "msgpack", "arrow", "auto"]},
            "retention": _DURATION,
            "renamed_from": _mapping(_TEXT),
            "drop": {"type": "array", "items": _TEXT},
            "types": _mapping(_TYPE),
            "sources": _mapping(source),
            "nodes": _mapping({"oneOf": nodes}),
            "sinks": _mapping({"type": "object", "properties": sink, "required": ["from"], "additionalProperties": False}),
        },
    }
