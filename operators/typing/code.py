"""What a user's function does, as a digest: replay says with it that other code runs today than when a log was written.

It is made of the byte code, so that comments and places do not count. Functions that the function calls are followed within
its own module, and so are those in its closure. What it takes from elsewhere is a matter of `files.py`.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

_PLAIN = (str, bytes, int, float, bool, type(None))


def digest_of(arguments: Iterable[object]) -> str:
    """12 hex digits over the functions among these arguments, or in lists of them; "" where there is none."""
    found = [a for one in arguments for a in (one if isinstance(one, list) else [one])]
    found = [a.__func__ if isinstance(a, types.MethodType) else a for a in found]
    functions = [a for a in found if isinstance(a, types.FunctionType)]
    if not functions:
        return ""
    h, seen = hashlib.sha256(), set[types.CodeType]()
    for function in functions:
        for part in _function(function, seen):
            h.update(part.encode() + b"\0")
    return h.hexdigest()[:12]


def digest_of_module(code: types.CodeType) -> str:
    """12 hex digits over all that a module does, of what it was compiled to."""
    h = hashlib.sha256()
    for part in _whole(code):
        h.update(part.encode() + b"\0")
    return h.hexdigest()[:12]


def _whole(code: types.CodeType) -> Iterator[str]:
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    yield f"{code.co_code.hex()} {names} {code.co_argcount} {code.co_kwonlyargcount} {code.co_flags}"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _whole(constant)
        else:
            yield _text(constant)


def _function(fn: types.FunctionType, seen: set[types.CodeType]) -> Iterator[str]:
    code = fn.__code__
    if code in seen:
        return
    seen.add(code)
    yield _text((fn.__defaults__ or (), sorted((fn.__kwdefaults__ or {}).items())))
    for cell in fn.__closure__ or ():
        with suppress(ValueError):  # nothing was assigned to it yet
            yield from _value(cell.cell_contents, seen)
    yield from _code(code, fn.__globals__, fn.__module__, seen)


def _code(code: types.CodeType, space: Mapping[str, object], module: str, seen: set[types.CodeType]) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names}"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code(constant, space, module, seen)
        else:
            yield _text(constant)
    for name in code.co_names:
        value = space.get(name)
        if isinstance(value, types.FunctionType) and value.__module__ == module:
            yield from _function(value, seen)


def _value(value: object, seen: set[types.CodeType]) -> Iterator[str]:
    if isinstance(value, types.FunctionType):
        yield from _function(value, seen)
    else:
        yield _text(value)


def _text(value: object) -> str:
    """A plain value as text, the same in every process: a set's order depends on the hash seed, and an address on chance."""
    if isinstance(value, (set, frozenset)):
        return f"{{{sorted(map(_text, value))}}}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_text, value))})"
    return repr(value) if isinstance(value, _PLAIN) else type(value).__qualname__
