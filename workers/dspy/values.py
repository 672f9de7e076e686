"""Inputs from the wire: objects of DSPy's own types where the signature says so, at any depth, and plain data elsewhere."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Union, cast, get_args, get_origin

import dspy
from pydantic import TypeAdapter, ValidationError

from dspex.bus.errors import InvalidInput
from dspex.operators.native.fields.types import explain, hints_of
from dspex.operators.native.user_types.stand_in import START, Definitions
from dspex.workers.dspy import signature as signatures
from dspex.workers.dspy.versions import installed

_FORMS: Mapping[str, str] = {
    "Image": '{"url": "https://… or data:image/…"}',
    "Audio": '{"data": "base64 …", "audio_format": "wav"}',
    "File": '{"file_data": "data:…"}, with "file_id" or "filename" if there are any',
    "History": '{"messages": [{"question": "…", "answer": "…"}]}',
    "ToolCalls": '{"tool_calls": [{"name": "…", "args": {}}]}',
    "Code": "text",
    "Reasoning": "text",
}
_PLAIN: tuple[type, ...] = (str, int, float, bool)
_TEXTS = tuple(known for name, known in installed.TYPES.items() if name in ("Code", "Reasoning"))
_AWAY = ("data:", "http://", "https://", "gs://")  # begin addresses; before 3.4, DSPy reads any other as a file of its own
# What the classes of DSPy raise for data that they do not take.
_REFUSALS = (ValueError, TypeError, AttributeError, LookupError, RecursionError, ImportError)


class Filler:
    """Makes the inputs of one signature."""

    def __init__(self, signature: type[dspy.Signature]) -> None:
        self._hints = {n: info.annotation for n, info in signature.input_fields.items()}
        self._as_given = {n for n, hint in self._hints.items() if any(hint is kind for kind in _PLAIN)}

    def inputs(self, given: Mapping[str, object]) -> dict[str, Any]:
        """The inputs by name. Raises InvalidInput for a value that is not what its type of DSPy's takes."""
        found: dict[str, Any] = {}
        for name, hint in self._hints.items():
            if name in given:
                signatures.check_text(given[name], name)
                found[name] = given[name] if name in self._as_given else self._filled(hint, given[name], name)
        return found

    def _filled(self, hint: Any, value: Any, where: str) -> Any:
        origin, args = get_origin(hint), get_args(hint)
        if _is_dspys(hint):
            return self.made(hint, value, where)
        if stand_in := getattr(hint, "__dspex_definitions__", None):
            return _Walk(self, stand_in[1], where).filled(stand_in[0], value)
        if origin in (Union, types.UnionType):
            return self._of_any(args, value, where)
        if origin is typing.Annotated:
            return self._filled(args[0], value, where)
        if isinstance(value, Mapping) and len(args) == 2 and inspect.isclass(origin) and issubclass(origin, Mapping):
            return {k: self._filled(args[1], v, f"{where}.{k}") for k, v in cast("Mapping[str, Any]", value).items()}
        if isinstance(value, (list, tuple)) and args and inspect.isclass(origin):
            items = cast("list[Any]", value)
            hints = args if issubclass(origin, tuple) and args[-1] is not Ellipsis else [args[0]] * len(items)
            return [self._filled(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(hints, items, strict=False))]
        return value

    def _of_any(self, args: Iterable[Any], value: Any, where: str) -> Any:
        """A value of a union: of the first of its types that takes it; as it is where none of DSPy's does."""
        others = [a for a in args if not _is_dspys(a)]
        text = isinstance(value, str) and str in others
        if value is None or text:
            return value
        refused: InvalidInput | None = None
        for hint in args:
            try:
                made = self._filled(hint, value, where)
            except InvalidInput as error:
                refused = error
                continue
            if made is not value and (_is_dspys(hint) or made != value):
                return made
        if refused is not None and not _fits(others, value):
            raise refused
        return value

    def made(self, kind: type, value: Any, where: str) -> Any:
        """An object of one of DSPy's types. Raises InvalidInput."""
        if issubclass(kind, dspy.Tool):
            raise InvalidInput(f"{where}: a dspy.Tool is code, and no data makes one", fix="name tools in react(tools=[…])")
        form = next(
            (_FORMS[n] for n, known in installed.TYPES.items() if n in _FORMS and issubclass(kind, known)), "its fields"
        )
        fix = f"give {form}"
        if not _can_be(kind, value):
            raise InvalidInput(f"{where}: {type(value).__name__} is no dspy.{kind.__name__}", fix=fix)
        if issubclass(kind, dspy.Image) and not str(value.get("url")).startswith(_AWAY):
            raise InvalidInput(f"{where}: the data is no dspy.{kind.__name__}: its url is no address", fix=fix)
        if issubclass(kind, dspy.History):
            value = value | {"messages": self._messages(value.get("messages"), where)}
        try:
            return TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            raise InvalidInput(f"{where}: the data is no dspy.{kind.__name__}: {explain(error)}", fix=fix) from error
        except _REFUSALS as error:
            raise InvalidInput(f"{where}: the data is no dspy.{kind.__name__}: {str(error)[:300]}", fix=fix) from error

    def _messages(self, messages: Any, where: str) -> Any:
        """The turns of a history; their values are those of the fields of the same names."""
        if not isinstance(messages, (list, tuple)):
            return messages
        return [
            {n: self._filled(self._hints.get(n), v, f"{where}.{n}") for n, v in cast("Mapping[str, Any]", m).items()}
            if isinstance(m, Mapping)
            else m
            for m in cast("list[Any]", messages)
        ]


