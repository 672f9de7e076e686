"""What an event leaves in an operator, and a later event of another run takes over: that run is not there again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from dspex.engine.client.runs.export import RunFile
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import Emitted, State, StateNode

_TAKE_OVER: Final = {"debounce", "join", "stateful"}  # operators in which a later event may take what waits for another one


def taken_over(graphs: Sequence[Graph], file: RunFile, run: str) -> list[Graph]:
    """The graphs, in which timers of a run do not come due that did not then, of its keys. `run`: the id that it has now."""
    keys, then = {*file.keys, ""}, {(one.topology, one.node): one.timers for one in file.state.woken}
    found = list[Graph]()
    for graph in graphs:
        nodes = {
            name: replace(node, state=_as_then(node.state, run, keys, then[graph.name, name]))
            for name, node in graph.nodes.items()
            if isinstance(node, StateNode) and node.op in _TAKE_OVER and (graph.name, name) in then
        }
        found.append(replace(graph, nodes={**graph.nodes, **nodes}) if nodes else graph)
    return found


def _as_then(own: State, run: str, keys: Collection[str], timers: Collection[list[str]]) -> State:
    """An operator that is not woken by a timer that did not come due then. `keys`: only of these anything is known."""

    def woken(rows: Any, name: str) -> Sequence[Emitted]:
        key = rows.origin.key or ""
        if own.woken is None or (rows.origin.run == run and key in keys and [key, name] not in timers):
            return ()
        return own.woken(rows, name)

    return replace(own, woken=woken)
