"""Specs: what a recorded operator asks for, as data. The same object serves `Stream.call` and `Client.call`.

A program is a name and a signature: neither is imported here, so the engine never pays for `dspy`, and a program that
cannot be imported is the worker's error and not the engine's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeAlias, cast

from typing_extensions import Unpack

from dspex.bus.errors import InvalidOutput, TopologyError
from dspex.bus.records import CallSpec
from dspex.engine.graph.graph import Call, Retry
from dspex.operators.expressions import language as expressions
from dspex.operators.native.fields.types import fields_of, foreign, type_text
from dspex.operators.native.signature import Signature, as_signature
from dspex.operators.options import CallOptions, T_co, V
from dspex.operators.problems import all_of, problem, wrong
from dspex.operators.recorded import options as call_options
from dspex.operators.typing.refs import Local, is_ref, ref_of, resolve
from dspex.operators.typing.shape import Shape, record_of, shape_of, validator

SignatureLike: TypeAlias = "str | Signature | type[Any]"
Outputs: TypeAlias = Mapping[str, Any]

_REASONING: Mapping[str, Any] = {"reasoning": str}  # what these two add to their signature in DSPy


@dataclass(frozen=True)
class Spec(Generic[T_co]):
    """A recorded operator without a place in a topology. Frozen.

    Attributes:
        kind: "predict", "chain_of_thought", "react" or "program".
        target: the signature for the first three, the ref for a program.
        signature: what goes in and out.
        into: the type of the result; None for a Record.
        options: CallOptions, checked, durations in seconds.
        tools, max_iters: of react. state: name of a stored compiled program.
    """

    kind: str
    target: str
    signature: Signature
    into: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    max_iters: int = 10
    state: str | None = None

    def with_options(self, **o: Unpack[CallOptions]) -> Spec[T_co]:
        """The same spec with these options changed. Raises TopologyError for a wrong one."""
        return _checked(replace(self, options={**self.options, **call_options.normal(cast("Mapping[str, Any]", o))}))

    @property
    def digest(self) -> str:
        """12 hex digits over everything that it is; not over the code of a program or of a fallback."""
        text = json.dumps([self.plain(), self.signature.digest], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def plain(self) -> dict[str, Any]:
        """The spec as a node's options: the operator's key with its main argument, then the rest."""
        data: dict[str, Any] = {self.kind: self.target}
        if self.kind == "program":
            data["signature"] = str(self.signature)
        if self.kind == "react":
            data |= {"tools": list(self.tools), "max_iters": self.max_iters}
        extra = {"instructions": self.signature.instructions, "state": self.state}
        into = {} if self.into is None else {"into": type_option(self.into)}
        return data | {k: v for k, v in extra.items() if v} | into | call_options.plain(self.options)

    @property
    def outputs(self) -> dict[str, Any]:
        """The fields that it adds to the data, with their types."""
        added = self.signature.annotations("outputs")
        if self.kind in ("chain_of_thought", "react"):
            into = None if self.into is None else fields_of(self.into)
            if into is None or "reasoning" in into:
                added = {**_REASONING, **added}
        return added

    def shape(self, data: Shape) -> Shape:
        """What is known of the result for data of this shape."""
        return data.plus(self.outputs) if self.into is None else shape_of(self.into)

    def to_call(self) -> Call:
        """The call as the engine runs it."""
        o = self.options
        retry = o.get("retry")
        return Call(
            spec=CallSpec(
                kind=self.kind,
                target=self.target,
                **self.signature.plain(),
                lm=tuple(o.get("lm", ())),
                adapter=o.get("adapter"),
                config=o.get("config", {}),
                tools=self.tools,
                max_iters=self.max_iters,
                state=self.state,
                route=o.get("route", "auto"),
            ),
            pool=o.get("pool", "lightweight"),
            inputs=_inputs(self.signature, o.get("inputs", {})),
            accept=_accept(self),
            timeout=float(o.get("timeout", 60.0)),
            deadline=float(o.get("deadline", 600.0)),
            retry=Retry(**retry) if retry else Retry(),
            fallback=_fallback(o.get("fallback")),
            order=o.get("order", "any"),
            on_error=o.get("on_error", "dead_letter"),
        )


def type_option(tp: Any) -> Any:
    """A type as it stands in a node's options: its ref, or its text for one of builtins."""
    if isinstance(tp, Mapping):
        return dict(cast("Mapping[str, Any]", tp))
    if isinstance(tp, type) and any(foreign(tp)):
        return ref_of(tp)
    return Local(f"<{type_text(tp)}>") if any(foreign(tp)) else type_text(tp)


def _inputs(signature: Signature, mapped: Mapping[str, str]) -> Callable[[Any], Outputs]:
    """data → inputs by name, checked, as plain data. Raises InvalidInput, ExpressionError."""
    read = {name: expressions.compile(text).function for name, text in mapped.items()}
    by_name = [n for n in signature.inputs if n not in read]

    def inputs(data: Any) -> Outputs:
        record = record_of(data)
        found = {n: record[n] for n in by_name if n in record}
        found.update({n: value(record) for n, value in read.items()})
        return {n: _wire(v) for n, v in signature.check_inputs(found).items()}

    return inputs


def _wire(value: Any) -> Any:
    """A value that MessagePack takes: models and dates inside become what JSON makes of them."""
    if value is None or isinstance(value, (str, int, float, bytes)):
        return value
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value)


def _accept(spec: Spec[Any]) -> Callable[[Any, Outputs], Any]:
    """(data, outputs) → `{**data, **outputs}`, typed by `into`. Raises InvalidOutput."""
    check, extra = spec.signature.check_outputs, [n for n in spec.outputs if n not in spec.signature.outputs]
    typed = None if spec.into is None else validator(spec.into, InvalidOutput)

    def accept(data: Any, outputs: Outputs) -> Any:
        added = {n: outputs[n] for n in extra if n in outputs}
        result = {**record_of(data), **added, **check(outputs)}
        return result if typed is None else typed(result)

    return accept


