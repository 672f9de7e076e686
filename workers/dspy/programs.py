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
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import dspy
from pydantic import BaseModel

from dspex.bus.codecs.media import unmarked
from dspex.bus.errors import InvalidInput, InvalidOutput, ProgramError
from dspex.bus.records import NO_USAGE, Outputs
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.programs.modules import is_own
from dspex.bus.serving.programs.optimizers import OPTIMIZE
from dspex.operators.native.problems import listed
from dspex.operators.native.signature import Signature
from dspex.workers.answerers.attempt import Attempt, LoadedState, kept, plain
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
_Way: TypeAlias = Literal["acall", "await", "thread"]
_KINDS = {"predict": dspy.Predict, "chain_of_thought": dspy.ChainOfThought}


class _Program(NamedTuple):
    """A program, its name, and whether each call gets a copy of its own: it counts what fails in it. `runs`: see `_way`."""

    program: Any
    name: str
    counts: bool
    runs: _Way


class _Prepared:
    """What calls of one spec, with one adapter and one saved state, have in common.

    Attributes:
        signature: of the spec. made: its program.
        outputs: their names. warning: what may be wrong with what it answers.
    """

    def __init__(self, spec: CallSpec, signature: type[dspy.Signature], made: _Program, warning: str) -> None:
        self.signature, self.made, self.warning = signature, made, warning
        self.outputs = _outputs_of(signature, spec)
        wanted = signature.input_fields
        self._required = [n for n, i in wanted.items() if i.is_required() and type(None) not in get_args(i.annotation)]
        self._filler = values.Filler(signature)
        self._annotated = values.annotated(made.program, signature) if spec.kind == "program" else {}

    def inputs(self, given: Mapping[str, object]) -> dict[str, Any]:
        """The fields that the signature asks for, as the program takes them; DSPy's own types (an image, a history) made from
        their plain data.

        Raises InvalidInput where one is missing: of an interactive call nobody else has checked it, and DSPy would ask
        without.
        """
        if missing := [n for n in self._required if n not in given]:
            has = listed(given) or "nothing"
            raise InvalidInput(f"the signature wants {', '.join(missing)}; there is {has}", fix=f"give {missing[0]}")
        return values.as_annotated(self._filler.inputs(given), self._annotated)


