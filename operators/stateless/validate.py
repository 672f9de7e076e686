"""validate: check data against a type or a JSON Schema; data that does not fit goes to the dead letters, or is skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dspex.bus.errors import InvalidInput
from dspex.engine.graph.context import Build, Context, Handler
from dspex.operators.native.templates.schema import Schema
from dspex.operators.operator import Operator
from dspex.operators.parameters import ChoiceParameter, TypeParameter
from dspex.operators.parameters.values import mapping
from dspex.operators.typing.names import OnError
from dspex.operators.typing.shape import is_record, record_of, shape_of, validator


def build(schema: object, on_error: OnError = "dead_letter") -> Build:
    """The step hands on the typed value (of a type), or the data as it is (of a JSON Schema)."""
    json_schema = mapping(schema)
    accept = validator(schema) if json_schema is None else schema_validator(json_schema)

    def make(outlets: Sequence[Handler]) -> Handler:
        (out,) = outlets

        def step(data: object, ctx: Context) -> None:
            out(accept(data), ctx)

        def step_that_skips(data: object, ctx: Context) -> None:
            try:
                valid = accept(data)
            except InvalidInput:
                return
            out(valid, ctx)

        return step_that_skips if on_error == "skip" else step

    return make


def schema_validator(schema: Mapping[str, Any]) -> Callable[[Any], Any]:
    """A check against a JSON Schema (2020-12) that lists every error. Raises TopologyError (DX226) for a bad schema."""
    check = Schema(schema).check

    def accept(data: object) -> object:
        check(record_of(data) if data.__class__ is not dict and is_record(data) else data)
        return data

    return accept


OPERATOR = Operator(
    "validate",
    main=TypeParameter(),
    options={"on_error": ChoiceParameter("dead_letter", of=OnError, doc="where data goes that does not fit; `skip`: nowhere")},
    build=build,
    shape=lambda shape, o: shape if isinstance(o["validate"], Mapping) else shape_of(o["validate"]),
)
