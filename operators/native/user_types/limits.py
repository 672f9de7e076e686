"""What a description of types from another process may be. Whoever may call a worker can write anything into it.

Nothing in it becomes code: names are shown, JSON Schemas are shown and sent, and no pattern of them is ever compiled. So the
limits are those of size, and of what a schema grows to when its references are written out, as prompts for XML do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn, cast

from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.problems import problem
from dspex.operators.native.user_types.described import CODE, ENUM, FLAG, KINDS, MAX_SIZE

_DEPTH = 60  # levels of a schema
_TYPES = 300
_MEMBERS = 1_000
_NAME = 1_000  # characters
_START = "#/$defs/"


def checked(plain: object) -> tuple[Mapping[str, JsonSchema], Mapping[str, JsonSchema]]:
    """The classes and the definitions. Raises TopologyError (DX210) for what is none, or too large."""
    given = _map(plain, "types")
    if len(json.dumps(given, default=str)) > MAX_SIZE:
        _refuse(f"they take more than {MAX_SIZE:,} characters")
    classes, definitions = _map(given.get("classes"), "classes"), _map(given.get("definitions", {}), "definitions")
    if len(classes) + len(definitions) > _TYPES:
        _refuse(f"there are more than {_TYPES} of them")
    for key, known in definitions.items():
        _text(_map(known, key).get("reference"), f"{key}: its reference")
        for form in ("schema", "by_name"):
            if form in known or form == "schema":
                _schema(known.get(form), definitions, key)
    for name, known in classes.items():
        _class(name, _map(known, name), definitions)
    return classes, definitions


def _class(name: str, known: JsonSchema, definitions: Mapping[str, Any]) -> None:
    if not name.isidentifier():
        _refuse(f"{name!r:.60} is not a name")
    _text(known.get("name"), f"{name}: its name")
    if known.get("kind") not in KINDS:
        _refuse(f"{name} is of the kind {known.get('kind')!r:.60}, which this version does not know")
    _schema(known.get("schema"), definitions, name)
    if known["kind"] == CODE:
        _text(known.get("language"), f"{name}: its language")
    if known["kind"] in (ENUM, FLAG):
        _members(name, known.get("members"))


def _members(name: str, members: Any) -> None:
    if not isinstance(members, list) or not 0 < len(members) <= _MEMBERS:
        _refuse(f"{name} has not 1 to {_MEMBERS} members")
    for member in members:
        at, value = member if isinstance(member, list) and len(member) == 2 else (None, None)
        if not isinstance(at, str) or not at.isidentifier() or at.startswith("_") or at == "mro" or len(at) > _NAME:
            _refuse(f"{name}: {member!r:.60} is not the name of a member and its value")
        if not (value is None or isinstance(value, (str, int, float))):
            _refuse(f"{name}.{at} is neither text nor a number")


def _schema(schema: object, definitions: Mapping[str, Any], where: str, depth: int = 0) -> None:
    if depth > _DEPTH:
        _refuse(f"{where} has more than {_DEPTH} levels")
    if depth == 0 and not isinstance(schema, dict):
        _refuse(f"{where} has no JSON Schema")
    if isinstance(schema, str) and schema.startswith(_START) and schema.removeprefix(_START) not in definitions:
        _refuse(f"{where} refers to {schema!r:.60}, which is not there")
    if isinstance(schema, dict):
        reference = cast("JsonSchema", schema).get("$ref")
        if reference is not None and not (isinstance(reference, str) and reference.startswith(_START)):
            _refuse(f"{where} refers to {reference!r:.60}, which is not one of its types")
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for part in cast("list[object]", inner):
        _schema(part, definitions, where, depth + 1)


def _map(value: object, where: str) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in cast("Mapping[object, object]", value)):
        _refuse(f"{where} is no mapping by name")
    return cast("Mapping[str, Any]", value)


def _text(value: object, where: str) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= _NAME or not value.isprintable():
        _refuse(f"{where} is not a text of up to {_NAME} characters")


def _refuse(what: str) -> NoReturn:
    raise problem("DX210", f"the types of the signature cannot be used: {what}", "send what Signature.plain() gives")
