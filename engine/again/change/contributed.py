"""Which runs begin with what an operator made of the events of a run: those of the windows and batches that these are in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias

from dspex.bus.records import Origin
from dspex.engine.graph.context import Handler
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import Emitted, State, StateNode

RowAt: TypeAlias = tuple[str, str, str]
"""Operator, key and sub-key."""
_OWN: Final = ("_read", "_rows", "_runs", "_tainted")


def following(graph: Graph, runs: set[str], tainted: set[RowAt]) -> Graph:
    """The graph, which adds to `runs` those that begin with what was made of something of theirs. `tainted`: rows that have
    something of theirs.
    """
    nodes = {
        name: replace(node, state=_followed(node.state, name, runs, tainted)) if isinstance(node, StateNode) else node
        for name, node in graph.nodes.items()
    }
    return replace(graph, nodes=nodes)


def keepers(graph: Graph, at: str) -> set[str]:
    """The operators with state from which events come to an operator: the nearest ones, and itself where it has state."""
    found, left, seen = {at} if graph.nodes[at].role == "state" else set[str](), [at], set[str]()
    while left:
        for inlet in graph.nodes[left.pop()].inputs:
            if graph.nodes[inlet.node].role == "state":
                found.add(inlet.node)
            elif inlet.node not in seen:
                seen.add(inlet.node)
                left.append(inlet.node)
    return found


def _followed(own: State, name: str, runs: set[str], tainted: set[RowAt]) -> State:

    def step(out: Handler, inlet: int) -> Callable[[Any, Any], None]:
        inner = own.step(out, inlet)

        def run(data: Any, rows: Any) -> None:
            mine, before = rows.origin.run in runs, dict(rows.staged.rows)
            inner(data, rows)
            wrote = {at: row for at, row in rows.staged.rows.items() if at[0] == name and before.get(at, before) is not row}
            gone = {at for at, row in wrote.items() if row is None}
            if mine or tainted & gone:  # what was in a row that is no more is in the others now
                tainted.update(wrote.keys() - gone)
            tainted.difference_update(gone)

        return run

    def woken(rows: Any, timer: str) -> Sequence[Emitted]:
        reading: Any = _Reading(rows, tainted, runs)
        found = own.woken(reading, timer) if own.woken is not None else ()
        tainted.difference_update(at for at, row in rows.staged.rows.items() if row is None)
        return found

    return replace(own, step=step, woken=woken if own.woken is not None else None)


class _Reading:
    """Rows, of which is noted what was read for the next event that begins a run."""

    __slots__ = _OWN

    def __init__(self, rows: Any, tainted: set[RowAt], runs: set[str]) -> None:
        self._rows, self._tainted, self._runs, self._read = rows, tainted, runs, set[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._rows, name, value)

    def row(self, sub: str = "") -> bytes | None:
        self._read.add(sub)
        found: bytes | None = self._rows.row(sub)
        return found

    def new_origin(self, time: float) -> Origin:
        node, key, _ = self._rows._at("")
        origin: Origin = self._rows.new_origin(time)
        if any((node, key, sub) in self._tainted for sub in self._read):
            self._runs.add(origin.run)
        self._read.clear()
        return origin