class Programs:
    """The programs that a child has made. One instance of a program serves all slots of the child, at the same time."""

    dspy_version: str = installed.VERSION

    def __init__(self, pool: PoolConfig, refs: Refs) -> None:
        self._refs = refs
        self._models = Models(pool)
        self._threads = ThreadPoolExecutor(pool.slots, thread_name_prefix="program")
        self._signatures: dict[str, type[dspy.Signature]] = {}
        self._programs: dict[str, _Program] = {}
        self._prepared: dict[tuple[bytes, str, str, str], _Prepared] = {}
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
        of = spec.optimized if spec.kind == OPTIMIZE else spec
        prepared = self._prepare(of, adapter_of(profile, spec.adapter), attempt.state)
        program, attempt.program, counts, way = prepared.made
        attempt.warning = prepared.warning
        program = program.deepcopy() if counts else program
        if of is spec:
            inputs, threads = prepared.inputs(work.inputs), Threads()
        else:
            program, inputs, threads = self._job(attempt, of, program, prepared)
            way = _way(program)
        lm = self._models.lm(name, attempt.local, work.timeout, spec.config) if name else None
        if name:
            await self._models.ready(name)
        asked = {**replies.asking(), **threads.settings(), **requests.asking(attempt.requests)}
        attempt.requests.priced = partial(attempt.priced, profile=profile)
        if attempt.chunk is not None:
            asked |= Writing(attempt, prepared.outputs).settings()
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
                    result = await self._call(program, way, inputs, threads)
                finally:
                    threads.end()
                    used = NO_USAGE
                    if tracker.requests:
                        used = replace(requests.tokens(tracker.get_total_tokens()), requests=tracker.requests)
                    attempt.spend(replace(used, finish=finish) if (finish := replies.last(asked)) else used, profile)
        except installed.ERRORS as error:
            raise to_error(error, work.node, spec.target) from error
        return _outputs(result, prepared.outputs, spec) if of is spec else result

    def _job(self, attempt: Attempt, of: CallSpec, program: Any, prepared: _Prepared) -> tuple[Any, Any, Threads]:
        """What is run where the call is a job of an optimizer, and with what. `program`: what is to become better."""
        from dspex.workers.optimize.job import OptimizerJob, stops_job, with_forward  # only where there is one

        spec, asked = attempt.spec, attempt.requests
        plain_signature = Signature.from_plain(json.loads(spec.signature_json))
        threads = Threads(stops_job(asked, lambda error: to_error(error, attempt.work.node, of.target)))
        program = with_forward(program, threads.run) if _is_module(program) else program
        made = OptimizerJob(spec, program, plain_signature, self._refs, asked)
        made.fill, made.threads = prepared.inputs, 1 if prepared.made.counts else made.threads
        return made, {name: attempt.work.inputs.get(name) for name in ("train", "test")}, threads

    def describe(self, attempt: Attempt) -> Outputs:
        """What the program is made of, with its saved state. Raises ProgramError as `ask`."""
        spec = attempt.spec
        prepared = self._prepare(spec, "chat", attempt.state)
        attempt.program, attempt.warning = prepared.made.name, prepared.warning
        return described(prepared.made.program)

    async def _call(self, program: Any, way: _Way, inputs: dict[str, Any], threads: Threads) -> Any:
        """`acall` where there is an asynchronous path, else a thread of ours."""
        if way == "acall":
            return await program.acall(**inputs)
        if way == "await":
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
    def _prepare(self, spec: CallSpec, adapter: str, state: LoadedState | None) -> _Prepared:
        """What calls of the spec have in common. Raises ProgramError, InvalidInput."""

        def make() -> _Prepared:
            signature = self._signature(spec, adapter)
            warning = version_warning(state) if state is not None else ""
            return _Prepared(spec, signature, self._program(spec, signature, state), warning)

        digest, name = ("", "") if state is None else (state.digest, state.name)
        return kept(self._prepared, (spec.packed, adapter, digest, name), make)

    def _signature(self, spec: CallSpec, adapter: str) -> type[dspy.Signature]:
        plain = spec.signature_json
        made = kept(self._signatures, plain, lambda: signatures.to_dspy(signatures.read(json.loads(plain))))
        if spec.types and spec.kind != "program" and adapter != "chat":
            signatures.refuse_large(made)
        return made

    def _program(self, spec: CallSpec, signature: type[dspy.Signature], state: LoadedState | None) -> _Program:
        """The program, made once, and its name."""
        if spec.state and state is None:
            raise ProgramError(f"{spec.target}: no saved state {spec.state!r} came with the call", fix="upgrade the workers")
        made_from: list[object] = [spec.kind, spec.target, spec.signature_json, spec.tools, spec.max_iters, spec.arguments]
        made_from += [state.digest, state.name] if state is not None else []
        return kept(self._programs, json.dumps(made_from, default=str), lambda: self._made(spec, signature, state))

    def _made(self, spec: CallSpec, signature: type[dspy.Signature], state: LoadedState | None) -> _Program:
        program, name = self._build(spec, signature)
        if state is not None:
            program, name = with_state(program, state, spec.target), f"{name}@{state.digest[:12]}"
        return _Program(program, name, modules.counts_failures(program), _way(program))

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


def _is_module(program: object) -> bool:
    return isinstance(program, dspy.Module)


def _way(program: Any) -> _Way:
    """How a program is run: by its asynchronous path, as a coroutine, or in a thread. To find out takes as long as a call."""
    if _is_module(program) and modules.is_asynchronous(program):
        return "acall"
    if inspect.iscoroutinefunction(program) or inspect.iscoroutinefunction(type(program).__call__):
        return "await"
    return "thread"


def _instance(target: Any, ref: str) -> Any:
    """What is called: an instance of a class, what a factory returns, or the object itself."""
    if inspect.isclass(target) or (inspect.isfunction(target) and not inspect.signature(target).parameters):
        target = target()
    if not callable(target):
        raise ProgramError(f"{ref} is neither a class, a function nor a program", node=ref)
    return target


# -- data ----------------------------------------------------------------------------------------------------------
def _examples_out(value: Any) -> Any:
    """A value with the fields of DSPy's examples and predictions in their places. Their own `toDict` makes texts of images."""
    if isinstance(value, dspy.Example):
        return {name: _examples_out(inner) for name, inner in value.items()}
    if isinstance(value, dict):
        return {name: _examples_out(inner) for name, inner in value.items()}
    return [_examples_out(inner) for inner in value] if isinstance(value, list) else value


def _outputs_of(signature: type[dspy.Signature], spec: CallSpec) -> list[str]:
    """Names of the signature's outputs; `reasoning` too where DSPy's module adds it."""
    names = list(signature.output_fields)
    if spec.kind in _REASONED and "reasoning" not in names:
        names.insert(0, "reasoning")
    return names


def _outputs(result: Any, names: Sequence[str], spec: CallSpec) -> Outputs:
    """The outputs of these names as JSON-able data."""
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
