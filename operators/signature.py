"""Signatures: `"text -> intent: Literal['a', 'b'], urgency: int"`, parsed and checked without DSPy.

DSPy looks an unknown type name up by importing a module of that name, and walks the caller's frames for others. Here a name
is in a fixed list or in `types=`, so that no text runs code and every process agrees on what a signature means.
The rest keeps DSPy's meaning: a field without a type is text.
"""

from __future__ import annotations

import ast
import datetime
import hashlib
import json
import keyword
import types as pytypes
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NotRequired, cast

from typing_extensions import TypedDict

from dspex.bus.errors import DspexError, InvalidInput, InvalidOutput, TopologyError
from dspex.operators.draft import problem
from dspex.operators.refs import nearest
from dspex.operators.types import explain, fields_of, is_model, required_fields, type_text

Side = Literal["inputs", "outputs"]

_BUILTINS = (str, int, float, bool, bytes, list, dict, tuple, set, frozenset)
_TYPING = (
    "Any",
    "Optional",
    "Union",
    "Literal",
    "Annotated",
    "List",
    "Dict",
    "Tuple",
    "Set",
    "FrozenSet",
    "Sequence",
    "Mapping",
)
_DATETIME = ("date", "datetime", "time", "timedelta")
NAMES: Mapping[str, Any] = {
    **{t.__name__: t for t in _BUILTINS},
    **{n: getattr(typing, n) for n in _TYPING},
    **{f"typing.{n}": getattr(typing, n) for n in _TYPING},
    **{f"datetime.{n}": getattr(datetime, n) for n in _DATETIME},
    "NoneType": type(None),
}
_ARITY: Mapping[Any, int] = {str: 0, int: 0, float: 0, bool: 0, bytes: 0, dict: 2, list: 1, set: 1, frozenset: 1}
CONSTRAINTS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")

# DSPy's signature classes are pydantic models and its predictors take keyword arguments: fields of these names hide
# methods (`copy`, `json`), or are taken for something else (`config`), mostly without a word
_SHADOWING = frozenset(
    [
        "self",
        "cls",
        "copy",
        "json",
        "dict",
        "schema",
        "schema_json",
        "construct",
        "validate",
        "parse_obj",
        "parse_raw",
        "parse_file",
        "from_orm",
        "update_forward_refs",
        "fields",
        "signature",
        "input_fields",
        "output_fields",
        "instructions",
        "with_instructions",
        "append_instructions",
        "with_updated_fields",
        "append",
        "prepend",
        "insert",
        "delete",
        "equals",
        "dump_state",
        "load_state",
        "config",
        "demos",
        "lm",
        "new_signature",
        "prediction",
    ]
)


@dataclass(frozen=True)
class Field:
    """One field of a signature. `type`: as written; "str" where it has none. `required`: None will not do."""

    name: str
    role: Literal["input", "output"]
    type: str
    description: str = ""
    constraints: Mapping[str, Any] = field(default_factory=dict)
    required: bool = True


@dataclass(frozen=True)
class _Parsed:
    """A field with its type as an object. `typed`: False where the text gave no type."""

    field: Field
    annotation: Any
    text: str
    typed: bool = True


