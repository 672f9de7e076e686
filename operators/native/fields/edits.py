"""Edits of a signature's fields: each function gives a new list of fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dspex.operators.native.fields.field_names import refuse_name
from dspex.operators.native.fields.fields import MISSING, NOTHING, Annotation, Field, Role
from dspex.operators.native.fields.grammar import parse_field
from dspex.operators.native.fields.types import takes_none, type_text
from dspex.operators.native.suggestions import did_you_mean, problem


def updated(
    fields: Sequence[Field], spec: str, name: str, description: str | None, type: str | Annotation | None
) -> tuple[Field, ...]:
    """The fields with one of them changed, see `Signature.with_updated_fields`. `spec`: the signature, for the error."""
    old = next((f for f in fields if f.name == name), None)
    if old is None:
        raise problem("DX210", f"there is no field {name!r} in {spec!r}", did_you_mean(name, [f.name for f in fields]))
    new = old if type is None else _retyped(old, type)
    new = new if description is None else replace(new, description=description)
    return tuple(new if f is old else f for f in fields)


def inserted(
    fields: Sequence[Field],
    spec: str,
    index: int,
    name: str,
    role: Role,
    type: str | Annotation | None,
    *,
    description: str,
    default: object,
) -> tuple[Field, ...]:
    """The fields and one more, see `Signature.insert`. `spec`: the signature, for the error."""
    if role not in ("input", "output"):
        raise problem("DX210", f"{role!r} is no role of a field", f'append("{name}", "output", "str")')
    sides: dict[Role, list[Field]] = {side: [f for f in fields if f.role == side] for side in ("input", "output")}
    siblings = sides[role]
    place = index + len(siblings) + 1 if index < 0 else index
    if not 0 <= place <= len(siblings):
        message = f"there is no place {index} among {len(siblings)} {role} fields of {spec!r}"
        raise problem("DX210", message, f"from {-len(siblings) - 1} to {len(siblings)}; -1 is the end")
    refuse_name(name, name)
    field = Field(name, role, "str", description)
    field = field if type is None else _retyped(field, type)
    if default is not MISSING:
        field = replace(field, default=default, required=False)
    siblings.insert(place, field)
    return (*sides["input"], *sides["output"])


def _retyped(field: Field, tp: str | Annotation) -> Field:
    """The field with another type, given as text or as an object. Constraints and default belonged to the old type."""
    if isinstance(tp, str):
        read = parse_field(field.name, field.role, tp)
        return replace(read, description=read.description or field.description, own_prefix=field.own_prefix)
    required = not takes_none(tp)
    return Field(field.name, field.role, type_text(tp), field.description, NOTHING, required, tp, own_prefix=field.own_prefix)
