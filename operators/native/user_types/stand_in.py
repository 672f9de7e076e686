"""Stand-ins for types whose code is in another process: they have its name, its kind and its JSON Schema.

A stand-in takes any value. The process that knows the type checks what comes back, with all that no JSON Schema says: its
validators, its aliases, its strictness. A stand-in that checked too could only refuse what the type takes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, cast

from dspex.operators.native.fields.fields import Annotation, JsonSchema
from dspex.operators.native.fields.type_names import dspys
from dspex.operators.native.problems import problem
from dspex.operators.native.user_types.described import CODE, ENUM, FLAG, MODEL, OTHER, TYPED_DICT
from dspex.operators.native.user_types.limits import checked

START = "#/$defs/"
_making: ContextVar[frozenset[str]] = ContextVar("_making", default=frozenset())


class Definitions:
    """The definitions that the stand-ins of one signature share. Each becomes one of pydantic's when a schema is made."""

    def __init__(self, given: Mapping[str, JsonSchema]) -> None:
        self.given = given
        self._cores: dict[str, Any] = {}
        self._holding: dict[int, bool] = {}

    def of_dspy(self, key: str) -> str | None:
        """The name of the type of DSPy that this definition is; None for any other."""
        path = str(self.given[key]["reference"]).partition(":")[0].split(".")
        return path[-1] if path[0] == "dspy" else None

    def holds_dspy(self, schema: JsonSchema) -> bool:
        """Whether a value of this schema can have one of DSPy's types in it."""
        at = id(schema)  # the schemas live as long as this object
        if at not in self._holding:
            self._holding[at] = any(map(self.of_dspy, self.refers(schema, set())))
        return self._holding[at]

    def refers(self, part: object, seen: set[str]) -> Iterator[str]:
        """The keys that a schema refers to, over all others."""
        for key in references(part):
            if key not in seen:
                seen.add(key)
                yield key
                yield from self.refers(self.given[key]["schema"], seen)

    def core(self, key: str) -> Any:
        """pydantic's schema of a definition."""
        if key not in self._cores:
            from pydantic import TypeAdapter

            self._cores[key] = TypeAdapter(_hooked(type(key, (), {}), {"$ref": START + key}, self)).core_schema
        return self._cores[key]

    def json_schema(self, schema: JsonSchema, handler: Any) -> JsonSchema:
        """A schema with the names that pydantic gives to what it refers to."""
        from pydantic_core import core_schema

        names: dict[str, str] = {}
        for key in references(schema):
            making = _making.get()
            if key in making:  # a type that holds itself
                again = core_schema.definition_reference_schema(self.given[key]["reference"])
                names[START + key] = handler(core_schema.list_schema(again))["items"]["$ref"]
                continue
            token = _making.set(making | {key})
            try:
                names[START + key] = handler(core_schema.list_schema(self.core(key)))["items"]["$ref"]
            finally:
                _making.reset(token)
        return cast("JsonSchema", _renamed(schema, names))

    def body(self, key: str, handler: Any) -> JsonSchema:
        """The schema of a definition itself."""
        given = self.given[key]
        generator = getattr(handler, "generate_json_schema", None)
        by_name = getattr(generator, "by_alias", True) is False and "by_name" in given
        token = _making.set(_making.get() | {key})
        try:
            return self.json_schema(given["by_name" if by_name else "schema"], handler)
        finally:
            _making.reset(token)


def references(part: object) -> Iterator[str]:
    """The keys of the definitions that a schema refers to."""
    if isinstance(part, str):
        if part.startswith(START):
            yield part.removeprefix(START)
    elif isinstance(part, Mapping):
        for value in cast("Mapping[str, object]", part).values():
            yield from references(value)
    elif isinstance(part, list):
        for value in cast("list[object]", part):
            yield from references(value)


def _renamed(part: Any, names: Mapping[str, str]) -> Any:
    if isinstance(part, str):
        return names.get(part, part)
    if isinstance(part, dict):
        return {k: _renamed(v, names) for k, v in cast("JsonSchema", part).items()}
    return [_renamed(v, names) for v in cast("list[object]", part)] if isinstance(part, list) else part


def stand_ins(plain: Mapping[str, object]) -> dict[str, Annotation]:
    """The types that `Described.plain` describes, by name. Raises TopologyError (DX210) for what it would not write."""
    if not plain:
        return {}
    classes, given = checked(plain)
    definitions = Definitions(given)
    return {name: _made(known, definitions) for name, known in classes.items()}


def _made(known: JsonSchema, definitions: Definitions) -> Annotation:
    name = known["name"]
    if known["kind"] == CODE:
        return dspys(f"Code_{known['language']}")
    made = _MAKERS[known["kind"]](name, known)
    return _hooked(made, known["schema"], definitions)


def _model(name: str, known: JsonSchema) -> Annotation:
    from pydantic import BaseModel

    return type(name, (BaseModel,), {"__module__": __name__, "__get_pydantic_core_schema__": classmethod(_any)})


def _other(name: str, known: JsonSchema) -> Annotation:
    return type(name, (), {})


def _typed_dict(name: str, known: JsonSchema) -> Annotation:
    import typing_extensions

    made = cast("Callable[[str, dict[str, Annotation]], type]", typing_extensions.TypedDict)
    return made(name, {})


def _enum(kind: type[enum.Enum]) -> Callable[[str, JsonSchema], Annotation]:
    def made(name: str, known: JsonSchema) -> Annotation:
        make = cast("Callable[[str, list[tuple[str, object]]], type]", kind)  # the functional form
        try:
            return make(name, [(n, v) for n, v in known["members"]])
        except (ValueError, TypeError) as e:  # two members of one name, a text among flags
            raise problem("DX210", f"{name} is no enum: {e}", "send what Signature.plain() gives") from e

    return made


_MAKERS: Mapping[str, Callable[[str, JsonSchema], Annotation]] = {
    OTHER: _other,
    MODEL: _model,
    TYPED_DICT: _typed_dict,
    ENUM: _enum(enum.Enum),
    FLAG: _enum(enum.Flag),
}


def _any(cls: type, source: object, handler: object) -> Any:
    from pydantic_core import core_schema

    return core_schema.any_schema()


def _hooked(made: Annotation, schema: JsonSchema, definitions: Definitions) -> Annotation:
    """A class of which pydantic takes any value, and whose JSON Schema is the one that is given."""
    key = schema["$ref"].removeprefix(START) if set(schema) == {"$ref"} else None

    def core(cls: type, source: object, handler: object) -> Any:
        from pydantic_core import core_schema

        return core_schema.any_schema(ref=definitions.given[key]["reference"] if key else None)

    def json_schema(cls: type, core_schema: object, handler: Any) -> JsonSchema:
        return definitions.body(key, handler) if key else definitions.json_schema(schema, handler)

    made.__get_pydantic_core_schema__ = classmethod(core)
    made.__get_pydantic_json_schema__ = classmethod(json_schema)
    made.__dspex_definitions__ = (schema, definitions)
    made.__holds_dspy__ = definitions.holds_dspy(schema)
    if isinstance(made, type) and hasattr(made, "model_rebuild"):
        made.model_rebuild(force=True)
    return made
