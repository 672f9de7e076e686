"""Which answerer gets a call in this process: native calls where they can, DSPy otherwise (docs/adr/calls/0007)."""

from __future__ import annotations

import asyncio
import time
import traceback
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial, reduce

import structlog

from dspex.bus.errors import (
    CallTimeout,
    Cancelled,
    ConfigError,
    DspexError,
    InvalidOutput,
    LMUnavailable,
    ProgramError,
    RateLimited,
    WorkerLost,
)
from dspex.bus.records import CallRequest, Outputs
from dspex.bus.serving.keys.redaction import Redaction
from dspex.bus.serving.programs.exchanges import Exchanges
from dspex.operators.native.lm.provider_errors import without_key
from dspex.workers.answer import Answer, ErrorMap, error_map
from dspex.workers.answerers.answerer import Answerer
from dspex.workers.answerers.attempt import AskFurther, Attempt, LoadedState, as_error, checked, enter_context
from dspex.workers.answerers.batches.lane import BatchLane
from dspex.workers.answerers.context import enter_again
from dspex.workers.answerers.functions import Functions
from dspex.workers.answerers.hedging import Hedging
from dspex.workers.answerers.lazy_dspy import LazyDspy
from dspex.workers.answerers.native import Native
from dspex.workers.answerers.refs import Refs, bounded
from dspex.workers.config import PoolConfig
from dspex.workers.journal.requests import StopCall
from dspex.workers.journal.within import Journaling, WithinAttempt

NOT_HAD = (LMUnavailable, RateLimited, CallTimeout)  # errors after which the next profile of a list is asked, at once
_SHORTEST = 8  # characters of a key; a server that needs none is given a word instead: x, none, EMPTY


