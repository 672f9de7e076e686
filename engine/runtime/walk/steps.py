"""Steps that end a walk in a call, or hand on to several that follow; `compile.py` links them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dspex.bus.codecs.copied import copied
from dspex.engine.graph.context import Context, Handler
from dspex.engine.graph.nodes import CallNode, Node, SinkNode
from dspex.engine.runtime.process import read, written
from dspex.engine.runtime.walk.request import open_call


def call_step(node: CallNode, codec: Any) -> Handler:
    """The step that ends a walk in a call; its record begins another."""
    name = node.name

    def step(data: object, walk: Any) -> None:
        walk.node = name
        open_call(walk, node, data, *written(data, codec), None, 0)

    return step


def redriven(landing: Handler, gate: Handler) -> Handler:
    """The step at which events enter at a call with order="serial": a redriven one waits for its turn, too."""

    def step(event: Any, walk: Any) -> None:
        if event.outputs is not None:
            landing(event, walk)
        else:
            gate(read(event), walk)

    return step


def fan_out(branches: Sequence[tuple[Node, Handler]]) -> Handler:
    """One step that hands on to all branches, in graph order.

    A function of the user's that changes its argument must not change what a sibling gets. So each branch but the last gets a
    copy; a sink encodes the data at once and needs none.
    """
    if len(branches) == 1:
        return branches[0][1]
    if not branches:
        return nowhere
    *first, (_, last) = [(not isinstance(node, SinkNode), step) for node, step in branches]

    def step(data: object, ctx: Context) -> None:
        for changes, branch in first:
            branch(copied(data) if changes else data, ctx)
        last(data, ctx)

    return step


def nowhere(data: object, ctx: Context) -> None:
    """The step of an outlet that nothing is attached to."""
