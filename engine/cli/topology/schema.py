"""The JSON Schema of test files, for editors (`dspex test --schema`)."""

from __future__ import annotations

from typing import Any

from dspex.engine.cli.topology.steps import CRASHES, DECISIONS, FAILURES
from dspex.operators.parameters import DurationParameter
from dspex.operators.parameters.values import TEXT

_LIST: dict[str, Any] = {"type": ["array", "integer", "null"]}


def _mapping(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": value, "minProperties": 1}


def _step(verb: str, about: dict[str, Any], **options: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {verb: about, **options}, "required": [verb], "additionalProperties": False}


def cases_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a test file."""
    duration, many = DurationParameter().schema(), {"type": "integer", "minimum": 1}
    expected = {"approvals": _LIST, "calls": _mapping(_LIST), "dead_letters": _LIST, "state": _mapping({"type": "object"})}
    steps = [
        _step("answer", _mapping({"type": "object"}), after=duration),
        _step("fail", _mapping({"enum": list(FAILURES)}), times=many, message=TEXT),
        _step(
            "publish",
            _mapping({}),
            after=duration,
            id=TEXT,
            key=TEXT,
            session=TEXT,
            at={"type": "string", "format": "date-time"},
        ),
        _step("decide", _mapping({"enum": list(DECISIONS)}), edit={"type": "object"}, note=TEXT),
        _step("advance", duration),
        _step("crash", {"enum": [*CRASHES, None]}),
        _step("expect", {"type": "object", "properties": expected, "additionalProperties": _LIST}),
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dspex test",
        "type": "object",
        "required": ["topology", "cases"],
        "additionalProperties": False,
        "properties": {
            "topology": {"anyOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1}]},
            "cases": _mapping({"type": "array", "items": {"oneOf": steps}, "minItems": 1}),
        },
    }
