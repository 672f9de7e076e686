"""Checking what came over the bus by type, before it becomes an object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """`kind(**given)` of a dataclass, for what is made at each call: field by field, as a frozen one makes itself, takes four
    times as long. Raises TypeError where a field without a default is missing, or one is given that it does not have.
    """
    of: Any = kind
    blank, factories, needed = _fields(of)
    values = {**blank, **given}
    if len(values) != len(blank) or not needed <= given.keys():
        return kind(**given)  # which says what is wrong
    for name, make in factories:
        if name not in given:
            values[name] = make()
    one = object.__new__(kind)
    object.__setattr__(one, "__dict__", values)
    return one


def as_ours(kind: type[T], raw: Mapping[str, Any]) -> T:
    """`made` of what a process of ours has packed and nobody could change: its types are known. What a newer version says
    besides is left out. Raises TypeError as `made`.
    """
    of: Any = kind
    blank, _, _ = _fields(of)
    return made(kind, raw if raw.keys() <= blank.keys() else {name: value for name, value in raw.items() if name in blank})


@cache
def _fields(kind: Any) -> tuple[Mapping[str, Any], Sequence[tuple[str, Callable[[], Any]]], frozenset[str]]:
    """The fields of a dataclass in their order, in which they are packed, with their defaults; what makes the defaults of
    some; and which have none.
    """
    own = fields(kind)
    made_by = {f.name: f.default_factory for f in own if f.default_factory is not MISSING}
    factories = {name: getattr(make, "__origin__", make) for name, make in made_by.items()}  # `list[int]` is slow to call
    needed = frozenset(f.name for f in own if f.default is MISSING and f.name not in factories)
    return {f.name: f.default for f in own}, tuple(factories.items()), needed
