"""What is known of a stream's data: its type and fields at build, and the check against a type at run time.

pydantic is imported only when a type needs it: the engine of a topology without types starts without it.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args, get_origin

import typing_extensions

from dspex.bus.errors import DspexError, InvalidInput, TopologyError

_RECORDS = (dict, dict[str, Any], Mapping, Mapping[str, Any])
_MARKS = (typing.Required, typing.NotRequired, typing_extensions.Required, typing_extensions.NotRequired)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A stream's type and its fields with their annotations; None where it is not known before run time."""

    type: Any = None
    fields: Mapping[str, Any] | None = None

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

    def plus(self, added: Mapping[str, Any]) -> Shape:
        """The record that has these fields besides its own."""
        return UNKNOWN if self.fields is None else Shape(None, {**self.fields, **added})


UNKNOWN = Shape()


def is_model(tp: Any) -> bool:
    """Whether `tp` is a pydantic model."""
    return isinstance(tp, type) and hasattr(tp, "__pydantic_fields__") and hasattr(tp, "model_validate")


def is_record_type(tp: Any) -> bool:
    """Whether data of this type has named fields."""
    return is_model(tp) or _is_dataclass(tp) or typing_extensions.is_typeddict(tp)


def _is_dataclass(tp: Any) -> bool:
    return isinstance(tp, type) and dataclasses.is_dataclass(tp)


def fields_of(tp: Any) -> dict[str, Any] | None:
    """All fields that data of this type can have; None for a type that takes any, and for one that is no record."""
    return None if is_model(tp) and tp.model_config.get("extra") == "allow" else declared_fields(tp)


def declared_fields(tp: Any) -> dict[str, Any] | None:
    """Fields that a record type declares, with their annotations; None for another type."""
    if is_model(tp):
        return {n: f.annotation for n, f in tp.model_fields.items()}
    if _is_dataclass(tp):
        hints = _hints(tp)
        return {f.name: hints.get(f.name, Any) for f in dataclasses.fields(tp)}
    if typing_extensions.is_typeddict(tp):
        return _hints(tp)
    return None


def required_fields(tp: Any) -> set[str]:
    """Fields that a value of this type cannot do without."""
    if is_model(tp):
        return {n for n, f in tp.model_fields.items() if f.is_required()}
    if _is_dataclass(tp):
        missing = dataclasses.MISSING
        return {f.name for f in dataclasses.fields(tp) if f.default is missing and f.default_factory is missing}
    return {n for n in _hints(tp) if n not in _optional_keys(tp)}


def _optional_keys(tp: Any) -> set[str]:
    """Keys that a TypedDict may lack. Its own list is wrong below `from __future__ import annotations`."""
    marks = {n: get_origin(t) for n, t in _hints(tp, include_extras=True).items()}
    optional = {n for n, mark in marks.items() if mark in (typing.NotRequired, typing_extensions.NotRequired)}
    required = {n for n, mark in marks.items() if mark in (typing.Required, typing_extensions.Required)}
    return (set(getattr(tp, "__optional_keys__", ())) | optional) - required


def _hints(thing: Any, *, include_extras: bool = False) -> dict[str, Any]:
    """Annotations of a class or function, resolved; {} where a name is only there for the type checker."""
    try:
        return typing_extensions.get_type_hints(thing, include_extras=include_extras)
    except (NameError, TypeError, AttributeError):
        return {}


def shape_of(tp: Any) -> Shape:
    """What is known of data of this type."""
    if tp is None or tp is Any or tp is object or tp is inspect.Parameter.empty:
        return UNKNOWN
    if tp in _RECORDS:
        return Shape(dict[str, Any], None)
    if isinstance(tp, typing.TypeVar):
        return UNKNOWN
    return Shape(tp, fields_of(tp))


def returned(fn: Any) -> Shape:
    """What a function's annotation says that it returns."""
    return shape_of(_hints(fn).get("return")) if _is_plain_function(fn) else UNKNOWN


def returned_items(fn: Any) -> Shape:
    """What the annotation of a function says that it returns many of."""
    result = _hints(fn).get("return") if _is_plain_function(fn) else None
    origin, args = get_origin(result), get_args(result)
    if isinstance(origin, type) and issubclass(origin, Iterable) and args and not issubclass(origin, Mapping):
        return shape_of(args[0])
    return UNKNOWN


def narrowed(fn: Any, shape: Shape) -> Shape:
    """What is known after a test: a `TypeIs[T]` or `TypeGuard[T]` narrows."""
    result = _hints(fn).get("return") if _is_plain_function(fn) else None
    if get_origin(result) in (typing_extensions.TypeIs, typing_extensions.TypeGuard):
        return shape_of(get_args(result)[0])
    return shape


