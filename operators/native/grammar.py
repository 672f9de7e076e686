"""The text of a signature: names and types, read with `ast` and a fixed list of type names.

DSPy looks an unknown type name up by importing a module of that name, and walks the caller's frames for others. Here a name
is in NAMES or in `types=`, so that no text runs code and every process agrees on what a signature means.
"""

from __future__ import annotations

import ast
import datetime
import keyword
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, cast

from dspex.bus.errors import TopologyError
from dspex.operators.native.fields import NOTHING, Field, Role
from dspex.operators.native.types import type_text
from dspex.operators.native.words import nearest, problem

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


def parse(spec: str, types: Mapping[str, Any]) -> tuple[Field, ...]:
    if not isinstance(spec, str) or spec.count("->") != 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise problem("DX210", f"the signature {spec!r} needs exactly one '->'", 'write "inputs -> outputs": "text -> answer"')
    left, right = spec.split("->")
    fields = (*_parse_side(spec, left, "input", types), *_parse_side(spec, right, "output", types))
    refuse_duplicates(fields, spec)
    if not any(p.role == "output" for p in fields):
        raise problem("DX210", f'the signature "{spec}" has no output', 'write "inputs -> outputs": "text -> answer"')
    return fields


@lru_cache(maxsize=1024)
def parse_cached(spec: str) -> tuple[Field, ...]:
    """The fields of a signature that uses no types of its own."""
    return parse(spec, {})


def _parse_side(spec: str, side: str, role: Role, types: Mapping[str, Any]) -> Iterator[Field]:
    for arg in _arguments(spec, side):
        name, node = arg.arg, arg.annotation
        refuse_name(spec, name)
        if node is None:
            yield Field(name, role, "str", typed=False)
            continue
        reader = _TypeReader(spec, types)
        annotation, constraints = reader.read_field(node)
        plain = isinstance(node, ast.Name) and node.id not in types
        text = cast("ast.Name", node).id if plain else ast.unparse(_Expand(types).visit(node))  # unparse takes 10 µs
        required = not takes_none(annotation)
        yield Field(name, role, text, "", constraints or NOTHING, required, annotation)


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


def refuse_name(spec: str, name: str) -> None:
    why = None
    if name in _SHADOWING or name.startswith("model_"):
        why = "has a meaning of its own in DSPy"
    elif name.startswith("_") or keyword.iskeyword(name):
        why = "cannot be a field"
    if why:
        raise problem("DX210", f'the signature "{spec}": the name {name!r} {why}', f"use another name: {name.strip('_')}_text")


def refuse_duplicates(fields: Sequence[Field], spec: str) -> None:
    names = [p.name for p in fields]
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
        near = nearest(name, [*self.types, *NAMES], 0.8) if name else None  # `Intent` is not a misspelt `int`
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


def takes_none(annotation: Any) -> bool:
    return annotation is type(None) or type(None) in typing.get_args(annotation)
