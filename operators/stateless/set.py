"""set: add or replace fields, each by an expression over the data as it came in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dspex.engine.graph.context import Build, Context, Handler
from dspex.operators.expressions import language as expressions
from dspex.operators.operator import Operator
from dspex.operators.parameters import INTO, ExpressionsParameter
from dspex.operators.typing.shape import record_of, validator


def build(fields: Mapping[str, str], into: object = None) -> Build:
    """The step makes `{**data, **fields}`, typed by `into` where that is given."""
    compiled = {name: expressions.compile(text).function for name, text in fields.items()}
    accept = None if into is None else validator(into)

    def make(outlets: Sequence[Handler]) -> Handler:
        (out,) = outlets

        def step(data: object, ctx: Context) -> None:
            result = {**record_of(data), **{name: value(data, ctx) for name, value in compiled.items()}}
            out(result if accept is None else accept(result), ctx)

        return step

    return make


OPERATOR = Operator(
    "set",
    main=ExpressionsParameter(example='set: { total: "price * count" }'),
    options={"into": INTO},
    build=build,
    shape=lambda shape, o: shape.plus(dict.fromkeys(o["set"], Any)),
    doc="the datum with these fields, each an expression over the datum as it came in",
)
