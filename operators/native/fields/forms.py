"""The class forms of a signature's side: pydantic models, dataclasses, TypedDicts and DSPy's classes, read and made."""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NotRequired

import typing_extensions

from dspex.bus.errors import TopologyError
from dspex.operators.native.fields.checks import hint_of, typed_default
from dspex.operators.native.fields.constraints import CONSTRAINTS, in_words
from dspex.operators.native.fields.fields import MISSING, NOTHING, Field, Role, Side
from dspex.operators.native.fields.grammar import parse_field, refuse_name
from dspex.operators.native.fields.types import (
    constant_text,
    declared_fields,
    foreign,
    hints_of,
    required_fields,
    takes_none,
    type_text,
    unmarked,
)
from dspex.operators.native.suggestions import problem


# -- reading ------------------------------------------------------------------------------------------------------
def fields_of(tp: type[Any], role: Role) -> Iterator[Field]:
    """The fields of a record type. Raises TopologyError (DX210)."""
    infos: Mapping[str, Any] | None = getattr(tp, "__pydantic_fields__", None)
    if infos is not None and isinstance(tp, type):  # pyright: ignore[reportUnnecessaryIsInstance]
        for name, info in infos.items():
            yield from_info(name, info, role)
        return
    declared = declared_fields(tp)
    if declared is None:
        raise problem("DX210", f"{type_text(tp)} has no fields to make a signature of", "use a pydantic model or a dataclass")
    hints, required, defaults = hints_of(tp, include_extras=True), required_fields(tp), _dataclass_defaults(tp)
    for name, annotation in declared.items():
        refuse_name(type_text(tp), name)
        hint = unmarked(hints.get(name, annotation))
        default = defaults.get(name, MISSING)
        field = _annotated(name, role, hint) if typing.get_origin(hint) is typing.Annotated else _plain(name, role, hint)
        yield dataclasses.replace(field, required=field.required and name in required, default=default)


def _plain(name: str, role: Role, annotation: Any) -> Field:
    return Field(name, role, type_text(annotation), "", NOTHING, not takes_none(annotation), annotation)


def _annotated(name: str, role: Role, hint: Any) -> Field:
    from pydantic.fields import FieldInfo

    return from_info(name, FieldInfo.from_annotation(hint), role)


