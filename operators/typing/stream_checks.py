"""Whether an operator fits the stream that it is put on, as far as the stream's fields are known at build."""

from __future__ import annotations

import types
import typing
from collections.abc import Container, Iterator, Mapping
from typing import Any, get_args, get_origin

from dspex.bus.errors import TopologyError
from dspex.operators.expressions import language as expressions
from dspex.operators.native.fields.types import declared_fields, required_fields, type_text
from dspex.operators.native.problems import nearest, problem
from dspex.operators.native.signature import Signature
from dspex.operators.typing.shape import Shape


def missing_fields(text: str, shape: Shape) -> Iterator[TopologyError]:
    """DX207: fields that an expression wants and the stream does not have."""
    if shape.fields is None:
        return
    try:
        wanted = expressions.compile(text).fields
    except TopologyError:
        return  # reported where it is compiled
    for name in wanted:
        if name not in shape.fields:
            near = nearest(name, shape.fields)
            yield problem(
                "DX207",
                f"the expression \"{text}\" wants field '{name}'; the stream has {shape.describe()}",
                f"did you mean {near}?" if near else f"guard it: has({name}), or add it before: .set({{...}})",
            )


def wrong_field(field: str, kind: type, what: str, shape: Shape) -> Iterator[TopologyError]:
    """DX207: the stream is known to have no such field, or one of another type."""
    if shape.fields is None:
        return
    if field not in shape.fields:
        near = nearest(field, shape.fields)
        fix = f"did you mean {near}?" if near else f'add it before: .set({{"{field}": ...}})'
        yield problem("DX207", f"{what} wants field '{field}'; the stream has {shape.describe()}", fix)
    elif not any(accepts(a, kind) or accepts(kind, a) for a in _alternatives(shape.fields[field])):
        is_now = type_text(shape.fields[field])
        yield problem(
            "DX207", f"{what} wants {type_text(kind)} in '{field}', which is {is_now}", "name the field that holds it"
        )


SET_IT = 'or add it before: .set({{"{name}": "{near}"}})'
MAP_IT = 'or map it: inputs={{"{name}": "{near}"}}'


def missing_inputs(
    signature: Signature, shape: Shape, otherwise: str = SET_IT, mapped: Container[str] = ()
) -> Iterator[TopologyError]:
    """DX207: inputs of a signature that the stream does not have, and that nothing maps. `otherwise`: what else helps."""
    if shape.fields is None:
        return
    for name, field in signature.inputs.items():
        if name in mapped or name in shape.fields or not field.required:
            continue
        near = nearest(name, shape.fields) or next(iter(shape.fields), name)
        yield problem(
            "DX207",
            f"the signature wants input '{name}'; the stream has {shape.describe()}",
            f'write "{near} -> …", {otherwise.format(name=name, near=near)}',
        )


def contradictions(
    given: Mapping[str, object], into: object, shape: Shape, who: str = "the signature"
) -> Iterator[TopologyError]:
    """DX212: `into` and `who` say different things about a field, or nobody gives a field that `into` needs.

    `given`: the fields that come out, with their types.
    """
    fields = None if into is None else declared_fields(into)
    if fields is None:
        return
    wanted = type_text(into)
    for name, annotation in given.items():
        if name in fields and not accepts(fields[name], annotation):
            mine, theirs = type_text(annotation), type_text(fields[name])
            yield problem(
                "DX212",
                f"{who} gives {name}: {mine}, and {wanted} wants {name}: {theirs}",
                f'write "{name}: {theirs}" in {who}, or correct {wanted}',
            )
    have = {*given, *(shape.fields or ())}
    for name in sorted(required_fields(into) - have):
        near = nearest(name, [g for g in given if g not in fields])
        if shape.fields is not None or near:
            yield problem(
                "DX212",
                f"{wanted} needs {name}, which neither the stream nor {who} gives",
                f"{who} gives {near}: did you mean {name}?" if near else f"add {name} to the outputs of {who}",
            )


def accepts(wide: object, narrow: object) -> bool:
    """Whether every value of type `narrow` has type `wide`, as far as builtin types tell; True where they do not."""
    return all(any(_accepts_one(w, n) for w in _alternatives(wide)) for n in _alternatives(narrow))


def _alternatives(tp: object) -> list[object]:
    origin = get_origin(tp)
    if origin is typing.Annotated:
        return _alternatives(get_args(tp)[0])
    if origin in (typing.Union, types.UnionType):
        return [a for arg in get_args(tp) for a in _alternatives(arg)]
    if origin is typing.Literal:
        return [typing.Literal[v] for v in get_args(tp)]  # pyright: ignore[reportInvalidTypeForm]
    return [tp]


_PLAIN = (str, int, float, bool, bytes, list, dict, tuple, set, frozenset, type(None))


def _accepts_one(wide: Any, narrow: Any) -> bool:
    if get_origin(narrow) is typing.Literal:
        (value,) = get_args(narrow)
        if get_origin(wide) is typing.Literal:
            return get_args(wide) == (value,)
        narrow = type(value)
    if get_origin(wide) is typing.Literal:
        return False  # a text that the signature leaves open, and `into` wants one of a few
    wide, narrow = get_origin(wide) or wide, get_origin(narrow) or narrow
    if wide not in _PLAIN or narrow not in _PLAIN:
        return True  # Any, a model, an Enum, a date: pydantic may well convert
    return issubclass(narrow, wide) or (wide is float and narrow is int) or (wide in _LISTS and narrow in _LISTS)


_LISTS = (list, tuple, set, frozenset)
