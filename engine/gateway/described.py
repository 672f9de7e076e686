"""What the gateway offers, as OpenAPI 3.1 and AsyncAPI 3.0 describe it: by what is deployed now."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dspex.bus.errors import ConfigError, TopologyError
from dspex.engine.client.client import Client
from dspex.engine.gateway.bodies import (
    BODIES,
    DURATION,
    EVENTS,
    KEY,
    OBJECT,
    PROBLEM,
    PUBLISHED,
    SESSION,
    TEXT,
    parameters,
)
from dspex.engine.gateway.entrance import Entrance
from dspex.engine.gateway.problems import MEDIA_TYPE
from dspex.engine.gateway.shapes import CallShape

JSON: Final = "application/json"
_STREAM: Final = "text/event-stream"
_ABOUT: Final = "Events and calls of an application."
_AFTER: Final = "How long it waits. Instead of it: time, or at, as an RFC 3339 time."  # no schema says that one excludes others
_REF: Final = "#/components/schemas/Problem"
_MADE: Final = ("/scores", "/fork")
_STREAMED: Final = ("/v1/ag-ui/{name}", "/v1/ai-sdk/{name}", "/v1/chat/completions", "/v1/runs/{id}/events", "/v1/runs/events")


class Descriptions:
    """`/openapi.json` and `/asyncapi.json`. `paths`: all routes, as (path, method, what it does)."""

    def __init__(self, entrance: Entrance, paths: Sequence[tuple[str, str, str]]) -> None:
        self._entrance, self._paths = entrance, paths

    async def openapi(self, request: Request) -> Response:
        """A path for each call and each subject without wildcards; what is offered to nobody is not there."""
        self._entrance.access.caller(request)
        client = await self._entrance.client()
        paths: dict[str, dict[str, Any]] = {}
        for path, method, about in self._paths:
            path = path.replace(":path}", "}")
            paths.setdefault(path, {})[method] = _operation(path, method, about)
        template = paths.pop("/v1/call/{name}")["post"]
        async for name, shape in self._shapes(client):
            paths[f"/v1/call/{name}"] = {"post": {**template, **_of_call(name, shape)}}
        template = paths.pop("/v1/publish/{subject}")["post"]
        for subject in self._entrance.subjects:
            fixed = subject if not set(subject) & set("*>") else None
            paths[f"/v1/publish/{fixed or '{subject}'}"] = {"post": {**template, **_of_subject(subject, fixed)}}
        found: dict[str, Any] = {
            "openapi": "3.1.0",
            "info": {"title": client.app, "version": version("dspex"), "description": _ABOUT},
            "servers": [{"url": request.scope.get("root_path") or "/"}],
            "paths": paths,
            "components": {"schemas": {"Problem": PROBLEM, "Published": PUBLISHED}},
        }
        if not self._entrance.access.open:
            found["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            found["security"] = [{"bearer": []}]
        return JSONResponse(found)

    async def _shapes(self, client: Client) -> AsyncGenerator[tuple[str, CallShape]]:
        for name, what in self._entrance.calls.items():
            try:
                yield name, CallShape.of(await client.resolve(what))
            except (TopologyError, ConfigError):  # not deployed at the moment
                yield name, CallShape(OBJECT, OBJECT)

    async def asyncapi(self, request: Request) -> Response:
        """The subjects to which events may be published, as channels."""
        self._entrance.access.caller(request)
        client = await self._entrance.client()
        channels, operations = dict[str, Any](), dict[str, Any]()
        for subject in self._entrance.subjects:
            key = subject.replace(".", "_").replace("*", "any").replace(">", "all")
            message = {"name": "event", "contentType": JSON, "payload": OBJECT}
            channels[key] = {"address": f"/v1/publish/{subject}", "messages": {"event": message}}
            operations[f"publish_{key}"] = {
                "action": "receive",
                "channel": {"$ref": f"#/channels/{key}"},
                "bindings": {"http": {"method": "POST", "bindingVersion": "0.3.0"}},
            }
        info = {"title": client.app, "version": version("dspex")}
        return JSONResponse({"asyncapi": "3.0.0", "info": info, "channels": channels, "operations": operations})


def _operation(path: str, method: str, about: str) -> dict[str, Any]:
    done = _content(OBJECT, "What was asked for.")
    if path in _STREAMED:
        done["content"][_STREAM] = {"schema": TEXT}
    found: dict[str, Any] = {
        "summary": about.partition("\n")[0].rstrip("."),
        "parameters": parameters(path),
        "responses": {"201" if path.endswith(_MADE) else "200": done, **dict(_refusals(()))},
    }
    if path in ("/livez", "/readyz"):
        found["security"] = []  # probes have no token
    if path in BODIES:
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": BODIES[path]}}}
    return found


def _content(schema: Mapping[str, Any], about: str, kind: str = JSON) -> dict[str, Any]:
    return {"description": about, "content": {kind: {"schema": schema}}}


def _of_call(name: str, shape: CallShape) -> dict[str, Any]:
    answer = {"type": "object", "required": ["id", "data"], "properties": {"id": TEXT, "data": shape.outputs}}
    said = _content(answer, "The answer.")
    said["content"][_STREAM] = {"schema": TEXT}
    return {
        "operationId": f"call_{name}",
        "parameters": [
            {"name": "timeout", "in": "query", "schema": DURATION},
            {"name": "session", "in": "query", "schema": SESSION},
            {"name": "Idempotency-Key", "in": "header", "schema": KEY},
        ],
        "requestBody": {"required": True, "content": {JSON: {"schema": shape.inputs}}},
        "responses": {"200": said, **dict(_refusals((422, 429, 503, 504)))},
    }


def _of_subject(subject: str, fixed: str | None) -> dict[str, Any]:
    path = [] if fixed else [{"name": "subject", "in": "path", "required": True, "schema": TEXT, "description": subject}]
    query = [{"name": name, "in": "query", "schema": SESSION} for name in ("key", "session")]
    header = {"name": "Idempotency-Key", "in": "header", "schema": KEY}
    done = _content({"$ref": "#/components/schemas/Published"}, "It is stored.")
    return {
        "operationId": f"publish_{subject.replace('.', '_')}",
        "parameters": [*path, *query, {"name": "after", "in": "query", "schema": DURATION, "description": _AFTER}, header],
        "requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in EVENTS.items()}},
        "responses": {"202": done, **dict(_refusals((400, 422, 503)))},
    }


def _refusals(statuses: Sequence[int]) -> Iterator[tuple[str, Any]]:
    for status in statuses:
        yield str(status), _content({"$ref": _REF}, "A problem.", MEDIA_TYPE)
    yield "default", _content({"$ref": _REF}, "A problem.", MEDIA_TYPE)
