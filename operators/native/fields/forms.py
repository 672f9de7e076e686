"""The class forms of a signature's side: pydantic models, dataclasses, TypedDicts and DSPy's classes, read and made."""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NotRequired, cast

import typing_extensions

from dspex.operators.native.fields.checks import hint_of
from dspex.operators.native.fields.constraints import CONSTRAINTS, described
from dspex.operators.native.fields.field_names import refuse_name
from dspex.operators.native.fields.fields import (
    MISSING,
    NOTHING,
    SECRET,
    Annotation,
    Constraints,
    Field,
    Role,
    Side,
    Values,
    get_origin,
)
from dspex.operators.native.fields.types import (
    constant_text,
    declared_fields,
    hints_of,
    required_fields,
    takes_none,
    type_text,
    unmarked,
)
from dspex.operators.native.problems import problem

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo


# -- reading ------------------------------------------------------------------------------------------------------
def fields_of(tp: type, role: Role) -> Iterator[Field]:
    """The fields of a record type. Raises TopologyError (DX210)."""
    infos: Mapping[str, FieldInfo] | None = getattr(tp, "__pydantic_fields__", None)
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
        field = _annotated(name, role, hint) if get_origin(hint) is typing.Annotated else _plain(name, role, hint)
        made = dataclasses.is_dataclass(tp) and any(f.name == name and _by_factory(f) for f in dataclasses.fields(tp))
        yield dataclasses.replace(field, required=field.required and name in required, default=default, factory=made)


def _plain(name: str, role: Role, annotation: Annotation) -> Field:
    return Field(name, role, type_text(annotation), "", NOTHING, not takes_none(annotation), annotation)


def _annotated(name: str, role: Role, hint: Annotation) -> Field:
    from pydantic.fields import FieldInfo

    return from_info(name, FieldInfo.from_annotation(hint), role)


def _dataclass_defaults(tp: Annotation) -> dict[str, object]:
    if not dataclasses.is_dataclass(tp):
        return {}
    found: dict[str, object] = {}
    for f in dataclasses.fields(tp):
        if _by_factory(f):
            found[f.name] = _same_each_time(f.name, f.default_factory)
        elif f.default is not dataclasses.MISSING:
            found[f.name] = f.default
    return found


def _by_factory(field: dataclasses.Field[Any]) -> bool:
    return field.default_factory is not dataclasses.MISSING


def from_info(name: str, info: FieldInfo, role: Role) -> Field:
    """A field of a pydantic model or of a DSPy signature. Raises TopologyError (DX210)."""
    refuse_name(name, name)
    more = info.json_schema_extra
    extra: Mapping[str, object] = more if isinstance(more, dict) else NOTHING
    prefix = str(extra.get("prefix") or "")
    description = str(extra.get("desc", info.description) or "")
    constraints: Constraints = {
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
        factory=getattr(info, "default_factory", None) is not None,
        limits=str(extra.get("constraints") or "") if extra.get("__dspy_field_type") else described(constraints),
        secret=bool(extra.get(SECRET)),
    )
    return field if prefix in ("", field.prefix) else dataclasses.replace(field, own_prefix=prefix)


def _plain_pattern(value: object) -> object:
    """The text of a compiled pattern; any other value unchanged."""
    return getattr(value, "pattern", value)


def _default(name: str, info: FieldInfo) -> object:
    return info.default if info.default_factory is None else _same_each_time(name, info.default_factory)


def _same_each_time(name: str, factory: object) -> object:
    """The value that a default factory makes. Raises TopologyError (DX210) if it differs from time to time."""
    try:
        make = cast("Callable[[], object]", factory)
        first, second = make(), make()
    except TypeError as e:
        raise problem("DX210", f"{name}: its default cannot be made: {e}", "give a default that needs nothing else") from e
    if first != second:
        raise problem("DX210", f"{name}: its default is another one each time", "give a default that stays the same")
    return first


# -- making -------------------------------------------------------------------------------------------------------
def _filled(field: Field) -> object:
    """The value of a missing field; MISSING where it may not be missing."""
    return None if field.default is MISSING and takes_none(field.annotation) else field.default


def to_model(fields: Iterable[Field], side: Side) -> type[BaseModel]:
    """A pydantic model with these fields."""
    from pydantic import Field as Info
    from pydantic import create_model

    made: dict[str, Annotation] = {}
    for f in fields:
        default = _filled(f)
        more: Values = {} if default is MISSING else {"default": default}
        more |= {"json_schema_extra": {SECRET: True}} if f.secret else {}
        made[f.name] = (f.annotation, Info(description=f.description or None, **f.constraints, **more))
    return create_model(side.capitalize(), **made)


def to_typed_dict(fields: Iterable[Field], side: Side) -> type:
    """A TypedDict with these fields."""
    hints = {f.name: hint_of(f) if f.required else NotRequired[hint_of(f)] for f in fields}
    make = cast("Callable[[str, dict[str, Annotation]], type]", typing_extensions.TypedDict)
    return make(side.capitalize(), hints)


def to_dataclass(fields: Iterable[Field], side: Side) -> type:
    """A dataclass with these fields, given by name."""
    made: list[tuple[str, Annotation, Annotation]] = []
    for f in fields:
        default = _filled(f)
        options: Values = {} if default is MISSING else {"default_factory": partial(copy.deepcopy, default)}
        made.append((f.name, hint_of(f), dataclasses.field(**options)))
    return dataclasses.make_dataclass(side.capitalize(), made, kw_only=True)
