"""What requests say, as JSON Schemas: by path, the body and the parameters of the query and the headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

BodySchema = Mapping[str, Any]
OBJECT: Final[BodySchema] = {"type": "object"}
TEXT: Final[BodySchema] = {"type": "string"}
DURATION: Final[BodySchema] = {"type": "string", "pattern": r"^[1-9][0-9]{0,3}(s|m|h|d)?$", "example": "30s"}
TIME: Final[BodySchema] = {"type": "string", "format": "date-time"}
SESSION: Final[BodySchema] = {"type": "string", "pattern": "^[A-Za-z0-9]{1,64}$"}
KEY: Final[BodySchema] = {"type": "string", "pattern": "^[A-Za-z0-9 _.:-]{1,200}$"}
_FLAG: Final[BodySchema] = {"type": "boolean"}
_LIMIT: Final[BodySchema] = {"type": "integer", "minimum": 1, "maximum": 1000}
_ONE: Final[BodySchema] = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": TEXT},
}
_SAYING: Final[BodySchema] = {"anyOf": [TEXT, {"type": "array", "items": _ONE}]}
_ROLE: Final[BodySchema] = {"enum": ["system", "user", "assistant", "tool", "developer"]}
_USER: Final[BodySchema] = {
    "type": "object",
    "required": ["role"],
    "properties": {"role": {"const": "user"}, "content": TEXT, "parts": {"type": "array", "items": _ONE}},
    "additionalProperties": False,
}
_MESSAGE: Final[BodySchema] = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": _ROLE, "content": _SAYING},
}
MESSAGES: Final[BodySchema] = {"type": "array", "prefixItems": [_USER], "items": _MESSAGE, "minItems": 1}
"""Somebody asks, and more may follow."""
PROBLEM: Final[BodySchema] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": TEXT,
        "title": TEXT,
        "status": {"type": "integer"},
        "detail": TEXT,
        "code": {"type": "string", "pattern": "^DX[0-9]{3}$"},
        "fix": TEXT,
        "error": OBJECT,
    },
}
PUBLISHED: Final[BodySchema] = {
    "type": "object",
    "required": ["run", "stream", "seq", "duplicate"],
    "properties": {"run": TEXT, "stream": TEXT, "seq": {"type": "integer"}, "duplicate": {"type": "boolean"}},
}
_NAME: Final[BodySchema] = {"type": "string", "pattern": "^[A-Za-z0-9_./-]{1,64}$"}
CLOUD_EVENT: Final[BodySchema] = {
    "type": "object",
    "required": ["specversion", "id", "source", "type"],
    "properties": {"specversion": {"const": "1.0"}, "id": _NAME, "source": _NAME, "type": _NAME, "time": TIME, "data": {}},
    "additionalProperties": False,
}
"""Without attributes of one's own, which it may have."""
EVENTS: Final[Mapping[str, BodySchema]] = {"application/json": {}, "application/cloudevents+json": CLOUD_EVENT}
_ASKED: Final[BodySchema] = {"type": "object", "required": ["messages"], "properties": {"messages": MESSAGES, "inputs": OBJECT}}
_COUNT: Final[BodySchema] = {"type": "integer", "minimum": 0, "maximum": 2**53}
_LETTERS: Final[BodySchema] = {
    "type": "object",
    "anyOf": [{"required": [name]} for name in ("topology", "node", "reason", "fingerprint", "sequence")],
    "properties": {
        **dict.fromkeys(("topology", "node", "reason", "fingerprint"), TEXT),
        **dict.fromkeys(("sequence", "limit"), _COUNT),
        "dry_run": _FLAG,
    },
    "additionalProperties": False,
}
BODIES: Final[Mapping[str, BodySchema]] = {
    "/v1/ag-ui/{name}": {
        "type": "object",
        "required": ["threadId", "runId", "messages"],
        "properties": {"threadId": TEXT, "runId": TEXT, "messages": MESSAGES, "forwardedProps": OBJECT},
    },
    "/v1/ai-sdk/{name}": _ASKED,
    "/v1/chat/completions": {
        **_ASKED,
        "required": ["model", "messages"],
        "properties": {**_ASKED["properties"], "model": TEXT, "stream": {"type": "boolean"}, "stream_options": OBJECT},
    },
    "/v1/runs/{id}/scores": {
        "type": "object",
        "required": ["name", "value"],
        "properties": {
            "name": {"type": "string", "pattern": "^[a-z][a-z0-9_]{0,30}$"},
            "value": {"type": "number", "minimum": -1e9, "maximum": 1e9},
            "note": TEXT,
        },
        "additionalProperties": False,
    },
    "/v1/runs/{id}/replay": {"type": "object", "maxProperties": 0},
    "/v1/runs/{id}/fork": {
        "type": "object",
        "required": ["at"],
        "properties": {
            "at": TEXT,
            "deliver": _FLAG,
            "inputs": OBJECT,
            "outputs": OBJECT,
            "lm": TEXT,
            "program": TEXT,
            "mode": {"enum": ["strict", "hybrid", "live"]},
        },
        "oneOf": [{"required": [name]} for name in ("inputs", "outputs", "lm", "program")],
        "additionalProperties": False,
    },
    "/v1/letters/redrive": {**_LETTERS, "properties": {**_LETTERS["properties"], "after": _COUNT}},
    "/v1/letters/drop": _LETTERS,
    "/v1/approvals/{id}": {
        "type": "object",
        "required": ["decision"],
        "properties": {"decision": {"enum": ["accept", "reject"]}, "edit": OBJECT, "note": TEXT},
        "additionalProperties": False,
    },
}
"""Of paths whose body is not that of a call or an event."""
_LISTED: Final[Mapping[str, BodySchema]] = {
    "topology": TEXT,
    "status": {"enum": ["running", "done", "failed", "cancelled"]},
    "since": DURATION,
    "limit": _LIMIT,
}
QUERIES: Final[Mapping[str, Mapping[str, BodySchema]]] = {
    "/v1/runs": {**_LISTED, "before": TEXT},
    "/v1/runs/events": _LISTED,
    "/v1/runs/{id}": {"wait": DURATION, "tree": _FLAG, "outputs": _FLAG},
    "/v1/approvals": {"topology": TEXT},
    "/v1/runs/{id}/diff": {"with": {"type": "string", "minLength": 1}},
    "/v1/letters": {"topology": TEXT, "node": TEXT, "reason": TEXT, "fingerprint": TEXT, "limit": _LIMIT},
    "/v1/letters/groups": {"topology": TEXT, "node": TEXT, "reason": TEXT},
    "/v1/sessions": {"limit": _LIMIT},
    "/v1/windows": {"topology": TEXT, "limit": _LIMIT},
}


_NEEDED: Final = ("with",)


def parameters(path: str) -> list[dict[str, Any]]:
    """Those of a path, and of its query."""
    names = [piece[1:-1] for piece in path.split("/") if piece.startswith("{")]
    found: list[dict[str, Any]] = [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in names]
    query = [{"name": name, "in": "query", "schema": schema} for name, schema in QUERIES.get(path, {}).items()]
    return found + [{**one, "required": True} if one["name"] in _NEEDED else one for one in query]