class Signature:
    """What goes into a program and what comes out: names, types, instructions.

    Args:
        spec: `"a, b: int -> c: list[str]"`.
        instructions: for the model; "" for DSPy's default.
        types: names beyond those of builtins, typing and datetime, which the spec may use.

    Raises TopologyError: DX209 for an unknown type, DX210 for everything else.
    """

    __slots__ = ("__dict__", "_fields", "instructions", "types")

    def __init__(self, spec: str, /, *, instructions: str = "", types: Mapping[str, Any] = pytypes.MappingProxyType({})):
        self.instructions = instructions
        self.types = dict(types)
        self._fields = _parse(spec, self.types)

    @classmethod
    def of(cls, inputs: type[Any], outputs: type[Any], *, instructions: str = "") -> Signature:
        """The signature whose fields are those of two record types (pydantic models, dataclasses, TypedDicts)."""
        made = cls.__new__(cls)
        made.instructions, made.types = instructions, {}
        made._fields = (*_fields_of_type(inputs, "input"), *_fields_of_type(outputs, "output"))
        _refuse_duplicates(made._fields, str(made))
        return made

    @cached_property
    def inputs(self) -> Mapping[str, Field]:
        """Input fields by name, in order."""
        return {p.field.name: p.field for p in self._side("inputs")}

    @cached_property
    def outputs(self) -> Mapping[str, Field]:
        """Output fields by name, in order."""
        return {p.field.name: p.field for p in self._side("outputs")}

    def _side(self, side: Side) -> list[_Parsed]:
        return [p for p in self._fields if p.field.role == side[:-1]]

    def annotations(self, side: Side) -> dict[str, Any]:
        """Types by field name; `str` where the text gave none."""
        return {p.field.name: p.annotation for p in self._side(side)}

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
        described = [[p.text, p.field.role, p.field.description] for p in self._fields]
        return hashlib.sha256(json.dumps([described, self.instructions]).encode()).hexdigest()[:12]

    @cached_property
    def foreign_types(self) -> list[str]:
        """Names of types that only this process knows: text cannot carry them to a worker."""
        names = {n for p in self._fields for n in foreign(p.annotation)}
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
        return {
            s: (_adapter(self._side(s), untyped_is_any=s == "inputs"), [p.field.name for p in self._side(s)]) for s in sides
        }

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
    roles: list[tuple[Mapping[str, Any], Literal["input", "output"]]] = [(inputs, "input"), (outputs, "output")]
    made._fields = tuple(_from_info(n, f, role) for fields, role in roles for n, f in fields.items())  # pyright: ignore[reportPrivateUsage]
    return made


# -- reading the text ---------------------------------------------------------------------------------------------
def _parse(spec: str, types: Mapping[str, Any]) -> tuple[_Parsed, ...]:
    if not isinstance(spec, str) or spec.count("->") != 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise problem("DX210", f"the signature {spec!r} needs exactly one '->'", 'write "inputs -> outputs": "text -> answer"')
    left, right = spec.split("->")
    fields = (*_parse_side(spec, left, "input", types), *_parse_side(spec, right, "output", types))
    _refuse_duplicates(fields, spec)
    if not any(p.field.role == "output" for p in fields):
        raise problem("DX210", f'the signature "{spec}" has no output', 'write "inputs -> outputs": "text -> answer"')
    return fields


def _parse_side(spec: str, side: str, role: Literal["input", "output"], types: Mapping[str, Any]) -> Iterator[_Parsed]:
    for arg in _arguments(spec, side):
        name, node = arg.arg, arg.annotation
        _refuse_name(spec, name)
        if node is None:
            yield _Parsed(Field(name, role, "str"), str, name, typed=False)
            continue
        reader = _TypeReader(spec, types)
        annotation, constraints = reader.read_field(node)
        text = ast.unparse(_Expand(types).visit(node))
        required = not _takes_none(annotation)
        yield _Parsed(Field(name, role, text, "", constraints, required), annotation, f"{name}: {text}")


def _arguments(spec: str, side: str) -> list[ast.arg]:
    """The fields of one side, which has the syntax of a Python parameter list."""
    fix = 'fields are "name" or "name: type", with commas between them'
    try:
        tree = ast.parse(f"def f({side}): pass")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise problem("DX210", f'the signature "{spec}" cannot be read ({getattr(e, "msg", e)})', fix) from e
    function = tree.body[0]
    if len(tree.body) != 1 or not isinstance(function, ast.FunctionDef) or len(function.body) != 1:
        raise problem("DX210", f'the signature "{spec}" is not a list of fields', fix)
    a = function.args
    if a.posonlyargs or a.kwonlyargs or a.vararg or a.kwarg or a.defaults or function.returns:
        raise problem("DX210", f'the signature "{spec}" uses *, / or a default, which DSPy drops without a word', fix)
    return a.args


