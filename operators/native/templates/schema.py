"""JSON Schema (2020-12): checked by jsonschema-rs, all errors at once.

    Schema({"type": "object", "required": ["id"]}).check({"id": 1})

Nothing is fetched: references lead into the schema itself only. Patterns run on an engine of linear time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, cast

import orjson

from dspex.bus.codecs import json_bytes
from dspex.bus.errors import InvalidInput
from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.problems import problem
from dspex.operators.native.templates.schema_cost import cost

if TYPE_CHECKING:
    from jsonschema_rs import EvaluationErrorEntry

MAX_LENGTH = 256 * 1024  # bytes of a schema as JSON
MAX_ERRORS = 20
_MAX_MESSAGE = 200
_MAX_DETAIL = 500_000  # values in the data times subschemas: each pair may have an error of about a kilobyte


class Schema:
    """A compiled JSON Schema. Frozen; may be used from several threads.

    A `$schema` of an older draft is followed. Raises TopologyError (DX226) for data that is no schema, a schema that is too
    large, and one whose patterns need more than linear time: look-around and back references.
    """

    def __init__(self, schema: Mapping[str, object]) -> None:
        import jsonschema_rs  # here: most topologies do not need it

        self.schema = _plain(schema)
        self._unfolded, self._deepest = cost(self.schema)
        options = jsonschema_rs.RegexOptions()  # not the default engine, which backtracks without limit
        try:
            self._compiled = jsonschema_rs.validator_for(self.schema, offline=True, pattern_options=options)
        except ValueError as e:
            what = str(e).splitlines()[0]
            fix = (
                "patterns have no look-around and no \\1 here" if 'is not a "regex"' in what else "correct the schema (2020-12)"
            )
            raise problem("DX226", f"not a JSON Schema: {what[:_MAX_MESSAGE]}", fix) from e

    def check(self, data: object) -> None:
        """Raise InvalidInput unless the data fits: with the path and the message of each error, of at most 20 errors.

        Where one of several schemas should fit (`anyOf`), the message tells why each of them does not. For much data under a
        large schema it tells only that the data does not fit.
        """
        try:
            fits = self._fits(data)
        except ValueError:  # dates, models and other values that become JSON data
            data = orjson.loads(json_bytes(data))
            fits = self._fits(data)
        if not fits:
            if _count(data, limit := _MAX_DETAIL // self._unfolded) > limit:
                what = "the data does not fit the schema; there is too much of it to say where"
                raise InvalidInput(what, fix="check its parts, or a sample, to see what is wrong")
            # Not iter_errors: it keeps a copy of data and schema for each error, which can exhaust the memory.
            errors = self._errors(data)
            listed = list(dict.fromkeys(_described(e) for e in errors[: 10 * MAX_ERRORS]))[:MAX_ERRORS]
            more = [f"and {len(errors) - MAX_ERRORS} more"] if len(errors) > MAX_ERRORS else []
            raise InvalidInput(f"the data does not fit the schema: {'; '.join([*listed, *more])}")

    def _errors(self, data: object) -> list[EvaluationErrorEntry]:
        try:
            return self._compiled.evaluate(data).errors()
        except ValueError as e:  # it goes less deep into the data than the check whether it fits
            raise InvalidInput(f"the data does not fit the schema, and is too deep to say where: {e}") from e

    def _fits(self, data: object) -> bool:
        if self._deepest is not None and not _shallow(data, self._deepest):
            what = f"the data is nested deeper than {self._deepest}, too deep for a schema that refers to itself several times"
            raise InvalidInput(what, fix="flatten the data, or let the schema refer to itself once for each field")
        return bool(self._compiled.is_valid(data))


def _plain(schema: Mapping[str, object]) -> JsonSchema:
    """The schema as JSON data: a copy, so that the caller cannot change it later."""
    if not isinstance(schema, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # YAML may give anything
        raise problem("DX226", f"a JSON Schema is a mapping, and this is a {type(schema).__name__}", 'write {"type": "object"}')
    try:
        raw = json_bytes(schema)
    except InvalidInput as e:
        raise problem("DX226", f"not a JSON Schema: {e.message}", "correct the schema (2020-12)") from e
    if len(raw) > MAX_LENGTH:
        raise problem("DX226", f"the JSON Schema has more than {MAX_LENGTH} bytes", "split it, or use a type")
    return cast("JsonSchema", orjson.loads(raw))


def _described(e: EvaluationErrorEntry) -> str:
    parts = (p.replace("~1", "/").replace("~0", "~") for p in e["instanceLocation"].split("/")[1:])
    where, message = ".".join(parts) or "data", e["error"]
    return f"{where[:_MAX_MESSAGE]}: {message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + '…'}"


def _count(value: object, limit: int) -> int:
    """The number of values in the value, names included. It stops counting above `limit`."""
    found, todo = 1, [value]
    while todo and found <= limit:
        value = todo.pop()
        inner = _inner(value)
        found += len(inner) * (2 if isinstance(value, dict) else 1)
        todo += inner
    return found


def _shallow(value: object, levels: int) -> bool:
    """Whether the value is nested no deeper than this."""
    return levels >= 0 and all(_shallow(v, levels - 1) for v in _inner(value))


def _inner(value: object) -> Collection[object]:
    """The values directly in a dict or list; none in another value."""
    if isinstance(value, dict):
        return cast("dict[str, object]", value).values()
    return cast("Collection[object]", value) if isinstance(value, (list, tuple)) else ()
