"""The purity lint (DX310): a native function that reads the clock, the network, chance or the environment.

It looks at names in the byte code, not at behaviour: a hint for people, not a proof. Functions that the function calls
are followed within its own module.
"""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

from dspex.operators.plan import NodeDraft, Plan
from dspex.operators.typing.functions import function_name

_ANY = ("*",)
_NOW = "take the time from the context: def fn(data, ctx): ... ctx.now"
_CHANCE = "take it from the context: def fn(data, ctx): ... ctx.random"
_OUTSIDE = "a native function sees its data only; do it in a worker: .program(...)"

# module: (what is impure in it, what to use instead)
_IMPURE: Mapping[str, tuple[tuple[str, ...], str]] = {
    "time": (("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "sleep", "localtime", "gmtime", "ctime"), _NOW),
    "datetime": (("now", "utcnow", "today"), _NOW),
    "random": (("random", "randint", "randrange", "choice", "choices", "sample", "shuffle", "uniform", "gauss"), _CHANCE),
    "secrets": (_ANY, _CHANCE),
    "uuid": (("uuid1", "uuid4"), "take it from the context: def fn(data, ctx): ... ctx.uuid()"),
    "os": (("environ", "getenv", "urandom", "listdir", "stat", "remove", "rename", "getpid", "system", "popen"), _OUTSIDE),
    **dict.fromkeys(
        ("socket", "ssl", "subprocess", "requests", "httpx", "aiohttp", "urllib", "http", "sqlite3"), (_ANY, _OUTSIDE)
    ),
}
_BUILTINS = ("open", "input")


def lint(plan: Plan, draft: NodeDraft, argument: object) -> None:
    """Warn of every impure name that a user's function uses: the argument, or one of those that it lists."""
    for fn in argument if isinstance(argument, list) else [argument]:
        if isinstance(fn, (types.FunctionType, types.MethodType)):
            for name, fix in dict(impure(fn)).items():
                message = (
                    f"{function_name(fn)} uses {name}: it may run again, on recovery and on replay, and must give the same"
                )
                plan.report(draft, "DX310", message, fix, level="warning")


def impure(fn: types.FunctionType | types.MethodType) -> Iterator[tuple[str, str]]:
    """Impure names that a function uses, each with what to do instead."""
    seen: set[types.CodeType] = set()
    yield from _code(fn.__code__, getattr(fn, "__globals__", {}), fn.__module__, seen)


def _code(code: types.CodeType, space: Mapping[str, Any], module: str, seen: set[types.CodeType]) -> Iterator[tuple[str, str]]:
    if code in seen:
        return
    seen.add(code)
    value: Any = None  # what the last instruction put on the stack, as far as that is known without running it
    path = ""
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            value, path = space.get(step.argval), str(step.argval)
            yield from _named(value, path, space)
            if isinstance(value, types.FunctionType) and value.__module__ == module:
                yield from _code(value.__code__, value.__globals__, module, seen)
        elif step.opname == "IMPORT_NAME":
            value, path = sys.modules.get(step.argval), str(step.argval)
            yield from _whole(path)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM") and value is not None:
            path = f"{path}.{step.argval}"
            yield from _attribute(value, str(step.argval), path)
            value = getattr(value, step.argval, None) if isinstance(value, types.ModuleType) else None
        elif isinstance(step.argval, types.CodeType):
            yield from _code(step.argval, space, module, seen)
        elif step.opname not in ("CACHE", "PUSH_NULL", "PRECALL", "EXTENDED_ARG"):
            value = None


def _named(value: Any, path: str, space: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A global: a module that is impure as a whole, a function taken out of a module, or `open`."""
    if isinstance(value, types.ModuleType):
        yield from _whole(value.__name__, path)
    elif path in _BUILTINS and path not in space:
        yield f"{path}()", _OUTSIDE
    elif callable(value) and not isinstance(value, type):
        owner = getattr(value, "__module__", None) or getattr(type(getattr(value, "__self__", None)), "__module__", "")
        yield from _member(str(owner), getattr(value, "__name__", ""), path)


def _whole(module: str, path: str = "") -> Iterator[tuple[str, str]]:
    names, fix = _IMPURE.get(module.partition(".")[0], ((), ""))
    if names == _ANY:
        yield path or module, fix


def _attribute(value: Any, name: str, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, types.ModuleType):
        yield from _member(value.__name__, name, path)
    elif isinstance(value, type) and value.__module__ == "datetime":
        yield from _member("datetime", name, path)


def _member(module: str, name: str, path: str) -> Iterator[tuple[str, str]]:
    names, fix = _IMPURE.get(module.partition(".")[0], ((), ""))
    if name in names:
        yield path, fix
