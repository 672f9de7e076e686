"""User functions: how many arguments they take, and the automatic name of their operator."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from dspex.engine.graph.check import NAME
from dspex.operators.native.problems import problem


def takes_context(fn: object, op: str, *, awaited: bool = False) -> bool:
    """Whether a function takes (data, ctx) rather than (data). Raises TopologyError (DX219) for anything else.

    `awaited`: whether it may be an `async def`.
    """
    if not callable(fn):
        raise problem("DX219", f"{op} takes a function, and {fn!r} is none", f".{op}(lambda x: ...)")
    if not awaited:
        _gives_at_once(fn, op)
    parameters = _parameters(fn)
    if parameters is None:
        return False  # some builtins have no signature to read; they take the data alone
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    keyword = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    star = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if keyword or len(required) > 2 or not (positional or star):
        wants = ", ".join([p.name for p in required] + [f"{k}=" for k in keyword]) or "nothing"
        raise problem(
            "DX219",
            f"{op} calls its function with (data) or (data, ctx), and {function_name(fn)} wants ({wants})",
            "give it one parameter, or two where it needs the context",
        )
    # a second parameter with a default is the user's own, unless it is called like the context
    return len(required) == 2 or (len(positional) >= 2 and positional[1].name in ("ctx", "context"))


def takes_data_only(fn: object, op: str, *, awaited: bool = False) -> None:
    """Raise TopologyError (DX219) unless the function can be called with (data). `awaited`: see `takes_context`."""
    if takes_context(fn, op, awaited=awaited):
        raise problem(
            "DX219",
            f"{op} calls its function with (data), and {function_name(fn)} wants two arguments",
            'a test sees the data only; use an expression for the event: "event.key == ..."',
        )


def takes_data_and_key(fn: Callable[..., Any]) -> None:
    """Raise TopologyError (DX219) unless the function can be called with (data, key), as one that has an effect is."""
    try:
        inspect.signature(fn).bind("data", "key")
    except ValueError:
        return  # some builtins have no signature to read
    except TypeError as e:
        why = f"an effect is called with (data, key), and {function_name(fn)} does not take that: {e}"
        raise problem("DX219", why, f"async def {function_name(fn)}(data, key): …; the key is the same in every attempt") from e


def takes_so_many(fn: object, op: str, wanted: Sequence[str]) -> None:
    """Raise TopologyError (DX219) unless the function can be called with these arguments, by their places."""
    if not callable(fn):
        raise problem("DX219", f"{op} takes a function, and {fn!r} is none", f"give it a function of ({', '.join(wanted)})")
    _gives_at_once(fn, op)
    try:
        inspect.signature(fn).bind(*wanted)
    except ValueError:
        return  # some builtins have no signature to read
    except TypeError as e:
        called = f"{op} calls its function with ({', '.join(wanted)})"
        raise problem("DX219", f"{called}, and {function_name(fn)} does not take that: {e}", "give it these parameters") from e


def _gives_at_once(fn: Callable[..., Any], op: str) -> None:
    """Raise TopologyError (DX219) for a function that has to be awaited: what it gives is true, and no data."""
    whole = inspect.unwrap(fn)
    for one in (whole, getattr(type(whole), "__call__", None)):  # noqa: B004
        if inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one):
            why = f"{op} awaits nothing, and {function_name(fn)} is an async def"
            raise problem("DX219", why, "make it a plain function; what asks the world is a call: .enrich(…)")


def _parameters(fn: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(fn).parameters.values())
    except (ValueError, TypeError):
        return None


def function_name(fn: object) -> str:
    """What messages call a function."""
    return str(getattr(fn, "__name__", None) or type(fn).__name__)


def automatic_name(fn: object, op: str) -> str:
    """The function's name where that can be an operator's name, else the operator's own name."""
    name = re.sub(r"[^a-z0-9_-]", "", function_name(fn).lower()).lstrip("_-0123456789")
    return name if NAME.fullmatch(name) and name != "lambda" else op