class Router:
    """Everything that a child can run. Raises ConfigError where the pool has programs and its Python has no DSPy."""

    def __init__(self, pool: PoolConfig) -> None:
        self._pool = pool
        # a class of a user's signature is made while its module is imported, and these fields may be called so
        warnings.filterwarnings("ignore", 'Field name "(schema|prediction)" in .* shadows an attribute')
        refs = Refs(pool.name, pool.programs, pool.path)
        self._found, self._failed = refs.scan()
        self._dspy = LazyDspy(pool, refs, self._failed)
        self._native, self._redaction = Native(pool), Redaction(pool.redact)
        self._answerers: list[Answerer] = [self._native, self._dspy]
        self.batches = BatchLane(pool, self._native)
        self._hedging = Hedging()
        self._functions = Functions(refs)

    @property
    def dspy_version(self) -> str:
        """The version of DSPy in this environment; "" for none."""
        return self._dspy.dspy_version

    def scan(self) -> tuple[list[str], dict[str, str]]:
        """What the pool's allow-list names: (refs found, why the rest failed by pattern)."""
        return self._found, {pattern: f"{type(e).__name__}: {e}" for pattern, e in self._failed.items()}

    async def run(
        self,
        work: CallRequest,
        local: str | None,
        status: Callable[[str], None],
        given_up: Callable[[], bool] = lambda: False,
        lms: Sequence[str] | None = None,
        limit: float | None = None,
        chunk: Callable[[str, str], None] | None = None,
        state: LoadedState | None = None,
        journal: Journaling | None = None,
        hedge: Mapping[str, float] | None = None,
        batch: bool = False,
        further: AskFurther | None = None,
        over: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """One attempt at a call. Raises nothing: an error is an answer too.

        Args:
            status: told what a program says about its call.
            given_up: whether whoever asked has cancelled the call.
            lms: the profiles to try, in order; None: those of the request, or the pool's.
            limit: seconds that they have together; None: those of the request.
            chunk: see `Attempt`.
            state: the saved state of its program; None for none.
            journal: that of the call; None where it has none that is stored.
            hedge, batch: see CallFrame.
            further: asked before the next profile of a list is; None: it may be.
            over: whether it was cancelled for good, so that nobody goes on with it.
        """
        program, version = f"{work.spec.kind}:{work.spec.target}", self.dspy_version
        if journal is None and work.spec.journaled:
            journal = WithinAttempt()
        attempt = Attempt(work, local, dspy_version=version, program=program, state=state, chunk=chunk, journal=journal)
        attempt.hedge, attempt.batch, attempt.further, attempt.over = hedge or {}, batch, further, over
        if work.record is not None:  # an interactive call is no run, whose requests somebody looks at
            hide = self._redaction.of(work.inputs) if self._redaction else None
            attempt.requests.exchanges = Exchanges(self._pool.keep_exchanges, hide)
        try:
            enter_context(attempt, status)
            if work.describe:
                return attempt.answer(await self._describe(attempt))
            attempt.work = checked(work)
            outputs = await self._first_available(attempt, lms, work.timeout if limit is None else limit)
            if attempt.requests.ending is not None:  # whatever the program made of it
                raise StopCall(attempt.requests.ending)
            return attempt.answer(outputs)
        except asyncio.CancelledError:
            return attempt.answer(error=error_map(_cancelled(work.node, given_up())))
        except BaseException as error:  # noqa: BLE001  a user's program may raise anything
            ending = attempt.requests.ending
            failure = ending if ending is not None else as_error(error, work.node, attempt.spec.target)
            raised = "".join(traceback.format_exception(error)) if isinstance(failure, ProgramError) else ""
            return attempt.answer(error=self._told(error_map(failure, bounded(self._without_keys(raised)))))

    async def _describe(self, attempt: Attempt) -> Outputs:
        """What its program is made of; see ProgramInfo of the client."""
        spec, default = attempt.spec, self._pool.default_profile()
        names = spec.lm or ((default.name,) if default is not None and spec.asks_a_model else ())
        own = await (self._dspy if spec.asks_a_model else self._functions).describe(attempt)
        return {"lms": {name: self._pool.profile(name).model for name in names}, **own}

    async def close(self) -> None:
        """Close what is open."""
        await self.batches.close()
        for answerer in (*self._answerers, self._functions):
            await answerer.close()

    def _told(self, error: ErrorMap) -> ErrorMap:
        return {name: self._without_keys(said) if isinstance(said, str) else said for name, said in error.items()}

    def _without_keys(self, text: str) -> str:
        """What is said of a call without the keys of the pool: a model's server may repeat what it was sent."""
        return reduce(without_key, (key for key in self._pool.keys.values() if len(key) >= _SHORTEST), text)

    async def _first_available(self, attempt: Attempt, chosen: Sequence[str] | None, limit: float) -> Outputs:
        """The outputs, with the first profile whose model can be had. Each has an equal part of the time that is left: one that
        hangs must leave some for the next.
        """
        spec, node = attempt.spec, attempt.work.node
        if not spec.asks_a_model:
            return await _begun(self._functions, attempt)
        default = self._pool.default_profile()
        profiles = chosen or spec.lm or ((default.name,) if default else ())
        if not profiles and spec.kind != "program":
            raise ConfigError("the pool has no language model", code="DX113", fix="name one: pools.<pool>.lm", node=node)
        if attempt.batch:
            return await self.batches.ask(attempt, next(iter(profiles), ""), limit)
        *others, last = profiles or ("",)  # a program may need no model at all
        end = time.monotonic() + limit
        for place, name in enumerate(others):
            if place and await attempt.refused(name) is not None:
                continue
            try:
                with attempt.trying(name):
                    return await _within((end - time.monotonic()) / (len(profiles) - place), self._ask(attempt, name), name)
            except NOT_HAD as error:
                if attempt.streamed:
                    raise
                said = self._without_keys(error.message)[:200]
                structlog.get_logger().warning("model unavailable, trying the next", lm=name, error=said)
        if others and (refused := await attempt.refused(last)) is not None:
            raise refused
        with attempt.trying(last) if others or chosen or spec.first_token_timeout else nullcontext():
            return await self._ask(attempt, last)

    async def _ask(self, attempt: Attempt, lm: str) -> Outputs:
        """The outputs, with the profile `lm`, from the first answerer that does not refuse."""
        attempt.lm, attempt.refusals = lm, []
        for answerer in self._answerers:
            if (why := answerer.refuses(attempt)) is None:
                attempt.route, attempt.dspy_version = answerer.route, answerer.dspy_version
                after = attempt.hedge.get(lm)
                if after is None or attempt.chunk is not None:
                    return await _asked(answerer, attempt)
                return await self._hedging.ask(partial(_asked, answerer), attempt, after, self._pool.profile(lm))
            if attempt.spec.first_token_timeout and answerer is self._native:
                raise ProgramError(
                    f"first_token_timeout cannot be: {why}", fix="leave it out, or set timeout", node=attempt.work.node
                )
            attempt.refusals.append(why)
        node = attempt.work.node
        raise ProgramError(
            f'route="native" cannot be: {attempt.refusals[0]}',
            fix='route="auto" lets DSPy answer what native calls do not cover',
            node=node,
        )


async def _within(seconds: float, asked: Awaitable[Outputs], lm: str) -> Outputs:
    """The outputs, if they come in time. Raises CallTimeout."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await asked
    except TimeoutError as error:
        if not limit.expired():
            raise  # a program's own
        raise CallTimeout(f"no answer of lm.{lm} within {seconds:.1f} s, its part of the time of the call") from error


async def _asked(answerer: Answerer, attempt: Attempt) -> Outputs:
    """The outputs. An unfit reply to an interactive call is asked for once more, because nobody behind it would do that; a
    durable call leaves it to the engine, which counts and records it.
    """
    try:
        return await _begun(answerer, attempt)
    except InvalidOutput:
        if attempt.work.record is not None or attempt.streamed:
            raise
    attempt.requests.forget_last()
    return await _begun(answerer, attempt)


async def _begun(answerer: Answerer, attempt: Attempt) -> Outputs:
    """The outputs. The program begins, for the first time or anew: what it is given is the same each time."""
    attempt.requests.begin(attempt.lm)
    enter_again()
    return await answerer.ask(attempt)


def _cancelled(node: str, given_up: bool) -> DspexError:
    """What a cancellation means: the parent gave the call up; else a program let one escape or cancelled what is not its own,
    or the process ends. That may pass, and is retried.
    """
    if given_up:
        return Cancelled("the call was cancelled", node=node)
    return WorkerLost("a cancellation that nobody asked for ended the call", node=node)
