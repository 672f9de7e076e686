"""Tools: what an agent, or a program, has done elsewhere. `dspex.workers.tool` says what may be done twice."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar, cast, overload

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus.codecs.plain import checked as plain_data
from dspex.bus.errors import ConfigError, InvalidInput, ProgramError
from dspex.bus.serving.call_spec import is_async
from dspex.workers.journal.requests import OpenRequest, Requests, WhatIsAsked, current, running

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")
F = TypeVar("F", bound=Callable[..., Any])
_MARKS = "__dspex_tool__"


@dataclass(frozen=True)
class ToolMarks:
    """What `tool` says of a function."""

    effect: bool = True
    once: bool = False
    record: bool = True


UNMARKED = ToolMarks()

_expected: ContextVar[object] = ContextVar("dspex_marked", default=None)  # the function whose call is journaled already


@overload
def tool(fn: F, *, effect: bool = True, once: bool = False, record: bool = True) -> F: ...
@overload
def tool(fn: None = None, *, effect: bool = True, once: bool = False, record: bool = True) -> Callable[[F], F]: ...
def tool(fn: Any = None, *, effect: bool = True, once: bool = False, record: bool = True) -> Any:
    """Say what a tool does, so that a call goes on after the death of its worker as if nothing had happened. A decorator.

    In a durable call of `react` or `program` each use of a tool is journaled, and after a death the tool is not run again where
    its result is known. An agent's tool that is not marked counts as `tool(fn)`; so does what a program gives to `dspy.Tool`.
    What is marked is journaled wherever a program calls it. Results must be plain data, else they are not known later.

    Args:
        effect: it changes something elsewhere: that it begins is stored before it runs. One that was begun, and whose result is
            not known, runs again under the same `context().idempotency_key()`.
        once: that one does not run again: the call ends as the dead letter "outcome unknown" (OutcomeUnknown).
        record: False: it is not journaled at all, and runs each time.

    Raises ConfigError (DX105) for `once` without an effect or a record, and for what is no function.
    """
    if once and not (effect and record):
        raise ConfigError(
            "tool(once=True) is about an effect that is recorded", code="DX105", fix="leave effect= and record= out"
        )
    marks = ToolMarks(effect, once, record)
    return _marked(fn, marks) if fn is not None else functools.partial(_marked, marks=marks)


def marks_of(fn: object) -> ToolMarks:
    """What is said of a function."""
    found = getattr(fn, _MARKS, UNMARKED)
    return found if isinstance(found, ToolMarks) else UNMARKED


def _marked(fn: Callable[..., Any], marks: ToolMarks) -> Callable[..., Any]:
    if not inspect.isroutine(fn):
        raise ConfigError(
            f"tool marks functions, and {fn!r} is none", code="DX105", fix="mark the function that the tool calls"
        )
    name, arguments = fn.__name__, inspect.signature(fn)

    def given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        return arguments.bind(*args, **kwargs).arguments

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        requests = _to_journal(call, marks)
        if requests is None:
            return fn(*args, **kwargs)
        return use(requests, name, marks, given(args, kwargs), lambda: fn(*args, **kwargs), returns=fn)

    @functools.wraps(fn)
    async def acall(*args: Any, **kwargs: Any) -> Any:
        requests = _to_journal(acall, marks)
        if requests is None:
            return await fn(*args, **kwargs)
        return await ause(requests, name, marks, given(args, kwargs), lambda: fn(*args, **kwargs), returns=fn)

    made: Any = acall if is_async(fn) else call
    setattr(made, _MARKS, marks)
    return cast("Callable[..., Any]", made)


def _to_journal(fn: object, marks: ToolMarks) -> Requests | None:
    """Where a call of a marked function is journaled; None: nowhere, or it is already."""
    if _expected.get() is fn:
        _expected.set(None)
        return None
    return current() if marks.record else None


async def ause(
    requests: Requests,
    name: str,
    marks: ToolMarks,
    given: Mapping[str, Any],
    run: Callable[[], Awaitable[Any]],
    *,
    returns: object,
) -> Any:
    """What a tool gives: from the journal, or from `run`, which is then journaled. `returns`: the function, by whose annotation
    a result is read. Raises StopCall, ProgramError, and what the tool raises.
    """
    turn = await requests.before(WhatIsAsked("tool", name, plain_arguments(name, given), marks.effect, marks.once))
    if turn.found is not None and turn.answered:
        return _read(turn.found.answer, returns)
    token = _expected.set(returns)
    try:
        with running(turn):
            result = await run()
    finally:
        _expected.reset(token)
    if (plain := _plain(name, result, returns)) is not None:
        await requests.after(turn, plain)
    return result


def use(
    requests: Requests, name: str, marks: ToolMarks, given: Mapping[str, Any], run: Callable[[], Any], *, returns: object
) -> Any:
    """`ause` where nothing can be awaited."""
    turn: OpenRequest = requests.before_blocking(
        WhatIsAsked("tool", name, plain_arguments(name, given), marks.effect, marks.once)
    )
    if turn.found is not None and turn.answered:
        return _read(turn.found.answer, returns)
    token = _expected.set(returns)
    try:
        with running(turn):
            result = run()
    finally:
        _expected.reset(token)
    if (plain := _plain(name, result, returns)) is not None:
        requests.after_blocking(turn, plain)
    return result


# -- results
def _plain(name: str, result: object, fn: object) -> dict[str, Any] | None:
    """A result as it is journaled; None where it could not be read back as what it is."""
    try:
        plain = plain_data(result, binary=True, name=f"what {name} gives")
        if _same(plain, result):
            return {"value": plain}
        if (kind := _returned(fn)) is not None and _same(kind.validate_python(plain), result):
            return {"value": plain, "typed": True}
        why = "it is no plain data, and its function is not annotated with its type"
    except (InvalidInput, ValueError, TypeError) as error:
        why = str(error)
    log.warning("the result of a tool is not journaled: after a death it runs again", tool=name, why=why[:300])
    return None


def _read(answer: Any, fn: object) -> Any:
    kind = _returned(fn) if answer.get("typed") else None
    return answer["value"] if kind is None else kind.validate_python(answer["value"])


def _same(a: object, b: object) -> bool:
    """Whether they are equal, and of the same type all through: True is not 1, and a tuple no list."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _returned(fn: Any) -> Any:
    """A TypeAdapter of what a function is annotated to give; None where it is not, or with what pydantic does not know."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    from dspex.operators.native.fields.types import hints_of

    try:
        hint = hints_of(inspect.unwrap(fn)).get("return") if callable(fn) else None
        return None if hint is None else TypeAdapter[Any](hint)
    except (PydanticUserError, NameError, TypeError):
        return None


def plain_arguments(name: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a tool, as what says which request it is. Raises ProgramError where they have no plain form."""
    try:
        return cast("Mapping[str, Any]", plain_data(dict(given), binary=True, name=name))
    except InvalidInput as error:
        fix = "give it plain data or models, or let it run each time: tool(record=False)"
        raise ProgramError(f"the arguments of {name} cannot be journaled: {error.message}", fix=fix) from error
