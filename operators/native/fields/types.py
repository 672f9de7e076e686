"""Types as objects and as text: the fields of record types, and names as users write them.

pydantic is not imported here: the engine of a topology without types starts without it.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

import typing_extensions

from dspex.operators.native.fields.fields import Annotation, get_origin
from dspex.operators.native.fields.type_names import TUPLES, is_known, text_name

if TYPE_CHECKING:
    from pydantic import ValidationError

_NO_NAMES: Mapping[int, str] = {}
# Classes whose names in `typing` differ from their own.
_ALIASES: dict[Annotation, str] = {collections.deque: "Deque", collections.abc.Set: "AbstractSet"}
_MANY = 1000  # problems; of more than these, an error states only the number
_SHOWN = 20  # problems that an error lists
_LONG = 300  # characters of a problem, and of its path
_MARKS = (typing.Required, typing.NotRequired, typing_extensions.Required, typing_extensions.NotRequired)


def is_model(tp: Annotation) -> bool:
    """Whether `tp` is a pydantic model."""
    return isinstance(tp, type) and hasattr(tp, "__pydantic_fields__") and hasattr(tp, "model_validate")


def _is_dataclass(tp: Annotation) -> bool:
    return isinstance(tp, type) and dataclasses.is_dataclass(tp)


def fields_of(tp: Annotation) -> dict[str, Annotation] | None:
    """All fields that data of this type can have; None for a model that takes extra fields, and for a type without fields."""
    return None if is_model(tp) and tp.model_config.get("extra") == "allow" else declared_fields(tp)


def declared_fields(tp: Annotation) -> dict[str, Annotation] | None:
    """Fields that a model, dataclass or TypedDict declares, with their annotations; None for another type."""
    if is_model(tp):
        return {n: f.annotation for n, f in tp.model_fields.items()}
    if _is_dataclass(tp):
        hints = hints_of(tp)
        return {f.name: hints.get(f.name, Any) for f in dataclasses.fields(tp)}
    if typing_extensions.is_typeddict(tp):
        return hints_of(tp)
    return None


def required_fields(tp: Annotation) -> set[str]:
    """Fields that a value of this type must have."""
    if is_model(tp):
        return {n for n, f in tp.model_fields.items() if f.is_required()}
    if _is_dataclass(tp):
        missing = dataclasses.MISSING
        return {f.name for f in dataclasses.fields(tp) if f.default is missing and f.default_factory is missing}
    return {n for n in hints_of(tp) if n not in _optional_keys(tp)}


def _optional_keys(tp: Annotation) -> set[str]:
    """Keys that a TypedDict may lack. Its own list is wrong below `from __future__ import annotations`."""
    marks = {n: get_origin(t) for n, t in hints_of(tp, include_extras=True).items()}
    optional = {n for n, mark in marks.items() if mark in (typing.NotRequired, typing_extensions.NotRequired)}
    required = {n for n, mark in marks.items() if mark in (typing.Required, typing_extensions.Required)}
    return (set(getattr(tp, "__optional_keys__", ())) | optional) - required


def hints_of(thing: Annotation, *, include_extras: bool = False) -> dict[str, Annotation]:
    """Annotations of a class or function, resolved; {} where a name is defined for the type checker only."""
    try:
        return typing_extensions.get_type_hints(thing, include_extras=include_extras)
    except (NameError, TypeError, AttributeError):
        return {}


def type_text(tp: Annotation, names: Mapping[int, str] = _NO_NAMES) -> str:
    """A type as users write it: `Triaged`, `list[int]`, `Literal['a', 'b']`, `str | None`. `names`: other names, by id."""
    if tp is None:
        return "None"
    if id(tp) in names:
        return names[id(tp)]
    origin, args = get_origin(tp), get_args(tp)
    if origin is typing.Annotated:
        return type_text(args[0], names)
    if origin in _MARKS:
        return type_text(args[0], names)
    if origin is typing.Literal:
        return f"Literal[{', '.join(constant_text(a) for a in args)}]"
    if origin in (typing.Union, types.UnionType):
        texts = ["None" if a is type(None) else type_text(a, names) for a in args]
        return " | ".join(dict.fromkeys(texts))  # `Tuple[int]` and `tuple[int]` are written alike
    if origin is tuple and not args and tp not in TUPLES:
        return "tuple[()]"
    if origin is not None and args:
        inner = ", ".join("..." if a is Ellipsis else type_text(a, names) for a in args)
        return f"{_bare_name(origin)}[{inner}]"
    return _bare_name(tp)


def _bare_name(tp: Annotation) -> str:
    if isinstance(tp, type):
        return _ALIASES.get(tp) or text_name(tp)
    return str(getattr(tp, "__name__", None) or tp)


def constant_text(value: object) -> str:
    """A constant as a signature writes it. An arrow in it is escaped: it would be taken for the one between the two sides."""
    return repr(value).replace("->", r"-\x3e")


def foreign(annotation: Annotation) -> Iterator[str]:
    """Names of the classes in a type that are not on the list of names: other processes do not know them."""
    if get_origin(annotation) is typing.Literal:
        return
    args = get_args(annotation)
    for a in args:
        yield from foreign(a)
    if not args and isinstance(annotation, type) and not is_known(annotation):
        yield annotation.__name__


def takes_none(annotation: Annotation) -> bool:
    """Whether the type is None or a union with None. As in DSPy, Any does not count."""
    return annotation is type(None) or type(None) in get_args(annotation)


def modern(tp: Annotation, within: tuple[Annotation, ...] = ()) -> Annotation:
    """The type with each TypedDict of `typing` as one of `typing_extensions`: pydantic refuses the former before Python 3.12.

    One that holds itself stays as it is, so that pydantic says what to do: what is made here has no name to refer to.
    """
    if sys.version_info >= (3, 12) or tp in within:
        return tp
    if typing.is_typeddict(tp) and type(tp).__module__ == "typing":
        optional = _optional_keys(tp)
        bare = {n: modern(unmarked(t), (*within, tp)) for n, t in hints_of(tp, include_extras=True).items()}
        marked = {n: typing_extensions.NotRequired[t] if n in optional else t for n, t in bare.items()}
        make: Any = typing_extensions.TypedDict  # with these arguments it is for pydantic alone
        made = make(tp.__name__, marked)
        made.__module__, made.__qualname__, made.__doc__ = tp.__module__, tp.__qualname__, tp.__doc__
        return made
    origin, args = get_origin(tp), get_args(tp)
    if origin is None or origin is typing.Literal:
        return tp
    found = tuple(modern(a, within) for a in args)
    if all(a is b for a, b in zip(args, found, strict=True)):
        return tp
    if origin is typing.Annotated:
        return typing.Annotated[(found[0], *tp.__metadata__)]
    return typing.Union[found] if origin is types.UnionType else origin[found]  # noqa: UP007  it has no form with |


def unmarked(tp: Annotation) -> Annotation:
    """A type without `Required` or `NotRequired` around it."""
    return get_args(tp)[0] if get_origin(tp) in _MARKS else tp


def explain(e: ValidationError) -> str:
    """The message of a pydantic ValidationError in one line: its first problems, and how many more there are."""
    count = e.error_count()
    if count > _MANY:  # pydantic can list all problems or none
        return f"{count} problems"
    found = e.errors(include_url=False, include_input=False)[:_SHOWN]
    parts = [(_cut(".".join(_cut(str(x)) for x in d["loc"])), _cut(str(d["msg"]))) for d in found]
    listed = "; ".join(f"{where}: {what}" if where else what for where, what in parts)
    return f"{listed}; and {count - _SHOWN} more problems" if count > _SHOWN else listed


def _cut(text: str) -> str:
    return text if len(text) <= _LONG else text[:_LONG] + "…"
