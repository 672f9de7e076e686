"""Checking what came over the bus by type, before it becomes an object."""

from __future__ import annotations

from dataclasses import is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, get_type_hints

from typing_extensions import TypedDict

from dspex.bus.errors import DecodeError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

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