def _fallback(value: Any) -> Callable[[Any], Outputs] | None:
    if isinstance(value, Mapping):
        constant = cast("Outputs", value)
        return lambda data: constant
    return cast("Callable[[Any], Outputs] | None", resolve(value) if isinstance(value, str) else value)


def _checked(spec: Spec[Any]) -> Spec[Any]:
    """The spec, or one TopologyError with every way in which its parts contradict each other."""
    errors: list[TopologyError] = []
    foreign = spec.signature.foreign_types
    if foreign:
        errors.append(
            problem(
                "DX211",
                f'the worker cannot know the type {", ".join(foreign)} of "{spec.signature}"',
                "write it as Literal[...] or builtin types, and name the type in into=",
            )
        )
    for name in spec.options.get("inputs", {}):
        if name not in spec.signature.inputs:
            wanted = ", ".join(spec.signature.inputs)
            errors.append(problem("DX207", f"inputs= maps {name!r}, which is no input of the signature", f"inputs: {wanted}"))
    if spec.options.get("route") == "native" and not foreign:
        errors += _uncovered(spec)
    constant = spec.options.get("fallback")
    if isinstance(constant, Mapping) and not foreign:
        try:
            spec.signature.check_outputs(cast("Outputs", constant))
        except InvalidOutput as e:
            errors.append(problem("DX205", f"fallback: {e.message}", "give every output of the signature"))
    all_of(errors)
    return spec


def _uncovered(spec: Spec[Any]) -> list[TopologyError]:
    """The error where native Predict cannot answer, as far as that is known without a model."""
    from dspex.operators.native.lm.native_support import why_not_native_signature

    why = why_not_native_signature(spec.kind, spec.signature)
    fix = 'leave it out, or route="worker": DSPy answers'
    return [problem("DX236", f'route="native" cannot be: {why}', fix)] if why else []


def _make(
    kind: str, signature: SignatureLike, into: Any, o: Mapping[str, Any], *, target: str | None = None, **more: Any
) -> Spec[Any]:
    """A spec from what the user wrote. Raises one TopologyError with every problem that can be told apart."""
    errors: list[TopologyError] = []
    read: Signature | None = None
    options: dict[str, Any] = {}
    try:
        read = as_signature(signature)
    except TopologyError as e:
        errors.append(e)
    try:
        options = call_options.normal(o)
    except TopologyError as e:
        errors.append(e)
    if read is None or errors:
        raise _joined(errors)
    return _checked(Spec(kind, target or str(read), read, into, options, **more))


def _joined(errors: Sequence[TopologyError]) -> TopologyError:
    if len(errors) == 1:
        return errors[0]
    problems = [p for e in errors for p in e.problems or ()]
    first = [e for e in errors if not e.problems]
    try:
        all_of(first)
    except TopologyError as e:
        problems = [*e.problems, *problems]
    return TopologyError("; ".join(p.message for p in problems), code=problems[0].code, problems=problems)


def predict(signature: SignatureLike, *, into: type[V] | None = None, **o: Unpack[CallOptions]) -> Spec[V]:
    """One call of the model with the signature (`dspy.Predict`)."""
    return _make("predict", signature, into, cast("Mapping[str, Any]", o))


def chain_of_thought(signature: SignatureLike, *, into: type[V] | None = None, **o: Unpack[CallOptions]) -> Spec[V]:
    """The model reasons before it answers (`dspy.ChainOfThought`); the result has the field `reasoning` too."""
    return _make("chain_of_thought", signature, into, cast("Mapping[str, Any]", o))


def react(
    signature: SignatureLike,
    *,
    tools: Sequence[str],
    max_iters: int = 10,
    into: type[V] | None = None,
    **o: Unpack[CallOptions],
) -> Spec[V]:
    """The model uses tools until it has the answer (`dspy.ReAct`). `tools`: refs of functions, run in the worker."""
    if isinstance(tools, str) or not isinstance(tools, Sequence) or not tools:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise wrong("tools", tools, 'a list of refs: tools=["shop:find_order"]')
    refs = tuple(worker_ref(t, "a tool") for t in tools)
    if not isinstance(max_iters, int) or max_iters < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise wrong("max_iters", max_iters, "a whole number from 1")
    return _make("react", signature, into, cast("Mapping[str, Any]", o), tools=refs, max_iters=max_iters)


def program(
    ref: str | type[Any],
    signature: SignatureLike,
    *,
    state: str | None = None,
    into: type[V] | None = None,
    **o: Unpack[CallOptions],
) -> Spec[V]:
    """A `dspy.Module` of yours, by ref. `state`: a stored compiled program, "draft@3"."""
    if state is not None and not isinstance(state, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise wrong("state", state, 'the name of a stored program: "draft@3"')
    target = worker_ref(ref, "a program")
    return _make("program", signature, into, cast("Mapping[str, Any]", o), target=target, state=state)


def worker_ref(thing: Any, what: str) -> str:
    """The ref of what a worker shall import. Raises TopologyError: DX218 for what has none, DX221 for a bad one."""
    if isinstance(thing, str):
        if is_ref(thing):
            return thing
        raise problem("DX221", f"{thing!r} is not a ref", 'write "pkg.module:name"')
    ref = ref_of(thing)
    if isinstance(ref, Local):
        raise problem(
            "DX218",
            f"{what} runs in a worker, which cannot import {ref}",
            'define it at the top level of a module, and give its ref: "pkg.module:name"',
        )
    return ref
