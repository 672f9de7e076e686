"""Calls answered by DSPy: CallSpec → program → outputs."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar, get_args

import dspy
from pydantic import BaseModel

from dspex.bus.codecs.media import unmarked
from dspex.bus.errors import InvalidInput, InvalidOutput, ProgramError
from dspex.bus.records import Outputs
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.programs.modules import is_own
from dspex.bus.serving.programs.optimizers import OPTIMIZE
from dspex.operators.native.problems import listed
from dspex.operators.native.signature import Signature
from dspex.workers.answerers.attempt import KEPT, Attempt, LoadedState, plain
from dspex.workers.answerers.refs import Refs
from dspex.workers.config import PoolConfig, adapter_of
from dspex.workers.dspy import modules, replies, requests, values
from dspex.workers.dspy import signature as signatures
from dspex.workers.dspy.described import described
from dspex.workers.dspy.failure import to_error
from dspex.workers.dspy.models import Models
from dspex.workers.dspy.states import version_warning, with_state
from dspex.workers.dspy.streaming import Writing
from dspex.workers.dspy.threads import Threads, look
from dspex.workers.dspy.versions import installed

_OF_JOBS: Mapping[str, Any] = {"trace": None, "max_trace_size": 10_000}  # an optimizer looks at the traces that it asks for
_REASONED = ("chain_of_thought", "react")
Made = TypeVar("Made")
_KINDS = {"predict": dspy.Predict, "chain_of_thought": dspy.ChainOfThought}


class _Program(NamedTuple):
    """A program, its name, and whether each call gets a copy of its own: it counts what fails in it."""

    program: Any
    name: str
    counts: bool


class Programs:
    """The programs that a child has made. One instance of a program serves all slots of the child, at the same time."""

    dspy_version: str = installed.VERSION

    def __init__(self, pool: PoolConfig, refs: Refs) -> None:
        self._refs = refs
        self._models = Models(pool)
        self._threads = ThreadPoolExecutor(pool.slots, thread_name_prefix="program")
        self._signatures: dict[str, type[dspy.Signature]] = {}
        self._programs: dict[str, _Program] = {}
        installed.separate_calls()
        replies.look()
        look()
        requests.look()
        dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)

    async def ask(self, attempt: Attempt) -> Outputs:
        """The outputs, with the profile `attempt.lm` ("": with none). Notes program and tokens in `attempt`.

        Raises errors of our tree for those of DSPy, and whatever the user's program raises.
        """
        spec, work, name = attempt.spec, attempt.work, attempt.lm
        profile = self._models.profile(name) if name else None
        signature = self._signature(spec, adapter_of(profile, spec.adapter))
        of = spec.optimized if spec.kind == OPTIMIZE else spec
        program, attempt.program, counts = self._program(of, signature, attempt.state)
        attempt.warning = version_warning(attempt.state) if attempt.state is not None else ""
        program = program.deepcopy() if counts else program
        if of is spec:
            inputs, threads = _filled(of, program, signature, work.inputs), Threads()
        else:
            program, inputs, threads = self._job(attempt, of, program, signature, counts)
        lm = self._models.lm(name, attempt.local, work.timeout, spec.config) if name else None
        asked = replies.asking() | threads.settings() | requests.asking(attempt.requests)
        attempt.requests.priced = partial(attempt.priced, profile=profile)
        if attempt.chunk is not None:
            asked |= Writing(attempt, _outputs_of(signature, spec)).settings()
        try:
            with (
                dspy.context(
                    lm=lm,
                    adapter=self._models.adapter(name or None, spec.adapter),
                    warn_on_type_mismatch=False,  # the engine has checked the inputs
                    usage_tracker=(tracker := replies.Spent()),
                    **asked,
                    **(installed.settings() if of is spec else _OF_JOBS),
                ),
            ):
                try:
                    result = await self._call(program, inputs, threads)
                finally:
                    threads.end()
                    attempt.spend(
                        replace(
                            requests.tokens(tracker.get_total_tokens()), finish=replies.last(asked), requests=tracker.requests
                        ),
                        profile,
                    )
        except installed.ERRORS as error:
            raise to_error(error, work.node, spec.target) from error
        return _outputs(result, signature, spec) if of is spec else result

    def _job(
        self, attempt: Attempt, of: CallSpec, program: Any, signature: type[dspy.Signature], counts: bool
    ) -> tuple[Any, Any, Threads]:
        """What is run where the call is a job of an optimizer, and with what. `program`: what is to become better; `counts`: it
        must not run at the same time in two threads.
        """
        from dspex.workers.optimize.job import OptimizerJob, stops_job, with_forward  # only where there is one

        spec, asked = attempt.spec, attempt.requests
        plain_signature = Signature.from_plain(json.loads(spec.signature_json))
        threads = Threads(stops_job(asked, lambda error: to_error(error, attempt.work.node, of.target)))
        program = with_forward(program, threads.run) if _is_module(program) else program
        made = OptimizerJob(spec, program, plain_signature, self._refs, asked)
        made.fill, made.threads = partial(_filled, of, program, signature), 1 if counts else made.threads
        return made, {name: attempt.work.inputs.get(name) for name in ("train", "test")}, threads

    def describe(self, attempt: Attempt) -> Outputs:
        """What the program is made of, with its saved state. Raises ProgramError as `ask`."""
        spec = attempt.spec
        program, attempt.program, _ = self._program(spec, self._signature(spec, "chat"), attempt.state)
        attempt.warning = version_warning(attempt.state) if attempt.state is not None else ""
        return described(program)

    async def _call(self, program: Any, inputs: dict[str, Any], threads: Threads) -> Any:
        """`acall` where there is an asynchronous path, else a thread of ours."""
        if _is_module(program) and modules.is_asynchronous(program):
            return await program.acall(**inputs)
        if inspect.iscoroutinefunction(program) or inspect.iscoroutinefunction(type(program).__call__):
            return await program(**inputs)
        run = partial(contextvars.copy_context().run, partial(program, **inputs))
        future = asyncio.get_running_loop().run_in_executor(self._threads, run)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # A thread cannot be cancelled, only what it asks of models. Reporting an end now would free a slot that is still
            # occupied, so wait; the parent kills this process if it takes too long.
            threads.end()
            await asyncio.wait([future])
            raise

    # -- specs -----------------------------------------------------------------------------------------------------
    def _signature(self, spec: CallSpec, adapter: str) -> type[dspy.Signature]:
        plain = spec.signature_json
        made = _kept(self._signatures, plain, lambda: signatures.to_dspy(signatures.read(json.loads(plain))))
        if spec.types and spec.kind != "program" and adapter != "chat":
            signatures.refuse_large(made)
        return made

    def _program(self, spec: CallSpec, signature: type[dspy.Signature], state: LoadedState | None) -> _Program:
        """The program, made once, and its name."""
        if spec.state and state is None:
            raise ProgramError(f"{spec.target}: no saved state {spec.state!r} came with the call", fix="upgrade the workers")
        made_from: list[object] = [spec.kind, spec.target, spec.signature_json, spec.tools, spec.max_iters, spec.arguments]
        made_from += [state.digest, state.name] if state is not None else []
        return _kept(self._programs, json.dumps(made_from, default=str), lambda: self._made(spec, signature, state))

    def _made(self, spec: CallSpec, signature: type[dspy.Signature], state: LoadedState | None) -> _Program:
        program, name = self._build(spec, signature)
        if state is not None:
            program, name = with_state(program, state, spec.target), f"{name}@{state.digest[:12]}"
        return _Program(program, name, modules.counts_failures(program))

    def _build(self, spec: CallSpec, signature: type[dspy.Signature]) -> tuple[Any, str]:
        """The program and its name with a digest of what it was made from."""
        if spec.kind == "program":
            modules.check(spec, signature)
        if spec.kind == "program" and is_own(spec.target):
            return modules.build(spec, signature, self._refs), f"{spec.target}#{spec.program.partition('#')[2]}"
        if spec.kind == "program":
            target = self._refs.load(spec.target)
            return _instance(target, spec.target), f"{spec.target}#{self._refs.digest_of(target)}"
        name = spec.program
        if spec.kind == "react":
            tools: Sequence[Callable[..., object]] = [self._refs.load(ref) for ref in spec.tools]
            return dspy.ReAct(signature, tools=list(tools), max_iters=spec.max_iters), name
        if spec.kind not in _KINDS:
            raise ProgramError(f"there is no kind of call {spec.kind!r}", fix="upgrade the workers: pip install -U dspex")
        return _KINDS[spec.kind](signature), name


def _kept(cache: dict[str, Made], key: str, make: Callable[[], Made]) -> Made:
    """What `make` made for the key; kept while it is among the last that were asked for."""
    cache[key] = found = cache.pop(key) if key in cache else make()
    if len(cache) > KEPT:
        del cache[next(iter(cache))]
    return found


def _is_module(program: object) -> bool:
    return isinstance(program, dspy.Module)


def _instance(target: Any, ref: str) -> Any:
    """What is called: an instance of a class, what a factory returns, or the object itself."""
    if inspect.isclass(target) or (inspect.isfunction(target) and not inspect.signature(target).parameters):
        target = target()
    if not callable(target):
        raise ProgramError(f"{ref} is neither a class, a function nor a program", node=ref)
    return target


# -- data ----------------------------------------------------------------------------------------------------------
def _inputs(signature: type[dspy.Signature], given: Mapping[str, object]) -> dict[str, Any]:
    """The fields that the signature asks for; DSPy's own types (an image, a history) made from their plain data.

    Raises InvalidInput where one is missing: of an interactive call nobody else has checked it, and DSPy would ask without.
    """
    wanted = signature.input_fields
    optional = [n for n, info in wanted.items() if not info.is_required() or type(None) in get_args(info.annotation)]
    if missing := [n for n in wanted if n not in given and n not in optional]:
        has = listed(given) or "nothing"
        raise InvalidInput(f"the signature wants {', '.join(missing)}; there is {has}", fix=f"give {missing[0]}")
    return values.Filler(signature).inputs(given)


def _filled(spec: CallSpec, program: Any, signature: type[dspy.Signature], given: Mapping[str, object]) -> dict[str, Any]:
    """The inputs as the program takes them. Raises InvalidInput."""
    inputs = _inputs(signature, given)
    return values.as_annotated(program, inputs, signature) if spec.kind == "program" else inputs


def _examples_out(value: Any) -> Any:
    """A value with the fields of DSPy's examples and predictions in their places. Their own `toDict` makes texts of images."""
    if isinstance(value, dspy.Example):
        return {name: _examples_out(inner) for name, inner in value.items()}
    if isinstance(value, dict):
        return {name: _examples_out(inner) for name, inner in value.items()}
    return [_examples_out(inner) for inner in value] if isinstance(value, list) else value


