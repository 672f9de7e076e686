"""Signatures: `"text -> intent: Literal['a', 'b'], urgency: int"`, parsed and checked without DSPy.

A text means the same as in DSPy: a field without a type is text. Unlike in DSPy, constraints of outputs are enforced, and
names that DSPy would drop or give another meaning are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, cast

from dspex.bus.errors import InvalidInput, InvalidOutput
from dspex.operators.native import adapters
from dspex.operators.native.adapters import Adapter
from dspex.operators.native.fields import field_schemas, forms, plain
from dspex.operators.native.fields.checks import Check
from dspex.operators.native.fields.edits import SignatureFields
from dspex.operators.native.fields.fields import MISSING, NOTHING, Annotation, JsonSchema, Role, Side, Values
from dspex.operators.native.fields.fields import Field as Field
from dspex.operators.native.fields.grammar import parse
from dspex.operators.native.fields.tokens import shown
from dspex.operators.native.problems import problem

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from dspex.operators.native.user_types.described import Described

T = TypeVar("T")

_SIDES: tuple[Side, Side] = ("inputs", "outputs")
_CACHED = 4096  # characters: the signature of a longer text is not cached


class Signature(SignatureFields):
    """The inputs and outputs of a program: names, types, instructions. It is immutable: edits make a new one.

    Args:
        spec: `"a, b: int -> c: list[str]"`.
        instructions: for the model; "" for DSPy's default.
        types: names beyond those of builtins, typing, datetime, uuid, decimal and dspy, which the spec may use.

    Raises TopologyError: DX209 for an unknown type, DX210 for everything else.
    """

    # Not __init__: it would run for a signature from the cache too.
    def __new__(cls, spec: str, /, *, instructions: str = "", types: Mapping[str, Annotation] = NOTHING) -> Self:
        if types or type(spec) is not str or len(spec) > _CACHED or "pattern" in spec:  # a compiled pattern takes much memory
            return cls._made(parse(spec, types), instructions)
        made: Self = _known(cls, spec, instructions)
        return made

    @classmethod
    def of(cls, inputs: type, outputs: type, *, instructions: str = "") -> Self:
        """The signature whose fields are those of two record types (pydantic models, dataclasses, TypedDicts).

        Descriptions, constraints and defaults are kept. Raises TopologyError (DX210).
        """
        return cls._checked((*forms.fields_of(inputs, "input"), *forms.fields_of(outputs, "output")), instructions)

    @classmethod
    def from_json_schema(cls, inputs: Mapping[str, object], outputs: Mapping[str, object], *, instructions: str = "") -> Self:
        """The signature whose fields are the properties of two JSON Schemas of objects; `json_schema` is the inverse.

        Raises TopologyError (DX210) for what a signature cannot express: objects with properties of their own, references,
        `allOf`, `not`, constraints of inner values.
        """
        return cls._checked(
            (*field_schemas.fields_of(inputs, "input"), *field_schemas.fields_of(outputs, "output")), instructions
        )

    @classmethod
    def from_plain(cls, given: Mapping[str, object], /, *, types: Mapping[str, Annotation] = NOTHING) -> Self:
        """The signature that `plain()` wrote. Unknown keys are ignored. Raises TopologyError.

        `types` come before those that it describes.
        """
        spec, instructions, fields = given.get("signature"), given.get("instructions", ""), given.get("fields") or {}
        if not (isinstance(spec, str) and isinstance(instructions, str) and isinstance(fields, Mapping)):
            message = "a plain signature has the texts signature and instructions, and fields by name"
            raise problem("DX210", message, "send what Signature.plain() gives")
        if described := given.get("types"):
            from dspex.operators.native.user_types.stand_in import stand_ins

            types = {**stand_ins(cast("Values", described)), **types}
        made = cls(spec, instructions=instructions, types=types)
        if not fields:
            return made
        more = cast("Mapping[str, object]", fields)
        return cls._made(
            tuple(plain.with_plain(f, more[f.name]) if f.name in more else f for f in made.fields), made.instructions
        )

    def plain(self) -> Values:
        """The signature as plain data for another process.

        `signature` and `instructions` are texts; `fields` has, by name, what the text does not carry: description, default,
        limits, prefix, whether the field is required, whether it is secret, and which `secrets` are in its type; `types`
        describes the user's own types, where there are any. Raises TopologyError (DX211) for a type that cannot travel.
        """
        from dspex.operators.native.user_types.marked import marked

        described = self.described
        text = str(self)
        if described.plain:
            text = " -> ".join(", ".join(map(described.text, self._side(s).values())) for s in _SIDES)
        read = Signature(text, types=described.known).fields
        fields = {f.name: more for f, r in zip(self.fields, read, strict=True) if (more := plain.plain_of(f, r))}
        types = {"types": described.plain} if described.plain else {}
        for f in self.fields if described.plain else ():
            if inner := marked(f.annotation):
                fields[f.name] = {**fields.get(f.name, {}), "secrets": inner}
        return {"signature": text, "instructions": self.instructions, "fields": fields, **types}

    @cached_property
    def described(self) -> Described:
        """The user's own types, as another process learns of them. Raises TopologyError (DX211) for one that cannot travel."""
        from dspex.operators.native.user_types.described import Described

        return Described(self.fields)

    # -- fields and text ----------------------------------------------------------------------------------------------
    def _side(self, side: Side) -> Mapping[str, Field]:
        return self.inputs if side == "inputs" else self.outputs

    def annotations(self, side: Side) -> dict[str, Annotation]:
        """Types by field name; `str` where the text gave none."""
        return {n: f.annotation for n, f in self._side(side).items()}

    @cached_property
    def _text(self) -> str:
        return " -> ".join(", ".join(f.text for f in self._side(s).values()) for s in _SIDES)

    def __str__(self) -> str:
        """The canonical text: it is sent to workers, and DSPy reads the same fields from it."""
        return self._text

    def __repr__(self) -> str:
        more = f", instructions={self.instructions!r}" if self.instructions else ""
        return f"Signature({self._text!r}{more})"

    @cached_property
    def digest(self) -> str:
        """12 hex digits over fields, types, descriptions, defaults and instructions."""
        from dspex.operators.native.user_types.described import digest_of

        described = [[f.text, f.role, f.description, *plain.beyond(f)] for f in self.fields]
        return hashlib.sha256(json.dumps([described, self.instructions, *digest_of(self)]).encode()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Signature) and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    # -- data ------------------------------------------------------------------------------------------------------
    def check_inputs(self, data: Mapping[str, object]) -> Values:
        """The inputs, checked and typed. Raises InvalidInput that lists every field that does not fit.

        An input without a type takes any value, as in DSPy. An input that may be None or has a default may be missing. Values
        of other names are left out.
        """
        return self._check_inputs(data)

    def check_outputs(self, data: Mapping[str, object]) -> Values:
        """The outputs, checked and typed; constraints are enforced. Raises InvalidOutput that lists every field.

        A missing output becomes its default, or None where it may be None, as in DSPy.
        """
        return self.output_check(data)

    def sent_inputs(self, data: Mapping[str, object]) -> Values:
        """The inputs as a prompt shows them, which is as DSPy does: checked, and then as they were given. Raises InvalidInput.

        A missing input is its default. One that may be None, or whose default a function makes, is left out.
        """
        self._check_inputs(data)
        defaults = {n: f.default for n, f in self.inputs.items() if f.default is not MISSING and not f.factory}
        return {n: data[n] if n in data else defaults[n] for n in self.inputs if n in data or n in defaults}

    @cached_property
    def _check_inputs(self) -> Check:
        return Check(f"the inputs do not fit {shown(self._text)!r}", self.inputs.values(), InvalidInput, untyped_is_any=True)

    @cached_property
    def output_check(self) -> Check:
        """What `check_outputs` calls."""
        return Check(f"the outputs do not fit {shown(self._text)!r}", self.outputs.values(), InvalidOutput)

    def messages(
        self,
        data: Mapping[str, object],
        *,
        adapter: Adapter = "chat",
        demos: Sequence[Mapping[str, object]] = (),
        version: str | None = None,
    ) -> list[adapters.ChatMessage]:
        """The messages that DSPy would send to a model, see `adapters.messages`."""
        return adapters.messages(self, data, adapter=adapter, demos=demos, version=version)

    def parse(self, text: str, *, adapter: Adapter = "chat") -> Values:
        """The outputs in a model's reply, typed as DSPy types them. Unlike in DSPy, constraints are enforced.

        Raises InvalidOutput that lists every field that is missing or does not fit; TopologyError (DX205): an unknown adapter.
        """
        return self.parsers[adapter](text)

    @cached_property
    def parsers(self) -> Mapping[str, adapters.Parser]:
        """The functions that `parse` uses, by adapter."""
        return adapters.Parsers(self)

    def compiled(self, key: Hashable, make: Callable[[Signature], T]) -> T:
        """The result of `make` for this signature, made once for each `key`: a prompt, a parser."""
        try:
            found: T = self._compiled[key]
        except KeyError:
            found = self._compiled.setdefault(key, make(self))
        return found

    @cached_property
    def _compiled(self) -> dict[Hashable, Any]:
        return {}

    # -- other forms -----------------------------------------------------------------------------------------------
    def json_schema(self, side: Side) -> JsonSchema:
        """The JSON Schema (2020-12) of one side."""
        return field_schemas.json_schema(self._side(side).values())

    def to_model(self, side: Side) -> type[BaseModel]:
        """One side as a pydantic model; `of` is the inverse. The default of a field that may be None is None."""
        return forms.to_model(self._side(side).values(), side)

    def to_typed_dict(self, side: Side) -> type:
        """One side as a TypedDict; `of` is the inverse, except that a TypedDict has no defaults."""
        return forms.to_typed_dict(self._side(side).values(), side)

    def to_dataclass(self, side: Side) -> type:
        """One side as a dataclass with keyword arguments only; `of` is the inverse. It checks no values."""
        return forms.to_dataclass(self._side(side).values(), side)

    # -- immutable ------------------------------------------------------------------------------------------
    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a signature never changes; with_instructions and others make a new one (set {name})")

    def __delattr__(self, name: str) -> NoReturn:
        self.__setattr__(name, None)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Callable[[Values], Signature], tuple[Values]]:
        return (Signature.from_plain, (self.plain(),))


