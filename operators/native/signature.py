"""Signatures: `"text -> intent: Literal['a', 'b'], urgency: int"`, parsed and checked without DSPy.

DSPy's meaning is kept: a field without a type is text. Other than in DSPy, constraints of outputs are enforced, and names
that DSPy would drop or take for something else are refused.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import types as pytypes
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NotRequired, cast

from typing_extensions import TypedDict

from dspex.bus.errors import DspexError, InvalidInput, InvalidOutput
from dspex.operators.native import adapters
from dspex.operators.native.adapters import Adapter
from dspex.operators.native.fields import NOTHING, Role, Side
from dspex.operators.native.fields import Field as Field
from dspex.operators.native.grammar import (
    CONSTRAINTS,
    foreign,
    parse,
    parse_cached,
    refuse_duplicates,
    refuse_name,
    takes_none,
)
from dspex.operators.native.types import explain, fields_of, is_model, required_fields, type_text
from dspex.operators.native.words import problem


class Signature:
    """What goes into a program and what comes out: names, types, instructions.

    Args:
        spec: `"a, b: int -> c: list[str]"`.
        instructions: for the model; "" for DSPy's default.
        types: names beyond those of builtins, typing and datetime, which the spec may use.

    Raises TopologyError: DX209 for an unknown type, DX210 for everything else.
    """

    __slots__ = ("__dict__", "fields", "instructions", "types")

    def __init__(self, spec: str, /, *, instructions: str = "", types: Mapping[str, Any] = pytypes.MappingProxyType({})):
        self.instructions = instructions
        self.types = dict(types)
        self.fields = parse(spec, self.types) if types else parse_cached(spec)

    @classmethod
    def of(cls, inputs: type[Any], outputs: type[Any], *, instructions: str = "") -> Signature:
        """The signature whose fields are those of two record types (pydantic models, dataclasses, TypedDicts)."""
        made = cls.__new__(cls)
        made.instructions, made.types = instructions, {}
        made.fields = (*_fields_of_type(inputs, "input"), *_fields_of_type(outputs, "output"))
        refuse_duplicates(made.fields, str(made))
        return made

    @cached_property
    def objective(self) -> str:
        """The instructions that a prompt shows: the given ones without their indent, or a sentence that names the fields."""
        return inspect.cleandoc(self.instructions) if self.instructions else self.default_instructions

    @property
    def default_instructions(self) -> str:
        """What DSPy says where no instructions are given."""
        takes, gives = (", ".join(f"`{n}`" for n in side) for side in (self.inputs, self.outputs))
        return f"Given the fields {takes}, produce the fields {gives}."

    def compiled(self, key: Hashable, make: Callable[[Signature], Any]) -> Any:
        """What `make` makes of this signature, made once for each `key`: parsers, prompts, schemas."""
        try:
            return self._compiled[key]
        except KeyError:
            return self._compiled.setdefault(key, make(self))

    @cached_property
    def _compiled(self) -> dict[Hashable, Any]:
        return {}

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
        """The outputs in a model's reply; constraints count. Raises InvalidOutput that lists every field."""
        outputs = adapters.parse(self, text, adapter=adapter)
        return self.check_outputs(outputs) if any(f.constraints for f in self.outputs.values()) else outputs

    @cached_property
    def inputs(self) -> Mapping[str, Field]:
        """Input fields by name, in order."""
        return {p.name: p for p in self._side("inputs")}

    @cached_property
    def outputs(self) -> Mapping[str, Field]:
        """Output fields by name, in order."""
        return {p.name: p for p in self._side("outputs")}

    def _side(self, side: Side) -> list[Field]:
        return [p for p in self.fields if p.role == side[:-1]]

    def annotations(self, side: Side) -> dict[str, Any]:
        """Types by field name; `str` where the text gave none."""
        return {p.name: p.annotation for p in self._side(side)}

    @cached_property
    def _text(self) -> str:
        sides: tuple[Side, Side] = ("inputs", "outputs")
        left, right = (", ".join(p.text for p in self._side(s)) for s in sides)
        return f"{left} -> {right}"

    def __str__(self) -> str:
        """The canonical text: what goes over the wire, and what DSPy parses to the same fields."""
        return self._text

    def __repr__(self) -> str:
        return f"Signature({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Signature) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """12 hex digits over fields, types, descriptions and instructions."""
        described = [[p.text, p.role, p.description] for p in self.fields]
        return hashlib.sha256(json.dumps([described, self.instructions]).encode()).hexdigest()[:12]

    @cached_property
    def foreign_types(self) -> list[str]:
        """Names of types that only this process knows: text cannot carry them to a worker."""
        names = {n for p in self.fields for n in foreign(p.annotation)}
        return sorted(names)

    def check_inputs(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs, checked and typed. Raises InvalidInput that lists every field that does not fit.

        An input without a type takes anything, as in DSPy. An input that may be None may be missing. Others are left out.
        """
        return self._check("inputs", data, InvalidInput)

    def check_outputs(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs, checked and typed; constraints count. Raises InvalidOutput that lists every field."""
        return self._check("outputs", data, InvalidOutput)

    def _check(self, side: Side, data: Mapping[str, Any], error: type[DspexError]) -> dict[str, Any]:
        from pydantic import ValidationError

        adapter, names = self._adapters[side]
        try:
            found = adapter.validate_python(data)
        except ValidationError as e:
            raise error(f"the {side} do not fit {self._text!r}: {explain(e)}") from e
        return {n: found.get(n) for n in names}

    @cached_property
    def _adapters(self) -> dict[Side, tuple[Any, list[str]]]:
        sides: tuple[Side, Side] = ("inputs", "outputs")
        return {s: (_adapter(self._side(s), untyped_is_any=s == "inputs"), [p.name for p in self._side(s)]) for s in sides}

    def json_schema(self, side: Side) -> dict[str, Any]:
        """The JSON Schema (2020-12) of one side."""
        schema: dict[str, Any] = _adapter(self._side(side), untyped_is_any=False).json_schema()
        return {k: v for k, v in schema.items() if k != "title"} | {"additionalProperties": False}


def as_signature(value: Any) -> Signature:
    """What an operator takes for a signature: text, a Signature, or a dspy.Signature class that the user imported."""
    if isinstance(value, Signature):
        return value
    if isinstance(value, str):
        return Signature(value)
    inputs, outputs = getattr(value, "input_fields", None), getattr(value, "output_fields", None)
    if isinstance(inputs, Mapping) and isinstance(outputs, Mapping):
        return _of_dspy(value, cast("Mapping[str, Any]", inputs), cast("Mapping[str, Any]", outputs))
    raise problem("DX210", f"{value!r} is not a signature", 'write "text -> answer"')


def _of_dspy(value: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Signature:
    made = Signature.__new__(Signature)
    made.instructions, made.types = str(getattr(value, "instructions", "")), {}
    roles: list[tuple[Mapping[str, Any], Role]] = [(inputs, "input"), (outputs, "output")]
    made.fields = tuple(_from_info(n, f, role) for fields, role in roles for n, f in fields.items())  # pyright: ignore[reportPrivateUsage]
    return made


# -- from types, and to pydantic ----------------------------------------------------------------------------------
def _fields_of_type(tp: type[Any], role: Role) -> Iterator[Field]:
    if is_model(tp):
        for name, info in cast("Any", tp).model_fields.items():
            yield _from_info(name, info, role)
        return
    fields = fields_of(tp)
    if fields is None:
        raise problem("DX210", f"{type_text(tp)} has no fields to make a signature of", "use a pydantic model or a dataclass")
    required = required_fields(tp)
    for name, annotation in fields.items():
        refuse_name(type_text(tp), name)
        text = type_text(annotation)
        yield Field(name, role, text, "", NOTHING, name in required, annotation)


def _from_info(name: str, info: Any, role: Role) -> Field:
    """A field of a pydantic model or of a DSPy signature."""
    refuse_name(name, name)
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    description = str(info.description or extra.get("desc") or "")
    if description == f"${{{name}}}":  # DSPy's own placeholder
        description = ""
    constraints = {c: getattr(m, c) for m in info.metadata for c in CONSTRAINTS if getattr(m, c, None) is not None}
    text = type_text(info.annotation)
    if constraints:
        text = f"Annotated[{text}, Field({', '.join(f'{k}={v!r}' for k, v in constraints.items())})]"
    required = info.is_required() and not takes_none(info.annotation)
    return Field(name, role, text, description, constraints, required, info.annotation)


def _adapter(fields: list[Field], *, untyped_is_any: bool) -> Any:
    """A pydantic adapter for one side. A TypedDict, because in a model a field name could hide a method."""
    from pydantic import Field as Constraint
    from pydantic import TypeAdapter

    hints: dict[str, Any] = {}
    for p in fields:
        hint: Any = Any if untyped_is_any and not p.typed else p.annotation
        if p.constraints:
            hint = typing.Annotated[hint, Constraint(**p.constraints)]
        hints[p.name] = hint if p.required else NotRequired[hint]
    return TypeAdapter(TypedDict("Fields", hints))  # type: ignore[operator]  # made at run time