def _is_plain_function(fn: Any) -> bool:
    return isinstance(fn, (types.FunctionType, types.MethodType))


def type_text(tp: Any) -> str:
    """A type as users write it: `Triaged`, `list[int]`, `Literal['a', 'b']`, `str | None`."""
    if tp is None or tp is type(None):
        return "None"
    origin, args = get_origin(tp), get_args(tp)
    if origin is typing.Annotated:
        return type_text(args[0])
    if origin in _MARKS:
        return type_text(args[0])
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, args))}]"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_text(a) for a in args)
    if origin is not None and args:
        inner = ", ".join("..." if a is Ellipsis else type_text(a) for a in args)
        return f"{_bare_name(origin)}[{inner}]"
    return _bare_name(tp)


def _bare_name(tp: Any) -> str:
    name = str(getattr(tp, "__name__", None) or tp)
    return f"datetime.{name}" if getattr(tp, "__module__", "") == "datetime" else name


# -- at run time -------------------------------------------------------------------------------------------------
def is_record(data: Any) -> bool:
    """Whether data has named fields: a mapping, a pydantic model or a dataclass instance."""
    return isinstance(data, Mapping) or (
        not isinstance(data, type) and (hasattr(data, "__pydantic_fields__") or dataclasses.is_dataclass(data))
    )


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
        f"a record with named fields is needed here, and the data is {type(data).__name__}",
        fix="turn it into a mapping first: .map(lambda x: {...})",
    )


Accept = Callable[[Any], Any]


def validator(tp: Any, error: type[DspexError] = InvalidInput) -> Accept:
    """A function that checks data against a type and gives the typed value.

    It raises `error` with every field that does not fit. Raises TopologyError (DX226) for a type that cannot be checked.
    """
    if tp in (Any, object):
        return lambda data: data
    if tp in (*_RECORDS, str, list, bool):
        return _instance_check(get_origin(tp) or tp, error)
    return _pydantic_check(tp, error)


def _instance_check(kind: Any, error: type[DspexError]) -> Accept:
    def check(data: Any) -> Any:
        if isinstance(data, kind):
            return data
        if kind in (dict, Mapping) and is_record(data):
            return record_of(data)
        raise error(f"the data should be {kind.__name__}, and is {type(data).__name__}")

    return check


def _pydantic_check(tp: Any, error: type[DspexError]) -> Accept:
    from pydantic import ValidationError

    validate, name = _validate_function(tp), type_text(tp)
    kind: Any = tp if isinstance(tp, type) and not typing_extensions.is_typeddict(tp) else ()

    def check(data: Any) -> Any:
        if data.__class__ is not dict and not isinstance(data, kind) and is_record(data):
            data = record_of(data)  # another model's instance: pydantic takes its own or a mapping only
        try:
            return validate(data)
        except ValidationError as e:
            raise error(f"the data does not fit {name}: {explain(e)}") from e

    return check


def _validate_function(tp: Any) -> Accept:
    if is_model(tp):
        return typing.cast("Accept", tp.model_validate)
    from pydantic import PydanticUserError, TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError

    try:
        return TypeAdapter(_modern(tp)).validate_python
    except (PydanticUserError, PydanticSchemaGenerationError) as e:
        raise TopologyError(
            f"data cannot be checked against {type_text(tp)}: {str(e).splitlines()[0]}",
            code="DX226",
            fix="use a pydantic model, a dataclass, a TypedDict of typing_extensions, or a builtin type",
        ) from e


def _modern(tp: Any) -> Any:
    """A TypedDict of `typing` as one of `typing_extensions`: pydantic refuses the former below Python 3.12."""
    if typing.is_typeddict(tp) and type(tp).__module__ == "typing":
        optional = _optional_keys(tp)
        bare = {n: _unmarked(t) for n, t in _hints(tp, include_extras=True).items()}
        marked = {n: typing_extensions.NotRequired[t] if n in optional else t for n, t in bare.items()}
        return typing_extensions.TypedDict(tp.__name__, marked)  # type: ignore[operator]
    return tp


def _unmarked(tp: Any) -> Any:
    return get_args(tp)[0] if get_origin(tp) in _MARKS else tp


def explain(e: Any) -> str:
    """All fields of a pydantic ValidationError in one line."""
    parts = [(".".join(str(x) for x in d["loc"]), str(d["msg"])) for d in e.errors(include_url=False, include_input=False)]
    return "; ".join(f"{where}: {what}" if where else what for where, what in parts)
