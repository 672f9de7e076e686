"""The step of operators that add fields to the data: `set`, `render`, `parse`, `score`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dspex.engine.graph.context import Build, Context, Handler
from dspex.operators.typing.shape import record_of, validator


def adding(fields: Callable[[Any, Context], Mapping[str, object]], into: object) -> Build:
    """The step makes `{**data, **fields(data, ctx)}`, checked and typed by `into` where that is given."""
    accept = None if into is None else validator(into)

    def make(outlets: Sequence[Handler]) -> Handler:
        (out,) = outlets

        def step(data: object, ctx: Context) -> None:
            result = {**record_of(data), **fields(data, ctx)}
            out(result if accept is None else accept(result), ctx)

        return step

    return make
