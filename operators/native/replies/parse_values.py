"""Texts of a model's reply as values of a type, equal to DSPy's `parse_value`."""

from __future__ import annotations

import enum
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args, get_origin

from dspex.bus.errors import InvalidOutput
from dspex.operators.native.fields.checks import validator
from dspex.operators.native.fields.fields import MISSING, Field
from dspex.operators.native.fields.types import explain
from dspex.operators.native.replies.repair import TooHard, value_of

Converter: TypeAlias = Callable[[Any], Any]
REFUSED = (ValueError, TypeError, OverflowError, RecursionError, TooHard)  # TypeError: a literal such as {[]: 1}
_EXCERPT = 100
_CACHED = 512

_FLOAT = re.compile(r"(?:-?(?:[1-9][0-9]{0,14}|0(?=\.))(?:\.[0-9]{1,17})?|0)\Z").match
_BOOLS = {"True": True, "true": True, "False": False, "false": False}


def parse_value(value: Any, annotation: Any, *, name: str = "the value") -> Any:
    """A text (or a value out of JSON) as `annotation`: what DSPy's `parse_value` returns.

    Args:
        value: a text is read as JSON, repaired JSON or a Python literal, and then validated; another value is validated.
        annotation: any type that pydantic knows.
        name: of the field, for the error.

    Raises InvalidOutput where the value does not fit.
    """
    try:
        return converter(annotation)(value)
    except REFUSED as e:
        raise InvalidOutput(f"{name}: {why(e)} (got {excerpt(value)})") from e


# Keyed by text too: Union[int, str] == Union[str, int], and pydantic does not treat them alike.
_converters: dict[tuple[str, Any], Converter] = {}


def converter(annotation: Any) -> Converter:
    """`parse_value` for one type, kept for the next time. It raises one of REFUSED."""
    key = (repr(annotation), annotation)
    try:
        known = _converters.get(key)
    except TypeError:  # Literal[[]]: not to be kept
        return _make(annotation)
    if known is None:
        if len(_converters) >= _CACHED:
            _converters.clear()
        known = _converters[key] = _make(annotation)
    return known


def constrained(field: Field, convert: Converter) -> Converter:
    """`convert`, and then the field's constraints, which count other than in DSPy."""
    if not field.constraints:
        return convert
    from pydantic import Field as Constraint
    from pydantic import TypeAdapter

    annotation: Any = typing.Annotated[field.annotation, Constraint(**field.constraints)]
    check = validator(TypeAdapter(annotation))
    return lambda value: check(convert(value))


def _make(annotation: Any) -> Converter:
    if annotation is str:
        return str
    if isinstance(annotation, enum.EnumMeta):
        return _enum(annotation)
    if get_origin(annotation) is Literal:
        return _literal(annotation)
    if get_origin(annotation) in (typing.Union, types.UnionType) and {str, type(None)} <= set(get_args(annotation)):
        return _validator(annotation)  # a text is kept as it is: "None" and "1" too
    return _SHORT.get(annotation, _general)(annotation) if isinstance(annotation, type) else _general(annotation)


def _validator(annotation: Any) -> Converter:
    from pydantic import TypeAdapter

    return validator(TypeAdapter(annotation))


def _general(annotation: Any) -> Converter:
    validate = _validator(annotation)

    def convert(value: Any) -> Any:
        return validate(value_of(value) if isinstance(value, str) else value)

    return convert


def _int(annotation: Any) -> Converter:
    general = _general(annotation)

    def convert(value: Any) -> Any:
        if type(value) is str and value.isdecimal() and value.isascii() and len(value) < 16 and value[0] != "0":
            return int(value)
        return general(value)

    return convert


def _float(annotation: Any) -> Converter:
    general = _general(annotation)

    def convert(value: Any) -> Any:
        return float(value) if type(value) is str and _FLOAT(value) else general(value)

    return convert


def _bool(annotation: Any) -> Converter:
    general = _general(annotation)

    def convert(value: Any) -> Any:
        known = _BOOLS.get(value) if type(value) is str else None
        return general(value) if known is None else known

    return convert


_SHORT: dict[Any, Callable[[Any], Converter]] = {int: _int, float: _float, bool: _bool}


def _enum(annotation: enum.EnumMeta) -> Converter:
    """By value, then by name."""
    members: list[Any] = list(annotation)  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
    names: Mapping[str, Any] = annotation.__members__

    def convert(value: Any) -> Any:
        for member in members:
            if member.value == value:
                return member
        if value in names:
            return names[value]
        raise ValueError(f"not a value or a name of {annotation.__name__}")

    return convert


def _literal(annotation: Any) -> Converter:
    allowed = get_args(annotation)
    general = _general(annotation)

    def convert(value: Any) -> Any:
        if value in allowed:
            return value
        if isinstance(value, str):
            value = _unwrapped(value)
            if value in allowed:
                return value
        return general(value)

    return convert


def _unwrapped(text: str) -> str:
    """`Literal['a']` and `'a'` as `a`: models write those."""
    text = text.strip()
    if text.startswith(("Literal[", "str[")) and text.endswith("]"):
        text = text[text.find("[") + 1 : -1]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return text


def allows_none(annotation: Any) -> bool:
    """Whether a missing field becomes None."""
    if annotation is None or annotation is type(None):
        return True
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return allows_none(args[0])
    return origin in (typing.Union, types.UnionType) and any(map(allows_none, args))


def fallback(field: Field) -> Any:
    """What the field is when the reply lacks it; MISSING where it must be there."""
    if field.default is not MISSING:
        return field.default
    return None if allows_none(field.annotation) else MISSING


def why(e: BaseException) -> str:
    """The message of one of REFUSED, short."""
    if hasattr(e, "errors"):  # pydantic's
        return excerpt(explain(e), 300, quote=False)
    return excerpt(str(e) or type(e).__name__, 300, quote=False)


def excerpt(value: Any, size: int = _EXCERPT, *, quote: bool = True) -> str:
    """The beginning of a value, as an error shows it."""
    if isinstance(value, str):
        shown = repr(value[:size]) if quote else value[:size]
        return f"{shown}…" if len(value) > size else shown
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # too deep; a number of too many digits
        text = f"a {type(value).__name__}"
    return excerpt(text, size, quote=False)
