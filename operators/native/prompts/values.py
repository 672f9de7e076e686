"""Values as DSPy's prompts show them."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from dspex.bus.codecs.media import MARKER, unmarked
from dspex.bus.errors import InvalidInput
from dspex.operators.native.fields.fields import Annotation, Field
from dspex.operators.native.fields.types import declared_fields
from dspex.operators.native.prompts.versions import NEWEST, Version

if TYPE_CHECKING:
    from pydantic import TypeAdapter

PLAIN = frozenset({int, float, bool, type(None)})  # types of which DSPy shows str()
to_json: Callable[[object], str] = json.JSONEncoder(ensure_ascii=False).encode

# What pydantic may raise, and the serializers of users' classes that it calls. DSPy catches every exception here.
_FAILURES = (ValueError, TypeError, AttributeError, RuntimeError, NameError, LookupError, ArithmeticError)


def format_value(field: Field, value: object, version: Version = NEWEST) -> str:
    """The text that a prompt shows for a value of a field. Raises InvalidInput for a value that makes DSPy fail.

    Text is unchanged, the items of a list in a field of text are numbered; dates, models, dicts and so on are JSON.
    """
    if type(value) is str:
        return value
    try:
        if isinstance(value, list) and field.annotation is str:
            return _numbered(cast("list[object]", value))
        if type(value) in PLAIN:
            return str(value)
        plain = jsonable(value, version)
        return to_json(plain) if isinstance(plain, (dict, list)) else str(plain)
    except (TypeError, AttributeError, ValueError, RecursionError) as e:
        raise InvalidInput(f"{field.name}: {type(value).__name__} cannot be shown to a model: {e}") from e


def _numbered(items: list[object]) -> str:
    if not items:
        return "N/A"
    if len(items) == 1:
        return _passage(items[0])
    return "\n".join(f"[{i}] {_passage(item)}" for i, item in enumerate(items, 1))


def _passage(text: Any) -> str:
    """One item of a list, in quotation marks. Not only str: DSPy takes every value that supports `in`."""
    if "\n" in text or "«" in text or "»" in text:
        indented = text.replace("\n", "\n    ")
        return f"«««\n    {indented}\n»»»"
    return f"«{text}»"


def jsonable(value: object, version: Version = NEWEST) -> object:
    """The value as JSON data, by pydantic's rules for its type; its `str` where pydantic has none.

    Not `pydantic_core.to_jsonable_python`: it takes a subclass of list for a list. DSPy makes a TypeAdapter of the value's
    type, which fails for such a subclass, so that DSPy shows its text.
    """
    kind: Annotation = type(value)
    adapter = _adapter(kind)
    if adapter is None:
        return str(value)
    try:
        return adapter.dump_python(value, mode="json", fallback=str if version.items_as_text else None)
    except _FAILURES:
        return str(value)


@lru_cache(maxsize=512)  # bounded: a program may make new classes for each call
def _adapter(kind: Annotation) -> TypeAdapter[Any] | None:
    """pydantic's adapter of a type; None where it has none. Making one takes 10 µs or more, so it is cached."""
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(kind)
    except _FAILURES:
        return None


def plain_input(name: str, value: object, *, for_code: bool = False) -> object:
    """An input as data that any codec takes, and of which a prompt shows what it would show of the value itself.

    `for_code`: a value without a form of its own is an error, and not its text. Raises InvalidInput; for a tool of DSPy's too.
    """
    if value is None or isinstance(value, (str, int, float, bytes)):
        return value
    try:
        return to_jsonable(unmarked(value), by_alias=False) if for_code else jsonable(unmarked(value))
    except TypeError as e:
        raise InvalidInput(f"{name}: {e}, which no worker gets", fix="name tools in react(tools=[…])") from e
    except ValueError as e:
        raise InvalidInput(f"{name} cannot be sent to a program: {e}", fix="make it plain data") from e


def to_jsonable(value: object, *, by_alias: bool = True) -> object:
    """The value as JSON data, by pydantic's rules for what is in it. Raises ValueError for what has no such form."""
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, by_alias=by_alias)


def refuse_marker(content: str) -> str:
    """The content of a user's message, unchanged. Raises InvalidInput if it has the marker for images and files in it."""
    if MARKER in content:
        raise InvalidInput(f"the inputs hold DSPy's marker {MARKER}, which would become an image or a file")
    return content


def has_a_known_form(field: Field) -> bool:
    """Whether dspex can format values of this field: True unless its type is one of DSPy's own, or contains one."""
    return not any(
        c.__module__.partition(".")[0] == "dspy" or vars(c).get("__holds_dspy__") for c in classes_of(field.annotation, set())
    )


def classes_of(annotation: Annotation, seen: set[int]) -> Iterator[type]:
    """All classes in a type: its arguments, their bases, and the types of their fields."""
    if id(annotation) in seen:
        return
    seen.add(id(annotation))
    for inner in typing.get_args(annotation):
        yield from classes_of(inner, seen)
    if isinstance(annotation, type):
        yield from annotation.__mro__
        for inner in (declared_fields(annotation) or {}).values():
            yield from classes_of(inner, seen)
