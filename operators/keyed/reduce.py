"""reduce: one datum for each key, which every event makes anew and lets out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dspex.bus.errors import DataError
from dspex.engine.graph.nodes import State
from dspex.operators.keyed.stateful import Stateful, shown
from dspex.operators.keyed.values import StateValues
from dspex.operators.operator import Operator
from dspex.operators.parameters import CallableParameter, DurationParameter
from dspex.operators.typing.functions import function_name

_NONE = object()


def build(fn: Callable[[Any, Any], Any], ttl: float | None = None, typed: object = None) -> State:
    """`stateful` with a function that lets out what it keeps."""

    def following(before: Any, data: Any, ctx: object) -> tuple[Any, list[Any]]:
        found = data if before is _NONE else fn(before, data)
        if found is None:
            raise DataError(f"{function_name(fn)} returned nothing", fix="return what it makes of the two")
        return found, [found]

    return Stateful(following, lambda: _NONE, None, ttl, StateValues(of=typed)).state()


OPERATOR = Operator(
    "reduce",
    main=CallableParameter(takes=("before", "data"), doc="gives what is kept in the place of `before`"),
    options={"ttl": DurationParameter(None, zero=False, doc="forget a key after so much event time without an event of it")},
    build=build,
    keyed=True,
    shown=shown,
    typed=True,
)
