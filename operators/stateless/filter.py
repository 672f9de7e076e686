"""filter: keep what passes a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dspex.engine.graph.context import Build, Context, Handler
from dspex.operators.expressions.predicate import predicate
from dspex.operators.operator import Operator
from dspex.operators.parameters import TestParameter
from dspex.operators.typing.shape import narrowed


def build(test: str | Callable[[Any], Any]) -> Build:
    """The step hands on data for which the test is true; the rest is dropped."""
    passes, with_context = predicate(test, "filter")

    def make(outlets: Sequence[Handler]) -> Handler:
        (out,) = outlets

        def step(data: object, ctx: Context) -> None:
            if passes(data):
                out(data, ctx)

        def step_with_context(data: object, ctx: Context) -> None:
            if passes(data, ctx):
                out(data, ctx)

        return step_with_context if with_context else step

    return make


OPERATOR = Operator(
    "filter",
    main=TestParameter(),
    build=build,
    shape=lambda shape, o: narrowed(o["filter"], shape),
)
