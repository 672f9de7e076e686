"""How long operators take in this process. Measured by steps around their own, which are linked only where somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, NamedTuple

from dspex.engine.graph.context import Handler
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import SourceNode, StateNode, operator_of


class NodeTime(NamedTuple):
    """What an operator did. `handled`: events that came to it. `seconds`: without what lies behind it."""

    topology: str
    node: str
    handled: int
    seconds: float


@dataclass(slots=True)
class _Taken:
    handled: int = 0
    seconds: float = 0.0


class NodeTimes:
    """Seconds and events by operator, since this was made.

    A step calls the next one, so the time of each is what passes until the next begins, and after that has ended.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._taken: dict[tuple[str, str], _Taken] = {}
        self._now: _Taken | None = None  # whose step runs
        self._since = 0.0

    def around(self, node: tuple[str, str], inner: Handler, *, events: int = 1) -> Handler:
        """`inner`, measured as a step of `node`: (topology, operator). `events`: that come to it with each."""

        def step(data: Any, walk: Any) -> None:
            self.within(node, lambda: inner(data, walk), events)

        return step

    def within(self, node: tuple[str, str], run: Callable[[], Any], events: int = 0) -> Any:
        """What `run` returns, or raises; it takes its time for `node`."""
        taken, above = self._taken.setdefault(node, _Taken()), self._now
        taken.handled += events
        self._switch(taken)
        try:
            return run()
        finally:
            self._switch(above)

    def _switch(self, to: _Taken | None) -> None:
        now = self._clock()
        if self._now is not None:
            self._now.seconds += now - self._since
        self._now, self._since = to, now

    def entered(self, graph: Graph, entries: Mapping[str, Handler], states: Mapping[str, StateNode]) -> dict[str, Any]:
        """The steps at which events enter a stage, and its operators with state, measured; what comes to a source, enters."""
        begins = {name for name, node in graph.nodes.items() if isinstance(node, SourceNode)}
        return {
            "entries": {
                name: self.around((graph.name, operator_of(name)), step, events=int(name in begins))
                for name, step in entries.items()
            },
            "states": {name: self._woken(graph.name, node) for name, node in states.items()},
        }

    def _woken(self, topology: str, node: StateNode) -> StateNode:
        inner, of = node.state.woken, (topology, node.name)
        if inner is None:
            return node

        def woken(walk: Any, timer: str) -> Any:
            return self.within(of, lambda: inner(walk, timer))

        return replace(node, state=replace(node.state, woken=woken))

    def report(self) -> Sequence[NodeTime]:
        """Those that did something; what took longest first."""
        found = [NodeTime(*node, taken.handled, taken.seconds) for node, taken in self._taken.items()]
        return sorted(found, key=lambda one: -one.seconds)
