"""The names that a type may have in a signature, and the types that they name. Nothing beyond this list is looked up.

DSPy takes the whole of `typing`, imports a module of any name that it does not know, and walks the caller's frames. Here a
name must be in this file or in `types=`, so that no text runs code and every process agrees on what a signature means.
"""

from __future__ import annotations

import datetime
import typing
from collections.abc import Mapping, Sequence
from importlib import import_module

from dspex.operators.native.fields.fields import NOTHING, Annotation

BUILTINS = (str, int, float, bool, bytes, complex, list, dict, tuple, set, frozenset)
_FORMS = ("Optional", "Union", "Literal", "Annotated")  # types only with parameters
_ONE = ("List", "Set", "FrozenSet", "Sequence", "MutableSequence", "AbstractSet", "MutableSet", "Deque", "Counter")
_TWO = ("Dict", "Mapping", "MutableMapping", "OrderedDict")
_TYPING = ("Any", "Text", "Tuple", *_FORMS, *_ONE, *_TWO)
_DATETIME = ("date", "datetime", "time", "timedelta")
_LATE = {"uuid.UUID": ("uuid", "UUID"), "decimal.Decimal": ("decimal", "Decimal")}  # imported only when a text names them
_DSPY = ("Image", "Audio", "File", "History", "Tool", "ToolCalls", "Code", "Reasoning")


def dspys(name: str) -> type:
    """A class that stands for DSPy's class of this name where DSPy is not loaded. It accepts any value: a worker checks it."""

    def any_value(cls: type, source: object, handler: object) -> object:
        from pydantic_core import core_schema

        return core_schema.any_schema()

    return type(name, (), {"__module__": "dspy", "__get_pydantic_core_schema__": classmethod(any_value)})


NAMES: Mapping[str, Annotation] = {
    **{t.__name__: t for t in BUILTINS},
    "NoneType": type(None),
    **{n: getattr(typing, n) for n in _TYPING},
    **{f"typing.{n}": getattr(typing, n) for n in _TYPING},
    **{f"datetime.{n}": getattr(datetime, n) for n in _DATETIME},
    **{f"dspy.{n}": dspys(n) for n in _DSPY},
}
KNOWN: tuple[str, ...] = (*NAMES, *_LATE)
FORMS = frozenset(getattr(typing, n) for n in _FORMS)
# How many parameters a type takes. A type that is not listed takes none.
ARITY: Mapping[Annotation, int] = {
    **dict.fromkeys((list, set, frozenset, *(getattr(typing, n) for n in _ONE)), 1),
    **dict.fromkeys((dict, *(getattr(typing, n) for n in _TWO)), 2),
}
TUPLES = (tuple, NAMES["Tuple"])
GENERIC = frozenset(id(getattr(typing, n)) for n in ("Tuple", *_ONE, *_TWO))  # DSPy takes none of them without parameters
BARE: Mapping[str, Annotation] = {n: t for n, t in NAMES.items() if "." not in n and t not in FORMS and id(t) not in GENERIC}
_SCALARS = frozenset((*BUILTINS, type(None), typing.Any, *(getattr(datetime, n) for n in _DATETIME)))


def find(name: str, types: Mapping[str, Annotation] = NOTHING) -> Annotation:
    """The type of a name, dotted or not. Raises KeyError."""
    if name in types:
        return types[name]
    if name in NAMES:
        return NAMES[name]
    if name in _LATE:
        module, attribute = _LATE[name]
        return getattr(import_module(module), attribute)
    return _inner(name, types)


def _inner(name: str, types: Mapping[str, Annotation]) -> Annotation:
    """`Outer.Inner`: a class defined in the body of a class of `types=`. A text must not reach any other attribute."""
    outer, _, rest = name.partition(".")
    found = types[outer]
    for part in rest.split("."):
        found = vars(found).get(part) if isinstance(found, type) else None
        if not isinstance(found, type) or part.startswith("_"):
            raise KeyError(name)
    return found


def parametrized(base: Annotation, parameters: Sequence[Annotation]) -> Annotation:
    """`base[parameters]`, in the order that was written. Raises TypeError.

    `typing` caches the types that it made, by equality: `Optional[Literal['b', 'a']]` would become the
    `Optional[Literal['a', 'b']]` of another signature, and a prompt would show that one. So the cache is bypassed.
    """
    if all(type(p) is type or p is None for p in parameters):  # a class equals only itself, so the cache does no harm
        return base[parameters[0] if len(parameters) == 1 else tuple(parameters)]
    if base is typing.Optional:
        base, parameters = typing.Union, (*parameters, None)
    given = parameters[0] if len(parameters) == 1 else tuple(parameters)
    make = getattr(getattr(type(base), "__getitem__", None), "__wrapped__", None)
    return base[given] if make is None else make(base, given)


def text_name(tp: type) -> str:
    """The name by which `find` finds a class; the bare name of a class that is not on the list."""
    module = str(getattr(tp, "__module__", "")).partition(".")[0]
    dotted = f"{module}.{tp.__name__}"
    return dotted if module != "typing" and (dotted in NAMES or dotted in _LATE) else tp.__name__


def is_known(tp: type) -> bool:
    """Whether any process knows the class by its name."""
    return tp in _SCALARS or f"{tp.__module__.partition('.')[0]}.{tp.__name__}" in (*(f"dspy.{n}" for n in _DSPY), *_LATE)
