"""Objects of DSPy's own types (an image, a file, a history of a conversation) as plain data.

DSPy writes such an object as a text with markers, which nobody can read back, and which it would expand in any text of a
stranger's. Here it becomes its fields: `{"url": "data:image/png;base64,…"}`. dspy is never imported to find out.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, cast

MARKER = "<<CUSTOM-TYPE-START-IDENTIFIER>>"  # DSPy puts an image or a file between this and an end marker
_TEXTS = ("Code", "Reasoning")  # types that are a text, also as DSPy writes them


def model_step(value: Any) -> object:
    """A pydantic model one step nearer to plain data. Raises TypeError for a tool of DSPy's, which is code."""
    name = _name(type(value))
    if name and name not in _TEXTS:
        return _fields(value, name)
    return _attributes(value) if not name and _holds(value) else value.model_dump()


def unmarked(value: Any) -> Any:
    """`value` with its objects of DSPy's types as plain data; all else stays as it is. Raises TypeError for a tool."""
    return _plain(value) if _holds(value) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: unmarked(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, AbstractSet)):
        return [unmarked(v) for v in cast("list[Any]", value)]
    if hasattr(type(value), "model_dump"):
        name = _name(type(value))
        return value.model_dump() if name in _TEXTS else unmarked(_fields(value, name) if name else _attributes(value))
    return {f.name: unmarked(getattr(value, f.name)) for f in dataclasses.fields(value)}


def _holds(value: Any) -> bool:
    """Whether there is an object of one of DSPy's types in a value."""
    if value is None or isinstance(value, (str, int, float, bytes)) or "dspy" not in sys.modules:
        return False
    if isinstance(value, Mapping):
        return any(map(_holds, value.values()))
    if isinstance(value, (list, tuple, AbstractSet)):
        return any(map(_holds, cast("list[Any]", value)))
    if hasattr(type(value), "model_dump"):
        return bool(_name(type(value))) or any(map(_holds, _attributes(value).values()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(_holds(getattr(value, f.name)) for f in dataclasses.fields(value))
    return False


def _attributes(model: Any) -> dict[str, object]:
    return {n: getattr(model, n) for n in type(model).model_fields}


def _fields(value: Any, name: str) -> dict[str, object]:
    if name == "Tool":
        raise TypeError("a dspy.Tool is code")
    return {n: v for n, v in _attributes(value).items() if v is not None}


def _name(kind: type) -> str:
    """The name of the type of DSPy that a class is or is made from, as `Image`; "" for any other."""
    own = (c.__name__ for c in kind.__mro__ if c.__module__.partition(".")[0] == "dspy")
    names = list(own)
    return next((n for n in names if n in ("Tool", *_TEXTS)), names[0] if names else "")