def _refuse_name(spec: str, name: str) -> None:
    why = None
    if name in _SHADOWING or name.startswith("model_"):
        why = "has a meaning of its own in DSPy"
    elif name.startswith("_") or keyword.iskeyword(name):
        why = "cannot be a field"
    if why:
        raise problem("DX210", f'the signature "{spec}": the name {name!r} {why}', f"use another name: {name.strip('_')}_text")


def _refuse_duplicates(fields: tuple[_Parsed, ...], spec: str) -> None:
    names = [p.field.name for p in fields]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise problem("DX210", f'the signature "{spec}" has {", ".join(twice)} twice', "give each field a name of its own")


class _TypeReader:
    """Turns the syntax tree of a type into the type. Only names of NAMES and `types=`, no calls but `Field(...)`."""

    def __init__(self, spec: str, types: Mapping[str, Any]) -> None:
        self.spec, self.types = spec, types

    def read_field(self, node: ast.expr) -> tuple[Any, dict[str, Any]]:
        """A field's type and constraints: `Annotated[int, Field(ge=1)]` has both."""
        if isinstance(node, ast.Subscript) and self.name(node.value) in ("Annotated", "typing.Annotated"):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            constraints = [self.constraints(p) for p in parts[1:]]
            return self.read(parts[0]), {k: v for c in constraints for k, v in c.items()}
        return self.read(node), {}

    def constraints(self, node: ast.expr) -> dict[str, Any]:
        if isinstance(node, ast.Call) and self.name(node.func) == "Field" and not node.args:
            found = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
            if len(found) == len(node.keywords) and set(found) <= set(CONSTRAINTS):
                return found
        raise self.bad(node, f"Annotated takes Field with literal {', '.join(CONSTRAINTS)}")

    def read(self, node: ast.expr) -> Any:
        if isinstance(node, (ast.Name, ast.Attribute)):
            return self.lookup(node)
        if isinstance(node, ast.Constant) and node.value is None:
            return type(None)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return typing.Union[self.read(node.left), self.read(node.right)]  # noqa: UP007  # made at run time
        if isinstance(node, ast.Subscript):
            return self.subscript(node)
        raise self.bad(node, "types are names, X | Y, and X[...]")

    def subscript(self, node: ast.Subscript) -> Any:
        base = self.read(node.value)
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if base is typing.Annotated:
            raise self.bad(node, "Annotated only around a whole field's type")
        if base is typing.Literal:
            return typing.Literal[tuple(self.literal(p) for p in parts)]  # pyright: ignore[reportInvalidTypeForm]
        inner = tuple(Ellipsis if self.is_dots(p) else self.read(p) for p in parts)
        try:
            if len(inner) != _ARITY.get(base, len(inner)) or not inner:
                raise TypeError("wrong number of parameters")
            return base[inner[0] if len(inner) == 1 else inner]
        except TypeError as e:
            raise self.bad(node, f"{ast.unparse(node)} is not a type: {e}") from e

    def literal(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, bool, type(None))):
            return node.value
        raise self.bad(node, "Literal takes text, whole numbers from 0, True, False and None (DSPy reads no others)")

    @staticmethod
    def is_dots(node: ast.expr) -> bool:
        return isinstance(node, ast.Constant) and node.value is Ellipsis

    @staticmethod
    def name(node: ast.expr) -> str:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            return f"{node.value.id}.{node.attr}"
        return node.id if isinstance(node, ast.Name) else ""

    def lookup(self, node: ast.expr) -> Any:
        name = self.name(node)
        for known in (self.types, NAMES):
            if name in known:
                return known[name]
        near = nearest(name, [*self.types, *NAMES]) if name else None
        shown = name or ast.unparse(node)
        fix = f'Signature("{self.spec}", types={{"{shown}": {shown}}}), or Literal[...] in place'
        raise problem(
            "DX209",
            f'unknown type {shown!r} in "{self.spec}"\n  dspex looks names up in builtins, typing, datetime and types= only, '
            "so that every process agrees.",
            f"did you mean {near}?  or {fix}" if near else fix,
        )

    def bad(self, node: ast.expr, fix: str) -> TopologyError:
        return problem("DX210", f'the signature "{self.spec}": {ast.unparse(node)} cannot be a type', fix)


