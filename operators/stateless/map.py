"""map: one datum in, one out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dspex.engine.graph.context import Build, Context, Handler
from dspex.operators.operator import Operator
from dspex.operators.parameters import FunctionParameter
from dspex.operators.typing.functions import takes_context
from dspex.operators.typing.shape import returned


def build(fn: Callable[..., Any]) -> Build:
    """The step calls the function, then the next step: nothing else is on the way."""
    with_context = takes_context(fn, "map")

    def make(outlets: Sequence[Handler]) -> Handler:
        (out,) = outlets

        def step(data: object, ctx: Context) -> None:
            out(fn(data), ctx)

        def step_with_context(data: object, ctx: Context) -> None:
            out(fn(data, ctx), ctx)

        return step_with_context if with_context else step

    return make


OPERATOR = Operator(
    "map",
    main=FunctionParameter(),
    build=build,
    shape=lambda shape, o: returned(o["map"]),
)
