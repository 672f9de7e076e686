"""score: how well a text answers, by a metric, into a field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from dspex.bus.errors import DataError
from dspex.engine.graph.context import Build, Context
from dspex.operators.expressions import language as expressions
from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.problems import did_you_mean, problem
from dspex.operators.operator import Operator
from dspex.operators.parameters import INTO, ExpressionParameter, FieldNameParameter, TextOrFunctionParameter
from dspex.operators.stateless.adding import adding
from dspex.operators.typing.functions import function_name

Compare = Callable[[Any, Any], float]


def build(metric: str | Compare, *, expected: str, actual: str, field: str = "score", into: object = None) -> Build:
    """The step makes `{**data, field: metric(actual, expected)}`, typed by `into` where that is given."""
    function, name = metric_of(metric), metric if isinstance(metric, str) else function_name(metric)
    read_actual, read_expected = expressions.compile(actual).function, expressions.compile(expected).function

    def fields(data: object, ctx: Context) -> dict[str, object]:
        return {field: as_number(function(read_actual(data, ctx), read_expected(data, ctx)), name)}

    return adding(fields, into)


def metric_of(metric: object) -> Compare:
    """The function of (actual, expected). Raises TopologyError (DX205) for an unknown name, DX219 for what is no function."""
    if isinstance(metric, str):
        from dspex.operators.native.metrics.metrics import METRICS  # here: most topologies need not pay for it

        if metric not in METRICS:
            raise problem("DX205", f"there is no metric {metric!r}", did_you_mean(metric, METRICS))
        return METRICS[metric]
    if not callable(metric):
        raise problem(
            "DX219",
            f"score takes a metric, and this is {metric!r}",
            'the name of one, "f1", or a function of (actual, expected)',
        )
    return cast("Compare", metric)


def as_number(value: object, name: str) -> float:
    """What a metric gave. Raises DataError for anything but a number."""
    if isinstance(value, (int, float)):
        return float(value)
    raise DataError(f"the metric {name} gave {type(value).__name__}, which is no number", fix="return a float or a bool")


@dataclass(frozen=True)
class MetricParameter(TextOrFunctionParameter):
    """The name of a metric, or a function of (actual, expected). YAML: the name, or the function's ref."""

    noun: ClassVar[str] = "a name of `dspex.metrics`, or a function of (actual, expected)"
    form: ClassVar[JsonSchema] = {"type": "string", "description": "a name of dspex.metrics, or the ref of a function"}

    def check(self, name: str, value: object) -> object:
        metric_of(value)
        return value


OPERATOR = Operator(
    "score",
    main=MetricParameter(),
    options={
        "expected": ExpressionParameter(doc="the reference, or a list of them"),
        "actual": ExpressionParameter(doc="the answer"),
        "field": FieldNameParameter("score", doc="takes the number"),
        "into": INTO,
    },
    build=build,
    shape=lambda shape, o: shape.plus({o["field"]: float}),
)
