"""Functions that enrich: the user's own code, without DSPy and without a model."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, NamedTuple, cast

from dspex.bus.errors import InvalidInput, InvalidOutput, ProgramError
from dspex.bus.records import Outputs
from dspex.bus.serving.call_spec import is_async
from dspex.operators.native.fields.types import declared_fields, explain, hints_of, modern, type_text
from dspex.workers.answerers.attempt import KEPT, Attempt, plain
from dspex.workers.answerers.refs import Refs
from dspex.workers.journal.requests import WhatIsAsked, running
from dspex.workers.journal.tools import plain_arguments


class _Function(NamedTuple):
    """What is called, what it gets of the data, and its name with a digest of its file."""

    run: Callable[..., Awaitable[object]]
    read: Callable[[Outputs], object]
    name: str


class Functions:
    """Answers `enrich`. One function serves all slots of the child, at the same time: it runs on their loop."""

    route = "worker"
    dspy_version = ""

    def __init__(self, refs: Refs) -> None:
        self._refs = refs
        self._function = lru_cache(maxsize=KEPT)(self._load)

    def refuses(self, attempt: Attempt) -> str | None:
        return None if attempt.spec.kind == "enrich" else f"{attempt.spec.kind} is no function"

    async def ask(self, attempt: Attempt) -> Outputs:
        """The fields that the function gives. Raises ProgramError, InvalidInput, and whatever the function raises."""
        ref = attempt.spec.target
        run, read, attempt.program = self._function(ref)
        data = read(attempt.work.inputs)
        return await self._affect(attempt, run, data) if attempt.spec.effect else _fields(await run(data), ref)

    async def _affect(self, attempt: Attempt, run: Callable[..., Awaitable[object]], data: object) -> Outputs:
        """The fields that a function with an effect gives; or gave, as the journal knows, or who can find it out."""
        spec, requests = attempt.spec, attempt.requests
        asked = WhatIsAsked("tool", spec.target, plain_arguments(spec.target, attempt.work.inputs), effect=True)
        turn = await requests.before(asked)
        if turn.found is not None and turn.answered:
            return cast("Outputs", turn.found.answer)
        with running(turn):
            done = None
            if turn.found is not None and spec.reconcile is not None:
                done = await self._function(spec.reconcile).run(data, turn.key)
            found = _fields(await run(data, turn.key) if done is None else done, spec.target)
        await requests.after(turn, found)
        return found

    async def describe(self, attempt: Attempt) -> Outputs:
        """What it is: a function has no predictors."""
        run, _, attempt.program = self._function(attempt.spec.target)
        return {"module": getattr(run, "__name__", type(run).__name__), "tools": [], "predictors": []}

    async def close(self) -> None:
        """Nothing is open: what a function keeps is its own."""

    def _load(self, ref: str) -> _Function:
        found = self._refs.load(ref)
        if not is_async(found):
            fix = "write async def; what blocks goes into a thread: await asyncio.to_thread(…)"
            raise ProgramError(
                f"{ref} is no async function, and would hold up every other call of its process", fix=fix, node=ref
            )
        return _Function(found, _reader(found, ref), f"{ref}#{self._refs.digest_of(found)}")


def _reader(fn: Callable[..., object], ref: str) -> Callable[[Outputs], object]:
    """Inputs → the argument of the function: of the type that it is annotated with, where that has fields; else a dict."""
    fn = inspect.unwrap(fn)
    called = fn if inspect.isroutine(fn) else getattr(fn, "__call__", fn)  # noqa: B004  the method has the annotations
    parameter = next(iter(inspect.signature(called).parameters), "")
    wanted = hints_of(called).get(parameter)
    if wanted is None or declared_fields(wanted) is None:
        return dict
    from pydantic import TypeAdapter, ValidationError

    validate = TypeAdapter[Any](modern(wanted)).validate_python

    def read(inputs: Outputs) -> object:
        try:
            return validate(inputs)
        except ValidationError as error:
            raise InvalidInput(f"{ref} wants {type_text(wanted)}, and the data does not fit: {explain(error)}") from error

    return read


def _fields(given: object, ref: str) -> Outputs:
    """What a function returned as plain data by field. Raises ProgramError for what has no fields, or no plain form."""
    try:
        found = plain(ref, given)
    except InvalidOutput as error:
        raise ProgramError(error.message, fix=error.fix, node=ref) from error
    if not isinstance(found, dict):
        fix = "return a mapping of the fields to add, a model or a dataclass; {} where there is nothing to add"
        raise ProgramError(f"{ref} returned {type(given).__name__}, and enrich adds fields to the data", fix=fix, node=ref)
    return cast("Outputs", found)
