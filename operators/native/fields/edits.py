"""What a signature holds, and its edits: each makes a new signature."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Self, TypeAlias

from dspex.operators.native.fields.field_names import check_fields, refuse_name
from dspex.operators.native.fields.fields import MISSING, NOTHING, Annotation, Field, Role
from dspex.operators.native.fields.grammar import parse_field
from dspex.operators.native.fields.types import modern, takes_none, type_text
from dspex.operators.native.problems import did_you_mean, problem

TypeOrText: TypeAlias = str | Annotation | None


class SignatureFields:
    """The fields and the instructions of a signature, and the edits that make a new one.

    As in DSPy, the instructions of the new one are the `objective` of the old one.
    """

    fields: Sequence[Field]
    instructions: str

    @classmethod
    def _made(cls, fields: Sequence[Field], instructions: str = "") -> Self:
        made = object.__new__(cls)
        fields = [f if (tp := modern(f.annotation)) is f.annotation else replace(f, annotation=tp) for f in fields]
        made.__dict__["fields"], made.__dict__["instructions"] = fields, instructions
        return made

    @classmethod
    def _checked(cls, fields: Iterable[Field], instructions: str) -> Self:
        """A signature of fields that do not come from a text. Raises TopologyError (DX210)."""
        made = cls._made(tuple(fields), instructions)
        check_fields(made.fields, str(made))
        return made

    @cached_property
    def inputs(self) -> Mapping[str, Field]:
        """Input fields by name, in order."""
        return MappingProxyType({f.name: f for f in self.fields if f.role == "input"})

    @cached_property
    def outputs(self) -> Mapping[str, Field]:
        """Output fields by name, in order."""
        return MappingProxyType({f.name: f for f in self.fields if f.role == "output"})

    @cached_property
    def objective(self) -> str:
        """The instructions that a prompt shows: the given ones without indentation, or a sentence that names the fields."""
        return inspect.cleandoc(self.instructions) if self.instructions else self.default_instructions

    @property
    def default_instructions(self) -> str:
        """The instructions that DSPy makes where none are given."""
        takes, gives = (", ".join(f"`{n}`" for n in side) for side in (self.inputs, self.outputs))
        return f"Given the fields {takes}, produce the fields {gives}."

    def with_instructions(self, instructions: str) -> Self:
        """The same fields with other instructions; "" for DSPy's default."""
        return self._made(self.fields, instructions)

    def append_instructions(self, instructions: str) -> Self:
        """The same fields, and more instructions in a paragraph of their own."""
        return self._made(self.fields, f"{self.objective}\n\n{instructions}")

    def with_updated_fields(self, name: str, *, description: str | None = None, type: TypeOrText = None) -> Self:
        """One field changed; None keeps the description or the type.

        Args:
            type: text, or the type itself. The field loses its constraints and its default.

        Raises TopologyError (DX209, DX210): there is no such field, or no such type.
        """
        old = next((f for f in self.fields if f.name == name), None)
        if old is None:
            fix = did_you_mean(name, [f.name for f in self.fields])
            raise problem("DX210", f"there is no field {name!r} in {str(self)!r}", fix)
        new = old if type is None else _retyped(old, type)
        new = new if description is None else replace(new, description=description)
        return self._made(tuple(new if f is old else f for f in self.fields), self.objective)

    def insert(
        self,
        index: int,
        name: str,
        role: Role,
        type: TypeOrText = None,
        *,
        description: str = "",
        default: object = MISSING,
    ) -> Self:
        """One more field.

        Args:
            index: among the fields of its role; -1 is the end, as in DSPy, not the last but one.
            type: text, or the type itself; None for text.
            default: the value when the field is missing.

        Raises TopologyError (DX209, DX210): the name is taken or cannot be one, there is no such type, or no such place.
        """
        if role not in ("input", "output"):
            raise problem("DX210", f"{role!r} is no role of a field", f'append("{name}", "output", "str")')
        sides: dict[Role, list[Field]] = {side: [f for f in self.fields if f.role == side] for side in ("input", "output")}
        fields = sides[role]
        place = index + len(fields) + 1 if index < 0 else index
        if not 0 <= place <= len(fields):
            message = f"there is no place {index} among {len(fields)} {role} fields of {str(self)!r}"
            raise problem("DX210", message, f"from {-len(fields) - 1} to {len(fields)}; -1 is the end")
        refuse_name(name, name)
        field = Field(name, role, "str", description)
        field = field if type is None else _retyped(field, type)
        if default is not MISSING:
            field = replace(field, default=default, required=False)
        fields.insert(place, field)
        return self._checked((*sides["input"], *sides["output"]), self.objective)

    def prepend(
        self, name: str, role: Role, type: TypeOrText = None, *, description: str = "", default: object = MISSING
    ) -> Self:
        """One more field, the first of its role. See `insert`."""
        return self.insert(0, name, role, type, description=description, default=default)

    def append(
        self, name: str, role: Role, type: TypeOrText = None, *, description: str = "", default: object = MISSING
    ) -> Self:
        """One more field, the last of its role. See `insert`."""
        return self.insert(-1, name, role, type, description=description, default=default)

    def delete(self, name: str) -> Self:
        """Without the field of this name, if there is one, as in DSPy. Raises TopologyError for the last output."""
        return self._checked((f for f in self.fields if f.name != name), self.objective)


def _retyped(field: Field, tp: TypeOrText) -> Field:
    """The field with another type, given as text or as an object. Constraints and default belonged to the old type."""
    if isinstance(tp, str):
        read = parse_field(field.name, field.role, tp)
        read = replace(read, description=read.description or field.description)
    else:
        read = Field(field.name, field.role, type_text(tp), field.description, NOTHING, not takes_none(tp), tp)
    return replace(read, own_prefix=field.own_prefix, secret=field.secret)
