"""A field as plain data, for another process and for a digest: what the text of a signature cannot carry."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import cast

from dspex.operators.native.fields.checks import typed_default
from dspex.operators.native.fields.fields import MISSING, SECRET, Field, Values
from dspex.operators.native.fields.types import takes_none
from dspex.operators.native.problems import problem


def plain_of(field: Field, read: Field) -> Values:
    """The attributes of a field that its text does not carry. `read`: the field that the text is read as."""
    found: Values = {}
    for key, mine, theirs in (
        ("description", field.description, read.description),
        ("limits", field.limits, read.limits),
        ("prefix", field.own_prefix, read.own_prefix),
        ("required", field.required, read.required),
        ("factory", field.factory, read.factory),
        (SECRET, field.secret, read.secret),
    ):
        if mine != theirs:
            found[key] = mine
    if field.default is not MISSING and field.default != read.default:
        found["default"] = _jsonable(field.default)
    return found


def with_plain(field: Field, given: object) -> Field:
    """A field with the attributes that `plain_of` gave. Raises TopologyError (DX210) for a default that does not fit."""
    if not isinstance(given, Mapping):
        raise problem("DX210", f"{field.name}: {given!r} does not describe a field", "send what Signature.plain() gives")
    found = cast("Mapping[str, object]", given)
    default = typed_default(field, found["default"]) if "default" in found else field.default
    return dataclasses.replace(
        field,
        description=str(found.get("description", field.description)),
        limits=str(found.get("limits", field.limits)),
        own_prefix=str(found.get("prefix", field.own_prefix)),
        required=bool(found.get("required", field.required and default is MISSING)),
        factory=bool(found.get("factory", field.factory)),
        secret=bool(found.get(SECRET, field.secret)),
        default=default,
    )


def _jsonable(value: object) -> object:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value)


def beyond(field: Field) -> list[str]:
    """The attributes of a field beyond its text and description, for a digest; [] for none."""
    usual = field.default is MISSING or (field.default is None and takes_none(field.annotation))
    default = "" if usual else repr(field.default)
    optional = not field.required and not takes_none(field.annotation)
    said = [field.limits, default, str(optional)] if field.limits or default or optional else []
    return [*said, SECRET] if field.secret else said
