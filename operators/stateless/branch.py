"""branch: the outlet of the first test that passes; the last outlet takes the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dspex.engine.graph.context import Build, Context, Handler
from dspex.operators.expressions.predicate import Predicate, predicate
from dspex.operators.operator import Operator
from dspex.operators.parameters import TestsParameter
from dspex.operators.typing.shape import narrowed


def build(tests: Sequence[str | Callable[[Any], Any]]) -> Build:
    """One outlet a test, and one more for what passes none."""
    compiled = [predicate(t, "branch") for t in tests]

    def make(outlets: Sequence[Handler]) -> Handler:
        if len(compiled) == 1 and not compiled[0].with_context:
            return _one_test(compiled[0].function, outlets[0], outlets[1])
        return _many_tests(compiled, outlets)

    return make


def _one_test(passes: Callable[[Any], Any], match: Handler, rest: Handler) -> Handler:
    def step(data: object, ctx: Context) -> None:
        if passes(data):
            match(data, ctx)
        else:
            rest(data, ctx)

    return step


def _many_tests(compiled: Sequence[Predicate], outlets: Sequence[Handler]) -> Handler:
    cases = [(p.function, p.with_context, out) for p, out in zip(compiled, outlets[:-1])]
    rest = outlets[-1]

    def step(data: object, ctx: Context) -> None:
        for passes, with_context, out in cases:
            if passes(data, ctx) if with_context else passes(data):
                out(data, ctx)
                return
        rest(data, ctx)

    return step


OPERATOR = Operator(
    "branch",
    main=TestsParameter(),
    build=build,
    shape=lambda shape, o: [*(narrowed(test, shape) for test in o["branch"]), shape],
    outlets=lambda tests: len(tests) + 1,
)
