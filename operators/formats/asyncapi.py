"""A frozen graph as AsyncAPI 3.0 describes it: what it reads, what it sends, and the pools that it asks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from dspex.bus.codecs import ARROW, JSON, MSGPACK
from dspex.bus.errors import TopologyError
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import Node
from dspex.operators.native.signature import Signature

VERSION: Final = "3.0.0"
_MEDIA: Final = {"json": JSON, "msgpack": MSGPACK, "arrow": ARROW}
_BINDING: Final = "0.1.0"  # of the bindings for NATS


def asyncapi(graph: Graph) -> dict[str, Any]:
    """The document. Payloads are described by the types that the graph knows; what it does not know may be anything."""
    channels, operations = dict[str, Any](), dict[str, Any]()
    for source in graph.sources:
        _add(channels, operations, graph, source, "receive")
    for sink in graph.sinks:
        _add(channels, operations, graph, sink, "send")
    for pool in sorted({call.call.pool for call in graph.calls}):
        key = f"pool_{_key(pool)}"
        about = f"Calls that workers of pool {pool} take, each of them once."
        messages = {"call": {"name": "call", "payload": {"type": "object"}}}
        channels[key] = {"address": None, "title": f"pool {pool}", "description": about, "messages": messages}
        operation = {"action": "receive", "channel": {"$ref": f"#/channels/{key}"}}
        operations[f"receive_{key}"] = {**operation, "bindings": {"nats": {"queue": pool, "bindingVersion": _BINDING}}}
    info = {"title": graph.name, "version": graph.digest[:8], "description": f"Topology {graph.name} of dspex."}
    kind = _MEDIA.get(graph.codec, JSON)
    return {"asyncapi": VERSION, "info": info, "defaultContentType": kind, "channels": channels, "operations": operations}


def _add(channels: dict[str, Any], operations: dict[str, Any], graph: Graph, node: Node, action: str) -> None:
    key = _key(node.name)
    while key in channels and channels[key]["title"] != node.name:
        key += "_"  # a.b and a_b
    address, parameters = _address(node.name)
    given = node.fields if action == "receive" or not node.inputs else graph.nodes[node.inputs[0].node].fields
    message = {"name": "event", "payload": _payload(given)}
    channels[key] = {"address": address, "title": node.name, "messages": {"event": message}}
    if parameters:
        channels[key]["parameters"] = parameters
    operations[f"{action}_{key}"] = {"action": action, "channel": {"$ref": f"#/channels/{key}"}}


def _key(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _address(subject: str) -> tuple[str, dict[str, Any]]:
    """A subject with its wildcards, or its fields, as parameters."""
    parameters = dict[str, Any]()
    tokens = subject.split(".")
    for place, token in enumerate(tokens):
        if token in ("*", ">"):
            name = f"token{place}" if token == "*" else "rest"
            parameters[name] = {"description": "any token" if token == "*" else "any tokens"}
            tokens[place] = f"{{{name}}}"
        for field in re.findall(r"\{([^{}]+)\}", token):
            parameters[field] = {"description": f"{field} of the event"}
    return ".".join(tokens), parameters


def _payload(fields: Mapping[str, str] | None) -> dict[str, Any]:
    """The JSON Schema of an event with these fields."""
    if fields is None:
        return {}
    return {"type": "object", "properties": {name: dict(_schema(said)) for name, said in fields.items()}}


@cache
def _schema(said: str) -> Mapping[str, Any]:
    """The JSON Schema of a type as the graph writes it; of one of the user's, anything."""
    try:
        found: Mapping[str, Any] = Signature(f"it: {said} -> other").json_schema("inputs")["properties"]["it"]
    except TopologyError:
        return {}
    return {name: value for name, value in found.items() if name not in ("title", "description")}
