"""flat_map: one datum in, any number out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dspex.bus.codecs.copied import copied
from dspex.bus.errors import DataError
from dspex.engine.graph.context import Build, Context, Handler
from dspex.operators.operator import Operator
from dspex.operators.parameters import FunctionParameter
from dspex.operators.typing.functions import function_name, takes_context
from dspex.operators.typing.shape import is_record, returned_items


def build(fn: Callable[..., Any]) -> Build:
    """The step takes all items before it hands on the first one.

    Handing them on one by one would let an error in the user's generator come out of the middle of a later operator.
    """
    with_context, name = takes_context(fn, "flat_map"), function_name(fn)

    def make(outlets: Sequence[Handler]) -> Handler:
        (out,) = outlets

        def step(data: object, ctx: Context) -> None:
            result = fn(data, ctx) if with_context else fn(data)
            found = result if type(result) is list else items(result, name)
            for item in found[:-1]:  # they may share what a function behind them changes
                out(copied(item), ctx)
            for item in found[-1:]:
                out(item, ctx)

        return step

    return make


def items(result: Any, name: str, operator: str = "flat_map") -> list[object]:
    """The items of a function's result. Raises DataError for one that is itself a datum."""
    if isinstance(result, (str, bytes, bytearray)) or is_record(result) or not isinstance(result, Iterable):
        raise DataError(
            f"{operator} needs many items, and {name} returned {type(result).__name__}",
            fix=f"return a list: [{type(result).__name__}]{', or use .map()' if operator == 'flat_map' else '; [] for none'}",
        )
    return list(result)


OPERATOR = Operator(
    "flat_map",
    main=FunctionParameter(),
    build=build,
    shape=lambda shape, o: returned_items(o["flat_map"]),
)
