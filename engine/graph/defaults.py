"""Call options that a deployment sets for every recorded operator: `[defaults.call]` and `pools.*.timeout` in dspex.toml.

An option at the operator wins over a default, and a default over what is built in; the timeout of a pool wins over that of
`[defaults.call]`. `retry` and `config` count as a whole. The options of the nodes stay as they were written, and with them the
digest of the topology: it says what the topology is, and defaults belong to the place where it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import Call, CallNode, Retry

# of these the worker must know; the others concern the engine alone
_OF_SPEC = ("lm", "adapter", "config", "route", "cache", "cost", "hedge", "first_token_timeout", "choose")
_OF_ONE_REQUEST = ("hedge", "first_token_timeout")  # of these where no code of users runs, and which are asked live


def with_defaults(graph: Graph, defaults: Mapping[str, object], timeouts: Mapping[str, float] = MappingProxyType({})) -> Graph:
    """The graph, its calls with these options where their operators set none. The same digest.

    Args:
        defaults: checked call options as plain data, durations in seconds.
        timeouts: of calls, by pool. A default deadline that is shorter becomes as long.
    """
    if not defaults and not timeouts:
        return graph
    nodes = dict(graph.nodes) | {
        n.name: replace(n, call=_timed(n, _call(n, defaults), defaults, timeouts)) for n in graph.calls
    }
    return replace(graph, nodes=nodes)


def _timed(node: CallNode, call: Call, defaults: Mapping[str, object], timeouts: Mapping[str, float]) -> Call:
    if "timeout" in node.options or call.pool not in timeouts:
        return call
    limit = timeouts[call.pool]
    said = "deadline" in node.options or "deadline" in defaults
    return replace(call, timeout=limit, deadline=call.deadline if said else max(call.deadline, limit))


def _call(node: CallNode, defaults: Mapping[str, object]) -> Call:
    unset: dict[str, Any] = {name: value for name, value in defaults.items() if name not in node.options}
    if "lm" in unset:
        unset["lm"] = tuple(unset["lm"])
    if "retry" in unset:
        unset["retry"] = Retry(**unset["retry"])
    spec = {name: unset.pop(name) for name in _OF_SPEC if name in unset}
    if node.call.spec.kind not in ("predict", "chain_of_thought") or node.call.spec.lane == "batch":
        spec = {name: value for name, value in spec.items() if name not in _OF_ONE_REQUEST}
    if not node.call.spec.asks_a_model:
        spec = {name: value for name, value in spec.items() if name in ("cache", "cost")}
    if len(spec.get("lm", node.call.spec.lm)) < 2 or node.call.spec.lane == "batch":
        spec.pop("choose", None)  # of a list, which is asked live
    return replace(node.call, spec=replace(node.call.spec, **spec), **unset)
