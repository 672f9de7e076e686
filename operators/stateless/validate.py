"""validate: check data against a type or a JSON Schema; data that does not fit goes to the dead letters, or is skipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dspex.bus.codecs.plain import KEEPS_MORE
from dspex.bus.errors import InvalidInput
from dspex.engine.graph.context import Build, Context, Handler
from dspex.operators.native.problems import problem
from dspex.operators.native.templates.schema import Schema
from dspex.operators.operator import Operator
from dspex.operators.parameters import ChoiceParameter, TypeParameter
from dspex.operators.parameters.values import mapping
from dspex.operators.typing.names import Extra, OnError
from dspex.operators.typing.shape import Shape, is_record, record_of, shape_of, validator

_PYDANTIC = {"drop": "ignore", "keep": "allow", "refuse": "forbid", None: None}


def build(schema: object, on_error: OnError = "dead_letter", extra: Extra | None = None) -> Build:
    """The step hands on the typed value (of a type), or the data as it is (of a JSON Schema)."""
    json_schema = mapping(schema)
    if extra is not None:
        _check_extra(schema, extra)
    if extra == "keep":
        KEEPS_MORE.add(schema)
    accept = validator(schema, extra=_PYDANTIC[extra]) if json_schema is None else schema_validator(json_schema)

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


def _check_extra(schema: object, extra: Extra) -> None:
    """Raise TopologyError (DX205) where the option would do nothing, or lose what it says it keeps."""
    if mapping(schema) is not None:
        raise problem(
            "DX205", f"extra={extra!r} is for a type, and this is a JSON Schema", "say additionalProperties in the schema"
        )
    if isinstance(schema, type) and schema.__module__ == "builtins":
        raise problem("DX205", f"extra={extra!r} is for a type with fields, and {schema.__name__} has none", "leave it out")
    if extra == "keep" and dataclasses.is_dataclass(schema):
        fix = "take a pydantic model or a TypedDict"
        raise problem("DX205", "a dataclass has no room for fields that it does not name", fix)


def _shape(o: Mapping[str, Any]) -> Shape:
    shape = shape_of(o["validate"])
    return Shape(shape.type) if o["extra"] == "keep" else shape  # it has more fields than the type names


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
    options={
        "on_error": ChoiceParameter("dead_letter", of=OnError, doc="where data goes that does not fit; `skip`: nowhere"),
        "extra": ChoiceParameter(
            None, of=Extra, doc="fields that the type does not name, at every level; default: as the type says, else `drop`"
        ),
    },
    build=build,
    shape=lambda shape, o: shape if isinstance(o["validate"], Mapping) else _shape(o),
)