class _Expand(ast.NodeTransformer):
    """Writes types of `types=` out, where text can: DSPy in the worker knows no names of ours."""

    def __init__(self, types: Mapping[str, Any]) -> None:
        self.types = types

    def visit_Name(self, node: ast.Name) -> ast.AST:
        known = self.types.get(node.id)
        if known is None or any(foreign(known)):
            return node
        return ast.parse(type_text(known), mode="eval").body


def parse_type(text: str, types: Mapping[str, Any]) -> Any:
    """A type by its text, under the rules of signatures. Raises TopologyError (DX209, DX210)."""
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise problem("DX210", f"{text!r} is not a type", 'write "pkg.module:Name", or a builtin type') from e
    return _TypeReader(text, types).read(node)


def foreign(annotation: Any) -> Iterator[str]:
    """Names of the classes in a type that are neither builtin nor of datetime."""
    args = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return
    if args:
        for a in args:
            yield from foreign(a)
    elif isinstance(annotation, type) and annotation not in (
        *_BUILTINS,
        type(None),
        *(NAMES[f"datetime.{n}"] for n in _DATETIME),
    ):
        yield annotation.__name__


def _takes_none(annotation: Any) -> bool:
    return annotation is type(None) or type(None) in typing.get_args(annotation)


# -- from types, and to pydantic ----------------------------------------------------------------------------------
def _fields_of_type(tp: type[Any], role: Literal["input", "output"]) -> Iterator[_Parsed]:
    if is_model(tp):
        for name, info in cast("Any", tp).model_fields.items():
            yield _from_info(name, info, role)
        return
    fields = fields_of(tp)
    if fields is None:
        raise problem("DX210", f"{type_text(tp)} has no fields to make a signature of", "use a pydantic model or a dataclass")
    required = required_fields(tp)
    for name, annotation in fields.items():
        _refuse_name(type_text(tp), name)
        text = type_text(annotation)
        yield _Parsed(Field(name, role, text, "", {}, name in required), annotation, f"{name}: {text}")


def _from_info(name: str, info: Any, role: Literal["input", "output"]) -> _Parsed:
    """A field of a pydantic model or of a DSPy signature."""
    _refuse_name(name, name)
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    description = str(info.description or extra.get("desc") or "")
    if description == f"${{{name}}}":  # DSPy's own placeholder
        description = ""
    constraints = {c: getattr(m, c) for m in info.metadata for c in CONSTRAINTS if getattr(m, c, None) is not None}
    text = type_text(info.annotation)
    if constraints:
        text = f"Annotated[{text}, Field({', '.join(f'{k}={v!r}' for k, v in constraints.items())})]"
    required = info.is_required() and not _takes_none(info.annotation)
    return _Parsed(Field(name, role, text, description, constraints, required), info.annotation, f"{name}: {text}")


def _adapter(fields: list[_Parsed], *, untyped_is_any: bool) -> Any:
    """A pydantic adapter for one side. A TypedDict, because in a model a field name could hide a method."""
    from pydantic import Field as Constraint
    from pydantic import TypeAdapter

    hints: dict[str, Any] = {}
    for p in fields:
        hint: Any = Any if untyped_is_any and not p.typed else p.annotation
        if p.field.constraints:
            hint = typing.Annotated[hint, Constraint(**p.field.constraints)]
        hints[p.field.name] = hint if p.field.required else NotRequired[hint]
    return TypeAdapter(TypedDict("Fields", hints))  # type: ignore[operator]  # made at run time
