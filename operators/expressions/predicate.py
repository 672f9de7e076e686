"""Tests of `filter` and `branch`: an expression, or a function of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dspex.operators.expressions import language as expressions
from dspex.operators.typing.functions import takes_data_only


class Predicate(NamedTuple):
    """A compiled test. `function` takes (data), or (data, ctx) where `with_context`."""

    function: Callable[..., Any]
    with_context: bool = False


def predicate(test: Any, op: str) -> Predicate:
    """Compile a test. Raises TopologyError for a bad expression or a function of another arity."""
    if isinstance(test, str):
        expression = expressions.compile(test)
        return Predicate(expression.function, expression.uses_event)
    takes_data_only(test, op)
    return Predicate(test)