def _outputs_of(signature: type[dspy.Signature], spec: CallSpec) -> list[str]:
    names = list(signature.output_fields)
    if spec.kind in _REASONED and "reasoning" not in names:
        names.insert(0, "reasoning")
    return names


def _outputs(result: Any, signature: type[dspy.Signature], spec: CallSpec) -> Outputs:
    """The signature's outputs by name as JSON-able data; `reasoning` too where DSPy's module adds it."""
    names = _outputs_of(signature, spec)
    if isinstance(result, BaseModel):
        plainly = unmarked(result)
        result = result.model_dump(mode="json") if plainly is result else plainly
    elif isinstance(result, dspy.Example):  # a Prediction is one
        result = _examples_out(result)
    elif not isinstance(result, Mapping) and len(names) == 1:
        result = {names[0]: result}
    if not isinstance(result, Mapping):
        raise ProgramError(f"{spec.target} returned {type(result).__name__}; expected the fields {', '.join(names)}")
    if missing := [n for n in names if n not in result]:
        kind = ProgramError if spec.kind == "program" else InvalidOutput
        raise kind(f"{spec.target} returned no {', '.join(missing)}; it has: {listed([str(name) for name in result])}")
    try:
        return {n: plain(n, result[n]) for n in names}
    except InvalidOutput as error:
        raise (ProgramError(error.message) if spec.kind == "program" else error) from error
