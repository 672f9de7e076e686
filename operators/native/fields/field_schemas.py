"""The fields of one side as a JSON Schema of an object, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NoReturn, cast

from dspex.operators.native.fields.checks import adapter, typed_default
from dspex.operators.native.fields.constraints import wrong_value
from dspex.operators.native.fields.field_names import refuse_name
from dspex.operators.native.fields.fields import MISSING, SECRET, Constraints, Field, JsonSchema, Role
from dspex.operators.native.fields.grammar import parse_field
from dspex.operators.native.fields.token_reader import MAX_DEPTH
from dspex.operators.native.fields.types import constant_text
from dspex.operators.native.problems import problem

_SCALARS = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_FORMATS = {
    "date": "datetime.date",
    "date-time": "datetime.datetime",
    "time": "datetime.time",
    "duration": "datetime.timedelta",
    "uuid": "uuid.UUID",
    "binary": "bytes",
}
_CONSTRAINTS: Mapping[str, str] = {
    "exclusiveMinimum": "gt",
    "minimum": "ge",
    "exclusiveMaximum": "lt",
    "maximum": "le",
    "multipleOf": "multiple_of",
    "minLength": "min_length",
    "maxLength": "max_length",
    "minItems": "min_length",
    "maxItems": "max_length",
    "minProperties": "min_length",
    "maxProperties": "max_length",
    "pattern": "pattern",
}
_IGNORED = frozenset({"title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated"})
# The types that the value of a keyword must have.
_LISTED: Mapping[str, type | tuple[type, ...]] = {
    "type": (str, list), "format": str, "enum": list, "anyOf": list, "oneOf": list, "prefixItems": list,
}  # fmt: skip
_KNOWN = frozenset(
    {"type", "format", "enum", "const", "anyOf", "oneOf", "items", "prefixItems", "uniqueItems", "additionalProperties"}
)


def json_schema(fields: Iterable[Field]) -> JsonSchema:
    """The JSON Schema (2020-12) of an object with these fields and no others."""
    given = list(fields)
    schema: JsonSchema = adapter(given).json_schema()
    properties: dict[str, JsonSchema] = schema.get("properties", {})
    for f in given:
        if f.default is not MISSING:
            from pydantic_core import to_jsonable_python

            properties[f.name]["default"] = to_jsonable_python(f.default)
    return {k: v for k, v in schema.items() if k != "title"} | {"additionalProperties": False}


def fields_of(schema: Mapping[str, object], role: Role) -> Iterator[Field]:
    """The fields that a JSON Schema of an object describes. Raises TopologyError (DX210) for what a signature cannot say."""
    properties = schema.get("properties", {})
    if schema.get("type", "object") != "object" or not isinstance(properties, Mapping):
        raise problem("DX210", f"the JSON Schema of the {role}s is not one of an object with properties", 'type: "object"')
    for key in schema:
        if key not in {*_IGNORED, "type", "properties", "required", "additionalProperties", "$defs"}:
            _refuse(role, key)
    required = schema.get("required", ())
    if not isinstance(required, (list, tuple)):
        _refuse(role, "such a list of required properties")
    for name, part in cast("Mapping[str, object]", properties).items():
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            _refuse(role, f"the name {name!r:.40}")
        refuse_name(name, name)
        yield _field(name, role, part, name in required)


def _field(name: str, role: Role, schema: object, required: bool) -> Field:
    given: Mapping[str, object] = schema if isinstance(schema, Mapping) else {}
    secret = bool(given.get(SECRET))
    text, constraints = _type(name, {k: v for k, v in given.items() if k != SECRET} if secret else schema, 0)
    for key, value in constraints.items():
        if wrong := wrong_value(key, value):
            _refuse(name, f"{key} {value!r:.40} ({wrong})")
    if constraints:
        arguments = ", ".join(f"{k}={constant_text(v)}" for k, v in constraints.items())
        text = f"Annotated[{text}, Field({arguments})]"
    field = parse_field(name, role, text)
    default = given.get("default", MISSING)
    if default is not MISSING:
        default = typed_default(field, default)
    required = required and field.required and default is MISSING
    description = str(given.get("description", ""))
    return replace(field, description=description, default=default, required=required, secret=secret)


def _type(where: str, schema: object, depth: int) -> tuple[str, Constraints]:
    """The text of a type, and its constraints."""
    if schema is True or schema == {}:
        return "Any", {}
    if depth > MAX_DEPTH:
        _refuse(where, f"more than {MAX_DEPTH} levels")
    if not isinstance(schema, Mapping):
        _refuse(where, "a list" if isinstance(schema, list) else repr(schema)[:40])
    part = cast("JsonSchema", schema)
    for key in part:
        if key not in _IGNORED and key not in _KNOWN and key not in _CONSTRAINTS:
            _refuse(where, key)
    constraints = {_CONSTRAINTS[k]: v for k, v in part.items() if k in _CONSTRAINTS}
    if isinstance(part.get("prefixItems"), list) and {*constraints.values()} <= {len(part["prefixItems"])}:
        constraints = {}  # the text of a tuple states its length
    for key, kinds in _LISTED.items():
        if key in part and not isinstance(part[key], kinds):
            _refuse(where, f"such a value of {key}")
    for key, read in _READERS.items():
        if key in part:
            return read(where, part, depth), constraints
    return "Any", constraints


def _inner(where: str, schema: object, depth: int) -> str:
    """The text of a type inside of another, which may have no constraints."""
    text, constraints = _type(where, schema, depth + 1)
    if constraints:
        _refuse(where, f"{', '.join(constraints)} of an inner value")
    return text


def _union(where: str, parts: Iterable[object], depth: int) -> str:
    texts = [_inner(where, p, depth) for p in parts]
    if not texts:
        _refuse(where, "a choice of nothing")
    return " | ".join("None" if t == "NoneType" else t for t in texts)


def _literal(values: Iterable[object]) -> str:
    return f"Literal[{', '.join(map(constant_text, values))}]"


def _typed(where: str, part: JsonSchema, depth: int) -> str:
    kind = part["type"]
    if isinstance(kind, list):
        return _union(where, [{**part, "type": k} for k in kind], depth)
    if kind == "array":
        return _array(where, part, depth)
    if kind == "object":
        values = part.get("additionalProperties", True)
        return "dict" if values is True else f"dict[str, {_inner(where, values, depth)}]"
    if kind == "string" and "format" in part:
        return _FORMATS.get(part["format"]) or _refuse(where, f"the format {part['format']}")
    if kind not in _SCALARS:
        _refuse(where, f"the type {kind!r}")
    return "NoneType" if kind == "null" and not depth else _SCALARS[kind]


def _array(where: str, part: JsonSchema, depth: int) -> str:
    if "prefixItems" in part:
        return f"tuple[{', '.join(_inner(where, p, depth) for p in part['prefixItems']) or '()'}]"
    name = "set" if part.get("uniqueItems") else "list"
    items = part.get("items", True)
    return name if items is True or items == {} else f"{name}[{_inner(where, items, depth)}]"


# The first of these keywords that a schema has decides how it is read.
_READERS: Mapping[str, Callable[[str, JsonSchema, int], str]] = {
    "enum": lambda where, part, depth: _literal(part["enum"]),
    "const": lambda where, part, depth: _literal([part["const"]]),
    "anyOf": lambda where, part, depth: _union(where, part["anyOf"], depth),
    "oneOf": lambda where, part, depth: _union(where, part["oneOf"], depth),
    "type": _typed,
}


def _refuse(where: str, what: str) -> NoReturn:
    raise problem(
        "DX210", f"{where}: a signature cannot say {what} of a JSON Schema", "use types, enum, anyOf, and lists of them"
    )
