"""JSON Schema (2020-12): checked by jsonschema-rs, all errors at once.

    Schema({"type": "object", "required": ["id"]}).check({"id": 1})

Nothing is fetched: references lead into the schema itself, and nowhere else. Patterns run on an engine of linear time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import orjson

from dspex.bus.codecs import json_bytes
from dspex.bus.errors import InvalidInput
from dspex.operators.native.suggestions import problem
from dspex.operators.native.templates.schema_cost import cost

MAX_LENGTH = 256 * 1024  # bytes of a schema as JSON
MAX_ERRORS = 20
_MAX_MESSAGE = 200
_MAX_DETAIL = 500_000  # values in the data times subschemas: for each pair there may be an error of about a kilobyte


class Schema:
    """A compiled JSON Schema. Frozen; may be used from several threads.

    A `$schema` of an older draft is followed. Raises TopologyError (DX226) for what is no schema, is too large, or uses what
    would not run in linear time: look-around and back references in a pattern.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        import jsonschema_rs  # here: most topologies need not pay for it

        self.schema = _plain(schema)
        self._unfolded, self._deepest = cost(self.schema)
        options: Any = jsonschema_rs.RegexOptions()  # not the default engine, which goes back and can take for ever
        try:
            self._compiled: Any = jsonschema_rs.validator_for(self.schema, offline=True, pattern_options=options)
        except ValueError as e:
            what = str(e).splitlines()[0]
            fix = (
                "patterns have no look-around and no \\1 here" if 'is not a "regex"' in what else "correct the schema (2020-12)"
            )
            raise problem("DX226", f"not a JSON Schema: {what[:_MAX_MESSAGE]}", fix) from e

    def check(self, data: Any) -> None:
        """Raise InvalidInput unless the data fits: with the path and the message of each error, 20 of them at most.

        Where one of several schemas should fit (`anyOf`), it says of each why it does not. Of much data under a large schema it
        says only that it does not fit.
        """
        try:
            fits = self._fits(data)
        except ValueError:  # dates, models, and what else JSON writes as something simpler
            data = orjson.loads(json_bytes(data))
            fits = self._fits(data)
        if not fits:
            if _count(data, limit := _MAX_DETAIL // self._unfolded) > limit:
                what = "the data does not fit the schema; there is too much of it to say where"
                raise InvalidInput(what, fix="check its parts, or a sample, to see what is wrong")
            # not iter_errors: it keeps a copy of data and schema for each error, which can end the process
            errors = self._compiled.evaluate(data).errors()
            told = list(dict.fromkeys(_told(e) for e in errors[: 10 * MAX_ERRORS]))[:MAX_ERRORS]
            more = [f"and {len(errors) - MAX_ERRORS} more"] if len(errors) > MAX_ERRORS else []
            raise InvalidInput(f"the data does not fit the schema: {'; '.join([*told, *more])}")

    def _fits(self, data: Any) -> bool:
        if self._deepest is not None and not _shallow(data, self._deepest):
            what = f"the data is nested deeper than {self._deepest}, too deep for a schema that refers to itself several times"
            raise InvalidInput(what, fix="flatten the data, or let the schema refer to itself once for each field")
        return bool(self._compiled.is_valid(data))


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as JSON has it: a copy, which nobody changes after it was examined."""
    if not isinstance(schema, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # YAML may give anything
        raise problem("DX226", f"a JSON Schema is a mapping, and this is a {type(schema).__name__}", 'write {"type": "object"}')
    try:
        raw = json_bytes(schema)
    except InvalidInput as e:
        raise problem("DX226", f"not a JSON Schema: {e.message}", "correct the schema (2020-12)") from e
    if len(raw) > MAX_LENGTH:
        raise problem("DX226", f"the JSON Schema has more than {MAX_LENGTH} bytes", "split it, or use a type")
    return cast("dict[str, Any]", orjson.loads(raw))


def _told(e: Mapping[str, str]) -> str:
    parts = (p.replace("~1", "/").replace("~0", "~") for p in e["instanceLocation"].split("/")[1:])
    where, message = ".".join(parts) or "data", e["error"]
    return f"{where[:_MAX_MESSAGE]}: {message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + '…'}"


def _count(value: Any, limit: int) -> int:
    """Values in it, names included, until there are more than `limit`."""
    found, todo = 1, [value]
    while todo and found <= limit:
        value = todo.pop()
        inner: Any = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        found += len(inner) * (2 if isinstance(value, dict) else 1)
        todo += inner
    return found


def _shallow(value: Any, levels: int) -> bool:
    inner: Any = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return levels >= 0 and all(_shallow(v, levels - 1) for v in inner)
