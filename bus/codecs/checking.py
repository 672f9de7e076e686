"""Checking what came over the bus by type, before it becomes an object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from typing_extensions import TypedDict

from dspex.bus.errors import DecodeError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

MOST_SHOWN = 200  # characters of the place of a wrong value


@cache
def checker(kind: Any) -> TypeAdapter[Any]:
    """What checks plain data by type, strictly. Of a dataclass it gives its fields by name."""
    from pydantic import TypeAdapter  # here, because it costs 0.1 s to import and `import dspex` must not pay it

    if is_dataclass(kind):  # in strict mode only an instance would do for it; for a map with the same fields a dict does
        name = kind.__name__  # type: ignore[union-attr]
        return TypeAdapter(TypedDict(name, get_type_hints(kind), total=False))  # type: ignore[operator]
    return TypeAdapter(kind)


def checked(kind: Any, what: str, raw: object) -> Any:
    """`raw`, checked by type. Raises DecodeError that names the first wrong value, and does not show it."""
    validator = checker(kind).validator
    try:
        return validator.validate_python(raw, strict=True)
    except ValueError as e:  # a ValidationError is one, and importing that at each call would cost as much as checking
        errors: Any = e
        first = errors.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:MOST_SHOWN]  # keys in it are anybody's
        raise DecodeError(f"not {what} of dspex: {place}: {first['msg']}") from None


def made(kind: type[T], given: Mapping[str, Any]) -> T:
    """The dataclass with these fields, as its own `__init__` makes it: that of a frozen one sets each field by a call, which
    for a request is as much as all that is done with it. Raises TypeError where one without a default is missing.
    """
    of: Any = kind
    needed, defaults, factories = _fields(of)
    if not needed <= given.keys():
        raise TypeError(f"{', '.join(sorted(needed - given.keys()))} is missing")
    one = object.__new__(kind)
    values = vars(one)
    values.update(defaults)
    values.update(given)
    for name, make in factories:
        if name not in given:
            values[name] = make()
    return one


@cache
def _fields(kind: Any) -> tuple[frozenset[str], Mapping[str, Any], tuple[tuple[str, Callable[[], Any]], ...]]:
    """Of a dataclass: the fields that it must be given, the defaults of others, and what makes those of the rest."""
    own = fields(kind)
    return (
        frozenset(f.name for f in own if f.default is MISSING and f.default_factory is MISSING),
        {f.name: f.default for f in own if f.default is not MISSING},
        tuple((f.name, f.default_factory) for f in own if f.default_factory is not MISSING),
    )
