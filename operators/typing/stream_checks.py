"""Whether an operator fits the stream that it is put on, as far as the stream's fields are known at build."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from dspex.bus.errors import TopologyError
from dspex.operators.expressions import language as expressions
from dspex.operators.native.fields.types import declared_fields, required_fields, type_text
from dspex.operators.native.signature import Signature
from dspex.operators.native.suggestions import nearest
from dspex.operators.problems import all_of, problem
from dspex.operators.recorded.spec import Spec
from dspex.operators.typing.shape import Shape


def fields_exist(text: str, shape: Shape) -> None:
    """Raise TopologyError (DX207) where an expression wants a field that the stream does not have."""
    if shape.fields is None:
        return
    try:
        wanted = expressions.compile(text).fields
    except TopologyError:
        return  # reported where it is compiled
    all_of(_no_field(text, name, shape) for name in wanted if name not in shape.fields)


def _no_field(text: str, name: str, shape: Shape) -> TopologyError:
    near = nearest(name, shape.fields or ())
    return problem(
        "DX207",
        f"the expression \"{text}\" wants field '{name}'; the stream has {shape.describe()}",
        f"did you mean {near}?" if near else f"guard it: has({name}), or add it before: .set({{...}})",
    )


def spec_fits(spec: Spec[Any], shape: Shape) -> None:
    """Raise one TopologyError with every way in which a spec does not fit the data or its own `into`."""
    mapped = spec.options.get("inputs", {})
    errors = [*_missing_inputs(spec.signature, mapped, shape), *_wrong_into(spec.signature, spec.into, spec.outputs, shape)]
    for text in mapped.values():
        if shape.fields is not None:
            errors += [_no_field(text, n, shape) for n in expressions.compile(text).fields if n not in shape.fields]
    all_of(errors)


def inputs_exist(signature: Signature, shape: Shape) -> None:
    """Raise TopologyError (DX207) where a signature wants an input that the stream does not have."""
    all_of(_missing_inputs(signature, {}, shape, 'or add it before: .set({{"{name}": "{near}"}})'))


def outputs_fit(signature: Signature | None, into: Any, shape: Shape) -> None:
    """Raise TopologyError (DX212) where `into` and the outputs of a signature say different things."""
    if signature is not None:
        all_of(_wrong_into(signature, into, signature.annotations("outputs"), shape))


def field_is(field: str, kind: type, what: str, shape: Shape) -> None:
    """Raise TopologyError (DX207) where the stream is known to have no such field, or one of another type."""
    if shape.fields is None or not isinstance(field, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # of YAML
        return
    if field not in shape.fields:
        near = nearest(field, shape.fields)
        fix = f"did you mean {near}?" if near else f'add it before: .set({{"{field}": ...}})'
        raise problem("DX207", f"{what} wants field '{field}'; the stream has {shape.describe()}", fix)
    if not any(accepts(a, kind) or accepts(kind, a) for a in _alternatives(shape.fields[field])):
        is_now = type_text(shape.fields[field])
        raise problem(
            "DX207", f"{what} wants {type_text(kind)} in '{field}', which is {is_now}", "name the field that holds it"
        )


def _missing_inputs(
    signature: Signature, mapped: Mapping[str, Any], shape: Shape, otherwise: str = 'or map it: inputs={{"{name}": "{near}"}}'
) -> Iterable[TopologyError]:
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


def _wrong_into(signature: Signature, into: Any, given: Mapping[str, Any], shape: Shape) -> Iterable[TopologyError]:
    """DX212: `into` and the signature say different things about a field, or nobody gives a field that `into` needs."""
    fields = None if into is None else declared_fields(into)
    if fields is None:
        return
    wanted = type_text(into)
    for name, annotation in signature.annotations("outputs").items():
        if name in fields and not accepts(fields[name], annotation):
            mine, theirs = type_text(annotation), type_text(fields[name])
            yield problem(
                "DX212",
                f"the signature gives {name}: {mine}, and {wanted} wants {name}: {theirs}",
                f'write "{name}: {theirs}" in the signature, or correct {wanted}',
            )
    have = {*given, *(shape.fields or ())}
    for name in sorted(required_fields(into) - have):
        near = nearest(name, [g for g in given if g not in fields])
        if shape.fields is not None or near:
            yield problem(
                "DX212",
                f"{wanted} needs {name}, which neither the stream nor the signature gives",
                f"the signature gives {near}: did you mean {name}?" if near else f"add {name} to the signature's outputs",
            )


def accepts(wide: Any, narrow: Any) -> bool:
    """Whether every value of type `narrow` has type `wide`, as far as builtin types tell; True where they do not."""
    return all(any(_accepts_one(w, n) for w in _alternatives(wide)) for n in _alternatives(narrow))


def _alternatives(tp: Any) -> list[Any]:
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
