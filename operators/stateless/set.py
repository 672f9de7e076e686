"""set: add or replace fields, each by an expression over the data as it came in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dspex.engine.graph.context import Build
from dspex.operators.expressions import language as expressions
from dspex.operators.operator import Operator
from dspex.operators.parameters import INTO, ExpressionsParameter
from dspex.operators.stateless.adding import adding


def build(fields: Mapping[str, str], into: object = None) -> Build:
    """The step makes `{**data, **fields}`, typed by `into` where that is given."""
    compiled = {name: expressions.compile(text).function for name, text in fields.items()}
    return adding(lambda data, ctx: {name: value(data, ctx) for name, value in compiled.items()}, into)


OPERATOR = Operator(
    "set",
    main=ExpressionsParameter(example='set: { total: "price * count" }'),
    options={"into": INTO},
    build=build,
    shape=lambda shape, o: shape.plus(dict.fromkeys(o["set"], Any)),
)
