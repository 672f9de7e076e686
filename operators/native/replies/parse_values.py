"""Texts of a model's reply as values of a type: those that DSPy's `parse_value` returns."""

from __future__ import annotations

import enum
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from dspex.operators.native.fields.checks import validator
from dspex.operators.native.fields.fields import MISSING, Annotation, Field, get_origin
from dspex.operators.native.fields.types import explain
from dspex.operators.native.replies.repair import TooHard, value_of

if TYPE_CHECKING:
    from pydantic import ValidationError

Converter: TypeAlias = Callable[[Any], Any]  # a text, or a value from JSON → a value of the type. Raises one of REFUSED
REFUSED = (ValueError, TypeError, OverflowError, RecursionError, TooHard)  # TypeError: a literal such as {[]: 1}
_EXCERPT = 100
_CACHED = 512

_FLOAT = re.compile(r"(?:-?(?:[1-9][0-9]{0,14}|0(?=\.))(?:\.[0-9]{1,17})?|0)\Z").match
_BOOLS = {"True": True, "true": True, "False": False, "false": False}


# The text is part of the key: Union[int, str] == Union[str, int], and pydantic treats them differently.
_converters: dict[tuple[str, Annotation], Converter] = {}


def converter(annotation: Annotation) -> Converter:
    """The converter of a type, cached: it returns what DSPy's `parse_value` returns.

    A text is read as JSON, repaired JSON or a Python literal, and then validated; another value is only validated.
    """
    key = (repr(annotation), annotation)
    try:
        known = _converters.get(key)
    except TypeError:  # Literal[[]] has no hash: it is not cached
        return _make(annotation)
    if known is None:
        if len(_converters) >= _CACHED:
            _converters.clear()
        known = _converters[key] = _make(annotation)
    return known


def constrained(field: Field, convert: Converter) -> Converter:
    """`convert`, followed by a check of the field's constraints, which DSPy does not enforce."""
    if not field.constraints:
        return convert
    from pydantic import Field as Constraint
    from pydantic import TypeAdapter

    annotation: Annotation = typing.Annotated[field.annotation, Constraint(**field.constraints)]
    check = validator(TypeAdapter(annotation))
    return lambda value: check(convert(value))


def _make(annotation: Annotation) -> Converter:
    if annotation is str:
        return str
    if isinstance(annotation, enum.EnumMeta):
        return _enum(annotation)
    if get_origin(annotation) is Literal:
        return _literal(annotation)
    if get_origin(annotation) in (typing.Union, types.UnionType) and {str, type(None)} <= set(get_args(annotation)):
        return _validator(annotation)  # every text stays a text: "None" and "1" too
    return _SHORT.get(annotation, _general)(annotation) if isinstance(annotation, type) else _general(annotation)


def _validator(annotation: Annotation) -> Converter:
    from pydantic import TypeAdapter

    return validator(TypeAdapter(annotation))


def _general(annotation: Annotation) -> Converter:
    validate = _validator(annotation)

    def convert(value: object) -> object:
        return validate(value_of(value) if isinstance(value, str) else value)

    return convert


def _int(annotation: Annotation) -> Converter:
    general = _general(annotation)

    def convert(value: object) -> object:
        if type(value) is str and value.isdecimal() and value.isascii() and len(value) < 16 and value[0] != "0":
            return int(value)
        return general(value)

    return convert


def _float(annotation: Annotation) -> Converter:
    general = _general(annotation)

    def convert(value: object) -> object:
        return float(value) if type(value) is str and _FLOAT(value) else general(value)

    return convert


def _bool(annotation: Annotation) -> Converter:
    general = _general(annotation)

    def convert(value: object) -> object:
        known = _BOOLS.get(value) if type(value) is str else None
        return general(value) if known is None else known

    return convert


_SHORT: dict[Annotation, Callable[[Annotation], Converter]] = {int: _int, float: _float, bool: _bool}


def _enum(annotation: enum.EnumMeta) -> Converter:
    """A member by its value, else by its name."""
    members = cast("list[enum.Enum]", list(annotation))  # pyright: ignore[reportUnknownArgumentType]
    names = cast("Mapping[str, enum.Enum]", annotation.__members__)

    def convert(value: object) -> object:
        for member in members:
            if member.value == value:
                return member
        if value in names:
            return names[cast("str", value)]
        raise ValueError(f"not a value or a name of {annotation.__name__}")

    return convert


def _literal(annotation: Annotation) -> Converter:
    allowed = get_args(annotation)
    general = _general(annotation)

    def convert(value: object) -> object:
        if value in allowed:
            return value
        if isinstance(value, str):
            value = _unwrapped(value)
            if value in allowed:
                return value
        return general(value)

    return convert


def _unwrapped(text: str) -> str:
    """`Literal['a']` and `'a'` as `a`: models write them so."""
    text = text.strip()
    if text.startswith(("Literal[", "str[")) and text.endswith("]"):
        text = text[text.find("[") + 1 : -1]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return text


def allows_none(annotation: Annotation) -> bool:
    """Whether a missing field becomes None."""
    if annotation is None or annotation is type(None):
        return True
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return allows_none(args[0])
    return origin in (typing.Union, types.UnionType) and any(map(allows_none, args))


def fallback(field: Field) -> object:
    """The value of the field when the reply lacks it; MISSING where the reply must have it."""
    if field.default is not MISSING:
        return field.default
    return None if allows_none(field.annotation) else MISSING


def why(e: BaseException) -> str:
    """The message of one of REFUSED, shortened."""
    if hasattr(e, "errors"):  # a ValidationError of pydantic
        return excerpt(explain(cast("ValidationError", e)), 300, quote=False)
    return excerpt(str(e) or type(e).__name__, 300, quote=False)


def excerpt(value: object, size: int = _EXCERPT, *, quote: bool = True) -> str:
    """The beginning of a value, as an error shows it."""
    if isinstance(value, str):
        shown = repr(value[:size]) if quote else value[:size]
        return f"{shown}…" if len(value) > size else shown
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or an integer with too many digits
        text = f"a {type(value).__name__}"
    return excerpt(text, size, quote=False)
