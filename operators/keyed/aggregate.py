"""aggregate: a state for each key, which every event makes anew and lets out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dspex.engine.graph.nodes import State
from dspex.operators.keyed.stateful import Stateful, shown
from dspex.operators.keyed.windows.gives import folded
from dspex.operators.operator import Operator
from dspex.operators.parameters import Arguments, CallableParameter, DurationParameter
from dspex.operators.typing.shape import UNKNOWN, Shape, returned


def build(init: Callable[[], Any], fold: Callable[[Any, Any], Any], ttl: float | None = None) -> State:
    """`stateful` with a function that lets out what it keeps."""

    def fn(state: Any, data: Any, ctx: object) -> tuple[Any, list[Any]]:
        found = folded(fold, state, data)
        return found, [found]

    return Stateful(fn, init, None, ttl).state()


def shape(data: Shape, o: Arguments) -> Shape:
    """What the annotation of `fold` says."""
    return returned(o["fold"]) if callable(o["fold"]) else UNKNOWN


OPERATOR = Operator(
    "aggregate",
    main=CallableParameter(takes=(), doc="makes the state of a key that has none; called once at build, too"),
    options={
        "fold": CallableParameter(takes=("state", "data"), doc="gives the new state"),
        "ttl": DurationParameter(None, zero=False, doc="forget a key after so much event time without an event of it"),
    },
    build=build,
    shape=shape,
    keyed=True,
    shown=shown,
)