def _read(cls: type[Signature], spec: str, instructions: str) -> Signature:
    return cls._made(parse(spec, NOTHING), instructions)  # pyright: ignore[reportPrivateUsage]


_known: Callable[..., Any] = lru_cache(maxsize=1024)(_read)


def as_signature(value: object) -> Signature:
    """The signature that an operator was given: as text, a Signature, or a dspy.Signature class that the user imported.

    Raises TopologyError: DX209, DX210.
    """
    if isinstance(value, Signature):
        return value
    if isinstance(value, str):
        return Signature(value)
    inputs, outputs = getattr(value, "input_fields", None), getattr(value, "output_fields", None)
    if isinstance(inputs, Mapping) and isinstance(outputs, Mapping):
        sides = cast("list[tuple[Mapping[str, FieldInfo], Role]]", [(inputs, "input"), (outputs, "output")])
        fields = (forms.from_info(n, f, role) for side, role in sides for n, f in side.items())
        instructions = (
            str(getattr(value, "instructions", "")) or " "
        )  # a space: the class has no instructions; "" would mean DSPy's default
        made = Signature._checked(fields, instructions)  # pyright: ignore[reportPrivateUsage]
        return made.with_instructions("") if made.instructions == made.default_instructions else made
    raise problem("DX210", f"{value!r} is not a signature", 'write "text -> answer"')
