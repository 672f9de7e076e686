"""Signatures: `"text -> intent: Literal['a', 'b'], urgency: int"`, parsed and checked without DSPy.

DSPy's meaning is kept: a field without a type is text. Other than in DSPy, constraints of outputs are enforced, and names
that DSPy would drop or take for something else are refused.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, NoReturn, Self

from dspex.bus.errors import InvalidInput, InvalidOutput, TopologyError
from dspex.operators.native import adapters
from dspex.operators.native.adapters import Adapter
from dspex.operators.native.fields import field_schemas, forms
from dspex.operators.native.fields.checks import Check
from dspex.operators.native.fields.fields import MISSING, NOTHING, Role, Side
from dspex.operators.native.fields.fields import Field as Field
from dspex.operators.native.fields.grammar import check_fields, parse, parse_field, refuse_name
from dspex.operators.native.fields.tokens import shown
from dspex.operators.native.fields.types import takes_none, type_text
from dspex.operators.native.suggestions import did_you_mean, problem

_SIDES: tuple[Side, Side] = ("inputs", "outputs")
_CACHED = 4096  # characters: a longer text is not kept


class Signature:
    """What goes into a program and what comes out: names, types, instructions. It never changes: edits make a new one.

    Args:
        spec: `"a, b: int -> c: list[str]"`.
        instructions: for the model; "" for DSPy's default.
        types: names beyond those of builtins, typing, datetime, uuid, decimal and dspy, which the spec may use.

    Raises TopologyError: DX209 for an unknown type, DX210 for everything else.
    """

    fields: tuple[Field, ...]
    instructions: str

    # Not __init__: that would run for a signature that is known already
    def __new__(cls, spec: str, /, *, instructions: str = "", types: Mapping[str, Any] = NOTHING) -> Self:
        if types or type(spec) is not str or len(spec) > _CACHED or "pattern" in spec:  # a compiled pattern is large
            return cls._made(parse(spec, types), instructions)
        made: Self = _known(cls, spec, instructions)
        return made

    @classmethod
    def _made(cls, fields: Sequence[Field], instructions: str = "") -> Self:
        made = object.__new__(cls)
        made.__dict__["fields"], made.__dict__["instructions"] = fields, instructions
        return made

    @classmethod
    def _checked(cls, fields: Iterable[Field], instructions: str) -> Self:
        """A signature of fields that no text was read for. Raises TopologyError (DX210)."""
        made = cls._made(tuple(fields), instructions)
        check_fields(made.fields, str(made))
        return made

    @classmethod
    def of(cls, inputs: type[Any], outputs: type[Any], *, instructions: str = "") -> Self:
        """The signature whose fields are those of two record types (pydantic models, dataclasses, TypedDicts).

        Descriptions, constraints and defaults are kept. Raises TopologyError (DX210).
        """
        return cls._checked((*forms.fields_of(inputs, "input"), *forms.fields_of(outputs, "output")), instructions)

    @classmethod
    def from_json_schema(cls, inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, instructions: str = "") -> Self:
        """The signature whose fields are the properties of two JSON Schemas of objects; `json_schema` is the inverse.

        Raises TopologyError (DX210) for what a signature cannot say: objects with properties of their own, references,
        `allOf`, `not`, constraints of inner values.
        """
        return cls._checked(
            (*field_schemas.fields_of(inputs, "input"), *field_schemas.fields_of(outputs, "output")), instructions
        )

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], *, types: Mapping[str, Any] = NOTHING) -> Self:
        """The signature that `plain()` wrote. Unknown keys are ignored. Raises TopologyError."""
        spec, instructions, said = plain.get("signature"), plain.get("instructions", ""), plain.get("fields") or {}
        if not (isinstance(spec, str) and isinstance(instructions, str) and isinstance(said, Mapping)):
            message = "a plain signature has the texts signature and instructions, and fields by name"
            raise problem("DX210", message, "send what Signature.plain() gives")
        made = cls(spec, instructions=instructions, types=types)
        if not said:
            return made
        return cls._made(
            tuple(forms.with_plain(f, said[f.name]) if f.name in said else f for f in made.fields), made.instructions
        )

    def plain(self) -> dict[str, Any]:
        """The signature as plain data for another process.

        `signature` and `instructions` are texts; `fields` has, by name, what the text cannot carry: description, default,
        limits, prefix, and whether the field is required.
        """
        try:
            read = Signature(str(self)).fields
        except TopologyError:  # a type that only this process knows
            read = tuple(Field(f.name, f.role, f.type, typed=f.typed) for f in self.fields)
        said = {f.name: more for f, r in zip(self.fields, read, strict=True) if (more := forms.plain_of(f, r))}
        return {"signature": str(self), "instructions": self.instructions, "fields": said}

    # -- what it says ----------------------------------------------------------------------------------------------
    @cached_property
    def inputs(self) -> Mapping[str, Field]:
        """Input fields by name, in order."""
        return MappingProxyType({f.name: f for f in self.fields if f.role == "input"})

    @cached_property
    def outputs(self) -> Mapping[str, Field]:
        """Output fields by name, in order."""
        return MappingProxyType({f.name: f for f in self.fields if f.role == "output"})

    def _side(self, side: Side) -> Mapping[str, Field]:
        return self.inputs if side == "inputs" else self.outputs

    def annotations(self, side: Side) -> dict[str, Any]:
        """Types by field name; `str` where the text gave none."""
        return {n: f.annotation for n, f in self._side(side).items()}

    @cached_property
    def objective(self) -> str:
        """The instructions that a prompt shows: the given ones without their indent, or a sentence that names the fields."""
        return inspect.cleandoc(self.instructions) if self.instructions else self.default_instructions

    @property
    def default_instructions(self) -> str:
        """What DSPy says where no instructions are given."""
        takes, gives = (", ".join(f"`{n}`" for n in side) for side in (self.inputs, self.outputs))
        return f"Given the fields {takes}, produce the fields {gives}."

    @cached_property
    def _text(self) -> str:
        return " -> ".join(", ".join(f.text for f in self._side(s).values()) for s in _SIDES)

    def __str__(self) -> str:
        """The canonical text: what goes over the wire, and what DSPy parses to the same fields."""
        return self._text

    def __repr__(self) -> str:
        more = f", instructions={self.instructions!r}" if self.instructions else ""
        return f"Signature({self._text!r}{more})"

    @cached_property
    def digest(self) -> str:
        """12 hex digits over fields, types, descriptions, defaults and instructions."""
        described = [[f.text, f.role, f.description, *forms.beyond(f)] for f in self.fields]
        return hashlib.sha256(json.dumps([described, self.instructions]).encode()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Signature) and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def foreign_types(self) -> list[str]:
        """Types that only this process knows: text cannot carry them to a worker."""
        return sorted({n for f in self.fields for n in forms.unreadable(f)})

    # -- data ------------------------------------------------------------------------------------------------------
    def check_inputs(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs, checked and typed. Raises InvalidInput that lists every field that does not fit.

        An input without a type takes anything, as in DSPy. An input that may be None or has a default may be missing. Others
        are left out.
        """
        return self._check_inputs(data)

    def check_outputs(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs, checked and typed; constraints count. Raises InvalidOutput that lists every field.

        A missing output becomes its default, or None where it may be None, as in DSPy.
        """
        return self._check_outputs(data)

    @cached_property
    def _check_inputs(self) -> Check:
        return Check(f"the inputs do not fit {shown(self._text)!r}", self.inputs.values(), InvalidInput, untyped_is_any=True)

    @cached_property
    def _check_outputs(self) -> Check:
        return Check(f"the outputs do not fit {shown(self._text)!r}", self.outputs.values(), InvalidOutput)

    def messages(
        self,
        data: Mapping[str, Any],
        *,
        adapter: Adapter = "chat",
        demos: Sequence[Mapping[str, Any]] = (),
        version: str | None = None,
    ) -> list[dict[str, Any]]:
        """The messages that DSPy would send to a model, see `adapters.messages`."""
        return adapters.messages(self, data, adapter=adapter, demos=demos, version=version)

    def parse(self, text: str, *, adapter: Adapter = "chat") -> dict[str, Any]:
        """The outputs in a model's reply, typed as DSPy types them; constraints count, other than in DSPy.

        Raises InvalidOutput that lists every field that is missing or does not fit; TopologyError (DX205) for no adapter.
        """
        return self.parsers[adapter](text)

    @cached_property
    def parsers(self) -> Mapping[str, Callable[[str], dict[str, Any]]]:
        """What `parse` uses, by adapter."""
        return adapters.Parsers(self)

    def compiled(self, key: Hashable, make: Callable[[Signature], Any]) -> Any:
        """What `make` makes of this signature, made once for each `key`: parsers, prompts, field_schemas."""
        try:
            return self._compiled[key]
        except KeyError:
            return self._compiled.setdefault(key, make(self))

    @cached_property
    def _compiled(self) -> dict[Hashable, Any]:
        return {}

    # -- other forms -----------------------------------------------------------------------------------------------
    def json_schema(self, side: Side) -> dict[str, Any]:
        """The JSON Schema (2020-12) of one side."""
        return field_schemas.json_schema(self._side(side).values())

    def to_model(self, side: Side) -> Any:
        """One side as a pydantic model; `of` is the inverse. A field that may be None has None for a default."""
        return forms.to_model(self._side(side).values(), side)

    def to_typed_dict(self, side: Side) -> Any:
        """One side as a TypedDict; `of` is the inverse, but that a TypedDict has no defaults."""
        return forms.to_typed_dict(self._side(side).values(), side)

    def to_dataclass(self, side: Side) -> Any:
        """One side as a dataclass, whose fields are given by name; `of` is the inverse. It checks nothing."""
        return forms.to_dataclass(self._side(side).values(), side)

    # -- edits: each gives a new signature, whose instructions are the `objective` of this one, as in DSPy ----------
    def with_instructions(self, instructions: str) -> Self:
        """The same fields with other instructions; "" for DSPy's default."""
        return self._made(self.fields, instructions)

    def append_instructions(self, instructions: str) -> Self:
        """The same fields, and more instructions in a paragraph of their own."""
        return self._made(self.fields, f"{self.objective}\n\n{instructions}")

    def with_updated_fields(self, name: str, *, description: str | None = None, type: Any = None) -> Self:
        """One field changed; None keeps what is there.

        Args:
            type: text, or the type itself. The constraints of the field go, and so does its default.

        Raises TopologyError (DX209, DX210): there is no such field, or no such type.
        """
        if name not in self.inputs and name not in self.outputs:
            raise problem(
                "DX210", f"there is no field {name!r} in {self._text!r}", did_you_mean(name, [f.name for f in self.fields])
            )
        old = self.inputs.get(name) or self.outputs[name]
        new = old if type is None else _retyped(old, type)
        new = new if description is None else replace(new, description=description)
        return self._made(tuple(new if f is old else f for f in self.fields), self.objective)

    def insert(
        self, index: int, name: str, role: Role, type: Any = None, *, description: str = "", default: Any = MISSING
    ) -> Self:
        """One more field.

        Args:
            index: among the fields of its role; -1 is the end, as in DSPy, not the last but one.
            type: text, or the type itself; None for text.
            default: what it becomes when it is missing.

        Raises TopologyError (DX209, DX210): a name that is there already or cannot be one, no such type, no such place.
        """
        if role not in ("input", "output"):
            raise problem("DX210", f"{role!r} is no role of a field", f'append("{name}", "output", "str")')
        sides: dict[Role, list[Field]] = {"input": [*self.inputs.values()], "output": [*self.outputs.values()]}
        fields = sides[role]
        place = index + len(fields) + 1 if index < 0 else index
        if not 0 <= place <= len(fields):
            message = f"there is no place {index} among {len(fields)} {role} fields of {self._text!r}"
            raise problem("DX210", message, f"from {-len(fields) - 1} to {len(fields)}; -1 is the end")
        refuse_name(name, name)
        field = Field(name, role, "str", description)
        field = field if type is None else _retyped(field, type)
        if default is not MISSING:
            field = replace(field, default=default, required=False)
        fields.insert(place, field)
        return self._checked((*sides["input"], *sides["output"]), self.objective)

    def prepend(self, name: str, role: Role, type: Any = None, *, description: str = "", default: Any = MISSING) -> Self:
        """One more field, the first of its role. See `insert`."""
        return self.insert(0, name, role, type, description=description, default=default)

    def append(self, name: str, role: Role, type: Any = None, *, description: str = "", default: Any = MISSING) -> Self:
        """One more field, the last of its role. See `insert`."""
        return self.insert(-1, name, role, type, description=description, default=default)

    def delete(self, name: str) -> Self:
        """One field less; nothing if there is none of this name, as in DSPy. Raises TopologyError for the last output."""
        return self._checked((f for f in self.fields if f.name != name), self.objective)

    # -- it never changes ------------------------------------------------------------------------------------------
    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"a signature never changes; with_instructions and others make a new one (set {name})")

    def __delattr__(self, name: str) -> NoReturn:
        self.__setattr__(name, None)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (Signature.from_plain, (self.plain(),))


