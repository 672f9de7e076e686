"""Values as DSPy's prompts show them."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from dspex.bus.errors import InvalidInput
from dspex.operators.native.fields.fields import Field
from dspex.operators.native.fields.types import declared_fields
from dspex.operators.native.prompts.versions import NEWEST, Version

MARKER = "<<CUSTOM-TYPE-START-IDENTIFIER>>"  # DSPy puts its own content (an image, a file) between this and its end
PLAIN = frozenset({int, float, bool, type(None)})  # what DSPy shows as `str` does
to_json: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False).encode

# What pydantic, and what the serializers of users' classes that it calls, may raise. DSPy catches everything here.
_FAILURES = (ValueError, TypeError, AttributeError, RuntimeError, NameError, LookupError, ArithmeticError)


def format_value(field: Field, value: Any, version: Version = NEWEST) -> str:
    """The text that a prompt shows for a value of a field. Raises InvalidInput for what DSPy fails at.

    Text stays as it is; a list for a field of text is numbered; dates, models, dicts and the like are JSON.
    """
    if type(value) is str:
        return value
    try:
        if isinstance(value, list) and field.annotation is str:
            return _numbered(value)
        if type(value) in PLAIN:
            return str(value)
        plain = jsonable(value, version)
        return to_json(plain) if isinstance(plain, (dict, list)) else str(plain)
    except (TypeError, AttributeError, ValueError, RecursionError) as e:
        raise InvalidInput(f"{field.name}: {type(value).__name__} cannot be shown to a model: {e}") from e


def _numbered(items: list[Any]) -> str:
    if not items:
        return "N/A"
    if len(items) == 1:
        return _passage(items[0])
    return "\n".join(f"[{i}] {_passage(item)}" for i, item in enumerate(items, 1))


def _passage(text: Any) -> str:
    """One item of a list in marks that show where it ends. Not only str: DSPy takes all that knows `in`."""
    if "\n" in text or "«" in text or "»" in text:
        indented = text.replace("\n", "\n    ")
        return f"«««\n    {indented}\n»»»"
    return f"«{text}»"


def jsonable(value: Any, version: Version = NEWEST) -> Any:
    """The value as JSON can hold it, by pydantic's rules for its type; its `str` where there are none.

    Not `pydantic_core.to_jsonable_python`: it takes a subclass of list for a list, where a TypeAdapter of that type, which
    is what DSPy makes for each value, fails and the text is shown.
    """
    kind: Any = type(value)
    adapter = _adapter(kind)
    if adapter is None:
        return str(value)
    try:
        return adapter.dump_python(value, mode="json", fallback=str if version.items_as_text else None)
    except _FAILURES:
        return str(value)


@lru_cache(maxsize=512)  # a class that a program makes anew for each call must not stay for ever
def _adapter(kind: type[Any]) -> Any:
    """pydantic's adapter of a type; None where it has none. Making one takes 10 µs and more, so it is done once."""
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(kind)
    except _FAILURES:
        return None


def refuse_marker(content: str) -> str:
    """The content of a user's message. Raises InvalidInput if it holds the marker that DSPy turns into other content."""
    if MARKER in content:
        raise InvalidInput(f"the inputs hold DSPy's marker {MARKER}, which would become content of its own")
    return content


def has_a_known_form(field: Field) -> bool:
    """Whether values of this field are formatted here: True but for DSPy's own types, on their own or inside of others."""
    return not any(c.__module__.partition(".")[0] == "dspy" for c in _classes(field.annotation, set()))


def _classes(annotation: Any, seen: set[int]) -> Iterator[type[Any]]:
    """All classes that a type is made of: arguments, bases, and the fields of records."""
    if id(annotation) in seen:
        return
    seen.add(id(annotation))
    for inner in typing.get_args(annotation):
        yield from _classes(inner, seen)
    if isinstance(annotation, type):
        yield from annotation.__mro__
        for inner in (declared_fields(annotation) or {}).values():
            yield from _classes(inner, seen)