def _dataclass_defaults(tp: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(tp):
        return {}
    found: dict[str, Any] = {}
    for f in dataclasses.fields(tp):
        if f.default_factory is not dataclasses.MISSING:
            found[f.name] = _same_each_time(f.name, f.default_factory)
        elif f.default is not dataclasses.MISSING:
            found[f.name] = f.default
    return found


def from_info(name: str, info: Any, role: Role) -> Field:
    """A field of a pydantic model or of a DSPy signature. Raises TopologyError (DX210)."""
    refuse_name(name, name)
    extra: Mapping[str, Any] = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else NOTHING
    prefix = str(extra.get("prefix") or "")
    description = str(extra.get("desc", info.description) or "")
    constraints = {
        c: _plain_pattern(getattr(m, c)) for m in info.metadata for c in CONSTRAINTS if getattr(m, c, None) is not None
    }
    annotation, text = info.annotation, type_text(info.annotation)
    if constraints:
        text = f"Annotated[{text}, Field({', '.join(f'{k}={constant_text(v)}' for k, v in constraints.items())})]"
    required = info.is_required()
    field = Field(
        name,
        role,
        text,
        "" if description == f"${{{name}}}" else description,  # DSPy's own placeholder
        constraints or NOTHING,
        required and not takes_none(annotation),
        annotation,
        typed=not extra.get("IS_TYPE_UNDEFINED", False),
        default=MISSING if required else _default(name, info),
        limits=str(extra.get("constraints") or "") if extra.get("__dspy_field_type") else in_words(constraints),
    )
    return field if prefix in ("", field.prefix) else dataclasses.replace(field, own_prefix=prefix)


def _plain_pattern(value: Any) -> Any:
    """The text of a compiled pattern; any other value as it is."""
    return getattr(value, "pattern", value)


def _default(name: str, info: Any) -> Any:
    return info.default if info.default_factory is None else _same_each_time(name, info.default_factory)


def _same_each_time(name: str, factory: Any) -> Any:
    """What a default factory makes. Raises TopologyError (DX210) if it makes another value each time: data could not say it."""
    try:
        first, second = factory(), factory()
    except TypeError as e:
        raise problem("DX210", f"{name}: its default cannot be made: {e}", "give a default that needs nothing else") from e
    if first != second:
        raise problem("DX210", f"{name}: its default is another one each time", "give a default that stays the same")
    return first


# -- making -------------------------------------------------------------------------------------------------------
def _filled(field: Field) -> Any:
    """What a missing field becomes; MISSING where it may not be missing."""
    return None if field.default is MISSING and takes_none(field.annotation) else field.default


def to_model(fields: Iterable[Field], side: Side) -> Any:
    """A pydantic model with these fields."""
    from pydantic import Field as Info
    from pydantic import create_model

    made: dict[str, Any] = {}
    for f in fields:
        default = _filled(f)
        said: dict[str, Any] = {} if default is MISSING else {"default": default}
        made[f.name] = (f.annotation, Info(description=f.description or None, **f.constraints, **said))
    return create_model(side.capitalize(), **made)


def to_typed_dict(fields: Iterable[Field], side: Side) -> Any:
    """A TypedDict with these fields."""
    hints = {f.name: hint_of(f) if f.required else NotRequired[hint_of(f)] for f in fields}
    return typing_extensions.TypedDict(side.capitalize(), hints)  # type: ignore[operator]  # made at run time


def to_dataclass(fields: Iterable[Field], side: Side) -> Any:
    """A dataclass with these fields, given by name."""
    made: list[Any] = []
    for f in fields:
        default = _filled(f)
        how: Any = (
            dataclasses.field() if default is MISSING else dataclasses.field(default_factory=partial(copy.deepcopy, default))
        )
        made.append((f.name, hint_of(f), how))
    return dataclasses.make_dataclass(side.capitalize(), made, kw_only=True)


# -- between processes ----------------------------------------------------------------------------------------------
def plain_of(field: Field, read: Field) -> dict[str, Any]:
    """What a field says beyond its text, which reads as `read`."""
    said: dict[str, Any] = {}
    for key, mine, theirs in (
        ("description", field.description, read.description),
        ("limits", field.limits, read.limits),
        ("prefix", field.own_prefix, read.own_prefix),
        ("required", field.required, read.required),
    ):
        if mine != theirs:
            said[key] = mine
    if field.default is not MISSING and field.default != read.default:
        said["default"] = _jsonable(field.default)
    return said


def with_plain(field: Field, said: Any) -> Field:
    """A field with what `plain_of` said. Raises TopologyError (DX210) for a default that does not fit."""
    if not isinstance(said, Mapping):
        raise problem("DX210", f"{field.name}: {said!r} does not describe a field", "send what Signature.plain() gives")
    default = typed_default(field, said["default"]) if "default" in said else field.default
    return dataclasses.replace(
        field,
        description=str(said.get("description", field.description)),
        limits=str(said.get("limits", field.limits)),
        own_prefix=str(said.get("prefix", field.own_prefix)),
        required=bool(said.get("required", field.required and default is MISSING)),
        default=default,
    )


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value)


def beyond(field: Field) -> list[str]:
    """What a field says beyond its text and description, for a digest; [] for nothing."""
    default = (
        "" if field.default is MISSING or (field.default is None and takes_none(field.annotation)) else repr(field.default)
    )
    optional = not field.required and not takes_none(field.annotation)
    return [field.limits, default, str(optional)] if field.limits or default or optional else []


def unreadable(field: Field) -> Iterator[str]:
    """The types of a field that no text can carry to another process."""
    names = list(foreign(field.annotation))
    yield from names
    if not names and field.typed:
        try:
            parse_field(field.name, field.role, field.type)
        except TopologyError:
            yield field.type