def _read(cls: type[Signature], spec: str, instructions: str) -> Signature:
    return cls._made(parse(spec, NOTHING), instructions)  # pyright: ignore[reportPrivateUsage]


_known: Any = lru_cache(maxsize=1024)(_read)


def _retyped(field: Field, tp: Any) -> Field:
    """The field with another type, by text or as an object, and without what belonged to the type before."""
    if isinstance(tp, str):
        read = parse_field(field.name, field.role, tp)
        return replace(read, description=read.description or field.description, own_prefix=field.own_prefix)
    required = not takes_none(tp)
    return Field(field.name, field.role, type_text(tp), field.description, NOTHING, required, tp, own_prefix=field.own_prefix)


def as_signature(value: Any) -> Signature:
    """What an operator takes for a signature: text, a Signature, or a dspy.Signature class that the user imported.

    Raises TopologyError: DX209, DX210.
    """
    if isinstance(value, Signature):
        return value
    if isinstance(value, str):
        return Signature(value)
    inputs, outputs = getattr(value, "input_fields", None), getattr(value, "output_fields", None)
    if isinstance(inputs, Mapping) and isinstance(outputs, Mapping):
        roles: list[tuple[Mapping[str, Any], Role]] = [(inputs, "input"), (outputs, "output")]
        fields = (forms.from_info(n, f, role) for side, role in roles for n, f in side.items())
        instructions = str(getattr(value, "instructions", "")) or " "  # a class that says nothing; "" is DSPy's default here
        made = Signature._checked(fields, instructions)  # pyright: ignore[reportPrivateUsage]
        return made.with_instructions("") if made.instructions == made.default_instructions else made
    raise problem("DX210", f"{value!r} is not a signature", 'write "text -> answer"')
