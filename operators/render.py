"""render: fill a template with the data and put the text in a field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dspex.engine.graph import Build, Context, Step
from dspex.operators import template
from dspex.operators.call_options import wrong
from dspex.operators.types import record_of, validator


def build(text: str, field: str, into: Any = None) -> Build:
    """The step makes `{**data, field: rendered text}`, typed by `into` where that is given."""
    if not isinstance(field, str) or not field:  # pyright: ignore[reportUnnecessaryIsInstance]  # YAML may give anything
        raise wrong("field", field, "the name of the field that takes the text")
    fill = template.renderer(template.parse(text), template.as_text)
    accept = None if into is None else validator(into)

    def make(outlets: Sequence[Step]) -> Step:
        (out,) = outlets

        def step(data: Any, ctx: Context) -> None:
            result = {**record_of(data), field: fill(data, ctx)}
            out(result if accept is None else accept(result), ctx)

        return step

    return make
