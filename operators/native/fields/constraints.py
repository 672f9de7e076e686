"""Constraints of a field's values beyond their type: those of pydantic that a signature may give."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from math import prod
from types import UnionType
from typing import cast

from dspex.operators.native.fields.fields import Annotation, Constraints, get_origin

_BOUNDS = ("gt", "ge", "lt", "le")
_LENGTHS = ("min_length", "max_length")
MAX_PATTERN = 200
MAX_UNFOLDED = 500
_REPEAT = re.compile(r"(.)\{(\d{1,9}(?:,\d{0,9})?)\}", re.DOTALL)
CONSTRAINTS = (*_BOUNDS, "multiple_of", *_LENGTHS, "pattern")

# How DSPy describes them in a prompt; it does not describe a pattern.
_DESCRIPTIONS: Mapping[str, str] = {
    "gt": "greater than",
    "ge": "greater than or equal to",
    "lt": "less than",
    "le": "less than or equal to",
    "min_length": "minimum length",
    "max_length": "maximum length",
    "multiple_of": "a multiple of the given number",
}


def described(constraints: Constraints) -> str:
    """The line about constraints in a prompt: `greater than: 0, less than: 9`."""
    return ", ".join(f"{_DESCRIPTIONS[k]}: {v}" for k, v in constraints.items() if k in _DESCRIPTIONS)


def wrong_value(name: str, value: object) -> str | None:
    """The reason why a constraint cannot have this value; None if it can."""
    if name == "pattern":
        return "pattern takes text" if not isinstance(value, str) else _wrong_pattern(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{name} takes a number"
    if name in _LENGTHS and (not isinstance(value, int) or value < 0):
        return f"{name} takes a whole number from 0"
    if name == "multiple_of" and value <= 0:
        return "multiple_of takes a number above 0"
    return None


def _wrong_pattern(pattern: str) -> str | None:
    if len(pattern) > MAX_PATTERN or _unfolded(pattern) > MAX_UNFOLDED:
        return f"pattern has more than {MAX_PATTERN} characters, or {MAX_UNFOLDED} with each repeat written out"
    from pydantic_core import SchemaError, SchemaValidator, core_schema

    try:
        SchemaValidator(core_schema.str_schema(pattern=pattern))
    except SchemaError as e:
        return f"pattern is no regular expression of pydantic's: {str(e).splitlines()[-1].strip()}"
    return None


def _unfolded(pattern: str) -> int:
    """About how long a pattern is with each repetition written out: each `\\w` takes 60 kB when it is compiled."""
    repeats = [(m[1] == ")", max(int(n) for n in m[2].split(",") if n)) for m in _REPEAT.finditer(pattern)]
    nested = prod(n for after_group, n in repeats if after_group)
    return (len(pattern) + sum(n for after_group, n in repeats if not after_group)) * nested


def misfit(annotation: Annotation, constraints: Constraints) -> str | None:
    """The reason why constraints do not fit a type, so that every value would fail; None if they fit."""
    parts = _parts(annotation)
    for name, value in constraints.items():
        for part in parts:
            if not _FITS[name](part):
                return f"{name} does not fit {getattr(part, '__name__', part)}"
        if parts == [int] and isinstance(value, float) and not value.is_integer():
            return f"{name} of an int takes a whole number"
    return None


def _parts(annotation: Annotation) -> list[Annotation]:
    """The classes that a value may have: those of a union without None, and without parameters."""
    origin = get_origin(annotation)
    if origin in (typing.Union, UnionType):
        return [p for a in typing.get_args(annotation) if a is not type(None) for p in _parts(a)]
    return [origin or annotation]


def _class_of(part: Annotation, classes: tuple[type, ...], *, late: str = "") -> bool:
    if not isinstance(part, type):
        return False
    kind = cast("type[object]", part)
    return issubclass(kind, classes) or (bool(late) and late == f"{kind.__module__}.{kind.__name__}")


def _is_number(part: Annotation) -> bool:
    return _class_of(part, (int, float), late="decimal.Decimal") and part is not bool


def _has_length(part: Annotation) -> bool:
    return isinstance(part, type) and hasattr(part, "__len__")


_FITS: Mapping[str, Callable[[Annotation], bool]] = {
    **dict.fromkeys((*_BOUNDS, "multiple_of"), _is_number),
    **dict.fromkeys(_LENGTHS, _has_length),
    "pattern": lambda part: _class_of(part, (str, bytes)),
}
