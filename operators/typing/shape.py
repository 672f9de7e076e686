"""What is known of a stream's data: its type and fields at build, and the check against a type at run time.

pydantic is imported only when a type needs it: the engine of a topology without types starts without it.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, get_args, get_origin

import typing_extensions

from dspex.bus.errors import DspexError, InvalidInput, TopologyError
from dspex.operators.native.fields.types import explain, fields_of, hints_of, is_model, modern, type_text

_RECORDS: tuple[object, ...] = (dict, dict[str, Any], Mapping, Mapping[str, Any])

TO_RECORD = "turn it into a mapping first: .map(lambda x: {...})"


@dataclasses.dataclass(frozen=True)
class Shape:
    """A stream's type and its fields with their annotations; None where it is not known before run time."""

    type: object = None
    fields: Mapping[str, object] | None = None

    @property
    def name(self) -> str | None:
        return None if self.type is None else type_text(self.type)

    @property
    def texts(self) -> dict[str, str] | None:
        """Fields with their types as text."""
        return None if self.fields is None else {n: type_text(t) for n, t in self.fields.items()}

    def describe(self) -> str:
        """`customer: str, text: str`"""
        return ", ".join(f"{n}: {t}" for n, t in (self.texts or {}).items()) or "no fields"

    def plus(self, added: Mapping[str, object]) -> Shape:
        """The record that has these fields besides its own."""
        return UNKNOWN if self.fields is None else Shape(None, {**self.fields, **added})


UNKNOWN = Shape()


def shape_of(tp: object) -> Shape:
    """What is known of data of this type."""
    if tp is None or tp is Any or tp is object or tp is inspect.Parameter.empty:
        return UNKNOWN
    if tp in _RECORDS:
        return Shape(dict[str, Any], None)
    if isinstance(tp, typing.TypeVar):
        return UNKNOWN
    return Shape(tp, fields_of(tp))


def returned(fn: object) -> Shape:
    """What a function's annotation says that it returns."""
    return shape_of(hints_of(fn).get("return")) if _is_plain_function(fn) else UNKNOWN


def returned_items(fn: object) -> Shape:
    """What the annotation of a function says that it returns many of."""
    result = hints_of(fn).get("return") if _is_plain_function(fn) else None
    origin, args = get_origin(result), get_args(result)
    if isinstance(origin, type) and issubclass(origin, Iterable) and args and not issubclass(origin, Mapping):
        return shape_of(args[0])
    return UNKNOWN


def narrowed(fn: object, shape: Shape) -> Shape:
    """What is known after a test: a `TypeIs[T]` or `TypeGuard[T]` narrows."""
    result = hints_of(fn).get("return") if _is_plain_function(fn) else None
    if get_origin(result) in (typing_extensions.TypeIs, typing_extensions.TypeGuard):
        return shape_of(get_args(result)[0])
    return shape


def _is_plain_function(fn: object) -> bool:
    return isinstance(fn, (types.FunctionType, types.MethodType))


# -- at run time -------------------------------------------------------------------------------------------------
def is_record(data: object) -> bool:
    """Whether data has named fields: a mapping, a pydantic model or a dataclass instance."""
    return isinstance(data, Mapping) or (
        not isinstance(data, type) and (hasattr(data, "__pydantic_fields__") or dataclasses.is_dataclass(data))
    )


def kind_of(data: object) -> str:
    """What data is, in words of an error: `null`, `list`, `int`."""
    return "null" if data is None else type(data).__name__


def record_of(data: Any) -> dict[str, Any]:
    """The fields of data by name, one level deep. Raises InvalidInput for data that has none."""
    if isinstance(data, dict):
        return typing.cast("dict[str, Any]", data)
    if isinstance(data, Mapping):
        return dict(typing.cast("Mapping[str, Any]", data))
    if hasattr(data, "__pydantic_fields__") and not isinstance(data, type):
        return {**data.__dict__, **(data.__pydantic_extra__ or {})}
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    raise InvalidInput(
        f"a record with named fields is needed here, and the data is {kind_of(data)}",
        fix=TO_RECORD,
    )


Validator = Callable[[Any], Any]


def validator(tp: object, error: type[DspexError] = InvalidInput, *, extra: str | None = None) -> Validator:
    """A function that checks data against a type and gives the typed value.

    `extra`: what becomes of fields that the type does not name, in pydantic's words; None: what the type says.
    It raises `error` with every field that does not fit. Raises TopologyError (DX226) for a type that cannot be checked.
    """
    if tp is Any or tp is object:
        return lambda data: data
    if tp in (*_RECORDS, str, list, bool):
        return _instance_check(get_origin(tp) or tp, error)
    return _pydantic_check(tp, error, extra)


def reader(tp: object) -> Validator | None:
    """What makes data of a type again of what was written of it: a model or a dataclass. None where it stays plain.

    `Windowed[X]` is made without a look at X where nothing can check data against that.
    """
    kind = get_origin(tp) or tp
    if not isinstance(kind, type) or not (is_model(kind) or dataclasses.is_dataclass(kind)):
        return None
    try:
        return _pydantic_check(tp, InvalidInput, None, written=True)
    except TopologyError:
        if get_origin(tp) is None:
            raise
        return reader(kind)


def _instance_check(kind: Any, error: type[DspexError]) -> Validator:
    def check(data: object) -> object:
        if isinstance(data, kind):
            return data
        if kind in (dict, Mapping) and is_record(data):
            return record_of(data)
        raise error(f"the data should be {kind.__name__}, and is {kind_of(data)}")

    return check


def _pydantic_check(tp: object, error: type[DspexError], extra: str | None, *, written: bool = False) -> Validator:
    from pydantic import ValidationError

    validate, name = _validate_function(tp), type_text(tp)
    if written:  # its fields stand under their own names, whatever their aliases
        validate = partial(validate, by_name=True, by_alias=True)
    if extra is not None:
        validate = partial(validate, extra=extra)
    kind: Any = tp if isinstance(tp, type) and not typing_extensions.is_typeddict(tp) else ()

    def check(data: object) -> object:
        if data.__class__ is not dict and not isinstance(data, kind) and is_record(data):
            data = record_of(data)  # another model's instance: pydantic takes its own or a mapping only
        try:
            return validate(data)
        except ValidationError as e:
            raise error(f"the data does not fit {name}: {explain(e)}") from e

    return check


def _validate_function(tp: Any) -> Callable[..., Any]:
    if is_model(tp):
        return typing.cast("Callable[..., Any]", tp.model_validate)
    from pydantic import PydanticUserError, TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError

    try:
        if isinstance(tp, dict | str):  # pydantic believes a mapping to be a schema of its own, and a text to be a name to come
            raise PydanticUserError("a value is no type", code=None)
        return TypeAdapter(modern(tp)).validate_python
    except (PydanticUserError, PydanticSchemaGenerationError) as e:
        raise TopologyError(
            f"data cannot be checked against {type_text(tp)}: {str(e).splitlines()[0]}",
            code="DX226",
            fix="use a pydantic model, a dataclass, a TypedDict of typing_extensions, or a builtin type",
        ) from e
