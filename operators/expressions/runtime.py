"""What compiled expressions call: reads of fields, the functions of the language, and the explanation of failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from dspex.bus.errors import DataError, ExpressionError
from dspex.engine.graph.context import Context
from dspex.operators.native.problems import listed, nearest
from dspex.operators.typing.shape import TO_RECORD, is_record, kind_of, record_of

ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


class MissingField(LookupError):
    """A field that the data does not have; (the record, the field)."""


class NoRecord(TypeError):
    """Data without named fields, of which some are read; (the data, )."""


def record(data: object) -> Mapping[str, object]:
    """The fields of data, to be read only: a model's own dictionary where it has no others. Raises NoRecord."""
    if getattr(data, "__pydantic_extra__", NoRecord) is None:
        fields: Mapping[str, object] = data.__dict__  # record_of would copy it
        return fields
    if not is_record(data):
        raise NoRecord(data)
    return record_of(data)


def field(data: Any, name: str) -> object:
    """The field of a record, however deep it stands. Never an attribute that is not a field."""
    if data.__class__ is dict and name in data:
        return data[name]
    if not is_record(data):
        raise TypeError(f"{kind_of(data)} has no fields, so no {name!r}")
    found = record(data)
    if name not in found:
        raise MissingField(found, name)
    return found[name]


def item(data: Any, index: Any) -> object:
    """An item of a list or text by position, of a record by name."""
    if isinstance(data, (list, tuple, str)):
        if not isinstance(index, int):
            raise TypeError(f"a position is a number, not {kind_of(index)}")
        return data[index]
    return field(data, index)


def event(ctx: Context | None) -> object:
    """The event of a context."""
    if ctx is None:
        raise ValueError("there is no event here: `event` can be read in a topology only")
    return ctx.event


def has(read: Callable[[], object]) -> bool:
    """Whether the field is there and not null."""
    return coalesce(read) is not None


def coalesce(*reads: Callable[[], object]) -> object:
    """The first that is there and not null; None where none is."""
    for read in reads:
        try:
            value = read()
        except (LookupError, TypeError):
            continue
        if value is not None:
            return value
    return None


def _number(value: object) -> float:
    if not isinstance(value, (int, float)):
        raise TypeError(f"{kind_of(value)} is not a number")
    return value


def times(a: object, b: object) -> float:
    """Product of numbers; of text it could be endless."""
    return _number(a) * _number(b)


def modulo(a: object, b: object) -> float:
    """Remainder of numbers; of text `%` would be formatting."""
    return _number(a) % _number(b)


def round_(value: object, digits: object = None) -> float:
    """`round`, to at most 15 digits either way: round(1, -10**9) would compute 10**10**9."""
    if digits is None:
        return round(_number(value))
    if not isinstance(digits, int) or abs(digits) > 15:
        raise ValueError("round takes -15 to 15 digits")
    return round(_number(value), digits)


def text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{kind_of(value)} is not text")
    return value


def contains(whole: Any, part: Any) -> bool:
    """Whether a text, list or record has the part."""
    if not isinstance(whole, (str, Sequence, Mapping, set, frozenset)):
        raise TypeError(f"{kind_of(whole)} contains nothing")
    return part in whole


@lru_cache(maxsize=256)
def searcher(pattern: str) -> Callable[[str], bool]:
    """A function that says whether a text has the pattern in it. Raises ValueError for a bad pattern."""
    import jsonschema_rs  # here: 20 ms that most topologies need not pay

    # RegexOptions: Rust's `regex`, linear in the text; the default engine backtracks
    schema = {"type": "string", "pattern": pattern}
    return jsonschema_rs.validator_for(schema, pattern_options=jsonschema_rs.RegexOptions()).is_valid


def matches(value: object, search: Callable[[str], bool]) -> bool:
    """Whether the pattern is found in the text."""
    return search(text(value))


def explain(source: str, data: object, error: Exception) -> DataError:
    """The ExpressionError for what went wrong: the field that is missing and those that exist, or what the data is instead."""
    if isinstance(error, NoRecord):
        what = f"it reads fields by name, and the data is {kind_of(data)}, which has none"
        return ExpressionError(f'"{source}": {what}', fix=f"read all of the data as `it`, or {TO_RECORD}")
    if isinstance(error, MissingField):
        return _missing(source, *error.args)
    if isinstance(error, KeyError) and error.args and is_record(data) and isinstance(error.args[0], str):
        return _missing(source, record(data), error.args[0])
    what = (
        f"{error.args[0]!r} is missing"
        if isinstance(error, KeyError) and error.args
        else str(error).replace("'NoneType'", "null")
    )
    return ExpressionError(f'"{source}": {what or type(error).__name__}')


def _missing(source: str, data: Mapping[str, object], name: object) -> ExpressionError:
    have = listed([str(name) for name in data]) or "none"
    near = nearest(str(name), map(str, data))
    return ExpressionError(
        f'"{source}": the data has no field {name!r}; it has: {have}',
        fix=f"did you mean {near!r}?" if near else None,
    )


NAMES: Mapping[str, Any] = {
    "dict": dict, "_record": record, "_field": field, "_item": item, "_event": event, "_has": has,
    "_coalesce": coalesce, "_times": times, "_modulo": modulo, "_matches": matches, "_contains": contains,
    "_len": len, "_str": str, "_int": int, "_float": float, "_bool": bool, "_round": round_, "_abs": abs,
    "_min": min, "_max": max, "_inf": float("inf"), "_ERRORS": ERRORS, "_explain": explain,
    "_lower": lambda s: text(s).lower(), "_upper": lambda s: text(s).upper(), "_strip": lambda s: text(s).strip(),
    "_startswith": lambda s, p: text(s).startswith(text(p)), "_endswith": lambda s, p: text(s).endswith(text(p)),
}  # fmt: skip
