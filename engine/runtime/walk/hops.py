"""The steps of a walk at a hop: an event leaves for the partition of its key, and arrives there."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from dspex.bus import subjects
from dspex.bus.codecs.times import is_time
from dspex.bus.errors import InvalidInput
from dspex.bus.message import derived_id, partition_of
from dspex.bus.records import NodeEvent, Origin
from dspex.engine.graph.context import Handler
from dspex.engine.graph.nodes import HopNode, StateNode
from dspex.engine.runtime.arrival import LetOut
from dspex.engine.runtime.process import read, written
from dspex.engine.runtime.walk.request import Forward, too_large


def hop_step(node: HopNode, node_id: str, stage: str, count: int, codec: Any) -> Handler:
    """The step that ends a walk at a hop.

    Args:
        node_id: what ids of its outputs are derived from, besides the event's: an event may leave on several ways at once.
        stage, count: the stage behind it, and how many partitions that has.
    """
    name, key_of, gives = node.name, node.hop.key, node.hop.gives

    def step(data: object, walk: Any) -> None:
        walk.node = name
        key = key_of(data, walk)
        body, content_type = written(data, codec)
        a, o = walk.address, walk.origin
        if len(body) > a.limit:
            raise too_large(name, len(body), a.limit)
        walk.counts[name] = ordinal = walk.counts.get(name, -1) + 1
        id, subject, run, _, own, session, time, sequence, trace, headers, fallback, _ = o  # _replace is slow
        if not is_time(time):  # else it would be no event behind the hop, and no letter either
            why = f"its event time, {time:.0f} seconds since 1970 in UTC, is in none of the years 1 to 9999"
            raise InvalidInput(why, fix="give the source a time= in these years, also where it is another day in UTC")
        child_id, its = derived_id(id, node_id, ordinal), key if gives else own
        child = Origin(child_id, subject, run, id, its, session, time, sequence, trace, headers, fallback)
        to = _edge_of(a.app, a.topology, stage, key, count)
        walk.outputs.append(Forward(to, NodeEvent(name, child, content_type, body).pack(), None, session))

    return step


@lru_cache(8192)
def _edge_of(app: str, topology: str, stage: str, key: str, count: int) -> str:
    """Where events of a key go: kept, because keys come again and their hash is made in Python."""
    return subjects.edge(app, topology, stage, partition_of(key, count))


def arrived_step(after: Handler, typed: Callable[[Any], Any] | None = None) -> Handler:
    """The step at which an event enters the graph behind a hop, or behind an operator with state. `typed`: makes its data."""

    def step(event: NodeEvent, walk: Any) -> None:
        data = read(event)
        after(data if typed is None else typed(data), walk)

    return step


def wake_step(node: StateNode, after: Handler) -> Handler:
    """The step at which an operator with state is woken again, whose own function failed when it was. What would be a letter
    now, it gets back at once."""
    name, woken, back, finish = node.name, node.state.woken, node.state.back, node.state.finish

    def step(event: NodeEvent, walk: Any) -> None:
        walk.node = name
        timer = read(event)
        if woken is None or not isinstance(timer, str):
            raise InvalidInput("it is no timer of this operator", fix="drop this letter: dspex dlq drop")
        for origin, data, error, between in woken(walk, timer):
            walk.resume(origin, name, walk.clock)
            walk.lets_out(LetOut(name, origin, origin.cause, between))
            if error is None:
                after(data if finish is None else finish(data), walk)
            elif back is not None:
                back(data, walk)
            else:
                raise error

    return step


def back_step(node: StateNode) -> Handler:
    """The step at which an operator gets back what it has let out as a letter."""
    return _given(node.name, node.state.back)


def told_step(node: StateNode) -> Handler:
    """The step at which an operator is told something: that changes what it keeps, and nothing goes on at once."""
    return _given(node.name, node.state.told)


def _given(name: str, take: Callable[[Any, Any], None] | None) -> Handler:
    def step(event: NodeEvent, walk: Any) -> None:
        walk.node = name
        if take is not None:
            take(read(event), walk)

    return step


def handed_on_step(stage: str, count: int) -> Handler:
    """The step at which an event ends that was on its way to a stage of before: it goes on to that of now."""

    def step(event: NodeEvent, walk: Any) -> None:
        a, origin = walk.address, event.origin
        to = subjects.edge(a.app, a.topology, stage, partition_of(origin.key or "", count))
        walk.outputs.append(Forward(to, event.pack(), None, origin.session))

    return step
