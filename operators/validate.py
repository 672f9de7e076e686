"""validate: check data against a type or a JSON Schema; data that does not fit goes to the dead letters, or is skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dspex.bus.errors import InvalidInput
from dspex.engine.graph import Build, Context, Step
from dspex.operators.call_options import wrong
from dspex.operators.draft import problem
from dspex.operators.types import is_record, record_of, validator


def build(schema: Any, on_error: str = "dead_letter") -> Build:
    """The step hands on the typed value (of a type), or the data as it is (of a JSON Schema)."""
    if on_error not in ("dead_letter", "skip"):
        raise wrong("on_error", on_error, "one of: dead_letter, skip")
    accept = schema_validator(schema) if isinstance(schema, Mapping) else validator(schema)

    def make(outlets: Sequence[Step]) -> Step:
        (out,) = outlets

        def step(data: Any, ctx: Context) -> None:
            out(accept(data), ctx)

        def step_that_skips(data: Any, ctx: Context) -> None:
            try:
                valid = accept(data)
            except InvalidInput:
                return
            out(valid, ctx)

        return step_that_skips if on_error == "skip" else step

    return make


def schema_validator(schema: Mapping[str, Any]) -> Callable[[Any], Any]:
    """A check against a JSON Schema (2020-12) that lists every error. Raises TopologyError (DX226) for a bad schema."""
    import jsonschema_rs  # here: most topologies need not pay for it

    try:
        # offline: a schema that fetched its parts from the network would not be the same at every run
        compiled = jsonschema_rs.validator_for(dict(schema), offline=True)
    except ValueError as e:
        raise problem("DX226", f"not a JSON Schema: {str(e).splitlines()[0]}", "correct the schema (2020-12)") from e

    def check(data: Any) -> Any:
        plain = record_of(data) if data.__class__ is not dict and is_record(data) else data
        if not compiled.is_valid(plain):
            found = [f"{'.'.join(map(str, e.instance_path)) or 'data'}: {e.message}" for e in compiled.iter_errors(plain)]
            raise InvalidInput(f"the data does not fit the schema: {'; '.join(found)}")
        return data

    return check
