"""A graph whose native operators are watched: what goes into each, and what it gives, which whoever watches may change.

Walking a recorded arrival again through such a graph makes the values between calls once more, which no stream keeps. It is
the same graph otherwise: names, ids and digests are those of the graph that is watched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.engine.graph.context import Build, Handler
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import Emitted, NativeNode, Node, State, StateNode
from dspex.engine.log.tables import Tables
from dspex.engine.runtime.arrival import Arrival


class ReplayPlace(NamedTuple):
    """Where something was taken: `entry` is the sequence of the log entry. It sorts as things came in a partition."""

    stage: str
    partition: int
    entry: int


class Watcher:
    """Sees all and changes nothing: what is made of it overrides what it cares for. `walk` is the context of the operator."""

    def arrives(self, where: ReplayPlace, arrival: Arrival, *, again: bool) -> Arrival:
        """An arrival is about to be handled; what shall be. `again`: some of its outputs were committed before: it is walked
        again."""
        return arrival

    def takes(self, where: ReplayPlace, arrival: Arrival, tables: Tables) -> None:
        """An arrival is handled now. `tables`: as they are before."""

    async def gave(self, where: ReplayPlace, messages: Sequence[NewMessage]) -> None:
        """All arrivals of an entry were handled; what came of them, which would be stored."""

    async def gave_other(self, where: ReplayPlace, messages: Sequence[NewMessage], stored: Sequence[Message | None]) -> None:
        """The same where it is not what was stored, of a replay that goes on with it. None: what is gone."""

    def enters(self, node: str, data: Any, walk: Any) -> Any:
        """Something comes to an operator; what it shall get."""
        return data

    def gives(self, node: str, outlet: int, data: Any, walk: Any) -> Any:
        """An operator hands something on; what those behind it shall get."""
        return data

    def leaves(self, node: str, walk: Any) -> None:
        """An operator is done with what came, and so are all behind it."""

    def fails(self, node: str, error: BaseException, walk: Any) -> None:
        """It is done, because it or something behind it has raised."""

    def woken(self, node: str, given: Sequence[Emitted], walk: Any) -> Sequence[Emitted]:
        """A timer has woken an operator; what comes out of it."""
        return given

    def finished(self, node: str, before: Any, data: Any) -> None:
        """Of what came out so, it was only now made what goes on. `before`: what it was."""


def watched(graph: Graph, watcher: Watcher) -> Graph:
    """The graph, watched."""
    return replace(graph, nodes={name: _watched(node, watcher) for name, node in graph.nodes.items()})


def _watched(node: Node, watcher: Watcher) -> Node:
    match node:
        case NativeNode():
            return replace(node, build=_build(node.name, node.build, watcher))
        case StateNode():
            return replace(node, state=_state(node.name, node.state, watcher))
        case _:
            return node


def _build(name: str, build: Build, watcher: Watcher) -> Build:
    def make(outlets: Sequence[Handler]) -> Handler:
        return _step(name, build([_out(name, index, out, watcher) for index, out in enumerate(outlets)]), watcher)

    return make


def _step(name: str, inner: Handler, watcher: Watcher) -> Handler:
    def step(data: object, walk: Any) -> None:
        given = watcher.enters(name, data, walk)
        try:
            inner(given, walk)
        except BaseException as error:
            watcher.fails(name, error, walk)
            raise
        watcher.leaves(name, walk)

    return step


def _out(name: str, outlet: int, after: Handler, watcher: Watcher) -> Handler:
    def out(data: object, walk: Any) -> None:
        after(watcher.gives(name, outlet, data, walk), walk)

    return out


def _state(name: str, state: State, watcher: Watcher) -> State:
    def step(after: Handler, inlet: int) -> Callable[[Any, Any], None]:
        inner = cast("Handler", state.step(_out(name, 0, after, watcher), inlet))
        return _step(name, inner, watcher)

    def woken(rows: Any, timer: str) -> Sequence[Emitted]:
        assert state.woken is not None
        return watcher.woken(name, state.woken(rows, timer), rows)

    def finish(data: Any) -> Any:
        assert state.finish is not None
        made = state.finish(data)
        watcher.finished(name, data, made)
        return made

    made = replace(state, step=step, woken=woken if state.woken is not None else None)
    return replace(made, finish=finish) if state.finish is not None else made