class _Walk:
    """Fills a value of a type whose code is not here, along its JSON Schema."""

    def __init__(self, filler: Filler, definitions: Definitions, where: str) -> None:
        self._filler, self._definitions, self._where = filler, definitions, where

    def filled(self, schema: Any, value: Any) -> Any:
        if not isinstance(schema, dict) or not self._definitions.holds_dspy(schema):
            return value
        key = str(schema.get("$ref", "")).removeprefix(START)
        if key in self._definitions.given:
            name = self._definitions.of_dspy(key)
            if name is None:
                return self.filled(self._definitions.given[key].get("by_name") or self._definitions.given[key]["schema"], value)
            installed.need_type(name)
            kind = signatures.own_type(name)
            return value if kind is None else self._filler.made(kind, value, self._where)
        for choice in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(choice), list):
                return self._first(schema[choice], value)
        if isinstance(value, Mapping):
            return self._object(schema, cast("Mapping[str, Any]", value))
        if isinstance(value, (list, tuple)):
            return self._array(schema, cast("list[Any]", value))
        return value

    def _first(self, choices: list[Any], value: Any) -> Any:
        for choice in choices:
            try:
                made = self.filled(choice, value)
            except InvalidInput:
                continue
            if made != value:
                return made
        return value

    def _object(self, schema: Any, value: Mapping[str, Any]) -> Any:
        known, other = schema.get("properties", {}), schema.get("additionalProperties")
        return {k: self.filled(known.get(k, other) if isinstance(known, dict) else other, v) for k, v in value.items()}

    def _array(self, schema: Any, value: list[Any]) -> Any:
        first = schema.get("prefixItems")
        first = first if isinstance(first, list) else []
        return [self.filled(first[i] if i < len(first) else schema.get("items"), v) for i, v in enumerate(value)]


def _can_be(kind: type, value: Any) -> bool:
    other = str if issubclass(kind, _TEXTS) else list if issubclass(kind, dspy.ToolCalls) else dict
    return isinstance(value, (dict, other))


def _fits(hints: list[Any], value: Any) -> bool:
    try:
        hint: Any = Union[tuple(hints)]  # noqa: UP007  # made of a list
        TypeAdapter(hint).validate_python(value)
    except ValidationError:
        return False
    return True


def _is_dspys(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, (installed.TYPE, dspy.History))


def annotated(program: Any, signature: type[dspy.Signature]) -> Mapping[str, TypeAdapter[Any]]:
    """What makes the inputs of a program as the annotations of its arguments say, where the signature's type is the user's.

    The signature has only a stand-in for the type; the program has the type itself.
    """
    hints = hints_of(_called(program))
    named = [name for name, info in signature.input_fields.items() if name in hints and _has_stand_in(info.annotation)]
    return {name: TypeAdapter(hints[name]) for name in named}


def as_annotated(inputs: dict[str, Any], adapters: Mapping[str, TypeAdapter[Any]]) -> dict[str, Any]:
    """The inputs, those that `annotated` names as it says. Raises InvalidInput."""
    for name in adapters.keys() & inputs.keys():
        try:
            inputs[name] = adapters[name].validate_python(inputs[name], by_name=True)
        except ValidationError as error:
            raise InvalidInput(f"{name}: {explain(error)}") from error
    return inputs


def _called(program: Any) -> Any:
    if isinstance(program, dspy.Module):
        return next((getattr(type(program), n) for n in ("aforward", "forward") if hasattr(type(program), n)), program)
    return program if inspect.isfunction(program) or inspect.ismethod(program) else type(program).__call__


def _has_stand_in(hint: Any) -> bool:
    return hasattr(hint, "__dspex_definitions__") or any(map(_has_stand_in, get_args(hint)))
