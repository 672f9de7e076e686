"""Data as a template may see it: without Python's methods, and with known depth and length.

minijinja looks a name up as an item of a dict and then as an attribute. `{{ order.items }}` would print the method of Python,
with its address, where there is no such field.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, cast

from dspex.operators.native.templates.allowed import CALLED, METHODS


def depth(value: Any) -> int:
    """How deep lists and dicts are nested; 1 for a scalar."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inner), default=0)


def longest(value: Any) -> int:
    """The number of items of the longest list in the value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max(len(value) if isinstance(value, list) else 0, max(map(longest, inner), default=0))


class DictMethod:
    """A method of a dict as a template gets it: it can be called, but not printed."""

    def __init__(self, name: str, function: Callable[[], object]) -> None:
        self.name, self.function = name, function

    def __call__(self) -> object:
        return self.function()


class _Shown:
    """An attribute of `_Fields` that gives a DictMethod."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type | None = None) -> DictMethod:
        return DictMethod(self.name, getattr(dict, self.name).__get__(instance))


class _Hidden:
    """An attribute that is not there for templates."""

    def __get__(self, instance: object, owner: type | None = None) -> NoReturn:
        raise AttributeError("not for templates")


_Fields = type("_Fields", (dict,), {n: _Shown(n) if n in CALLED else _Hidden() for n in METHODS if hasattr(dict, n)})
_Items = type("_Items", (list,), {n: _Hidden() for n in METHODS if hasattr(list, n)})


def hidden(value: Any) -> Any:
    """A copy of JSON data whose dicts and lists show no methods but those of CALLED."""
    if isinstance(value, dict):
        return _Fields({n: hidden(v) for n, v in cast("dict[str, Any]", value).items()})
    return _Items([hidden(v) for v in value]) if isinstance(value, list) else value
