"""Specs: what a recorded operator asks for, as data. The same object serves `Stream.call` and `Client.call`.

A program is a name and a signature: neither is imported here, so the engine never pays for `dspy`, and a program that
cannot be imported is the worker's error and not the engine's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeAlias, cast

from typing_extensions import Unpack

from dspex.bus.codecs.copied import copied
from dspex.bus.errors import InvalidOutput, TopologyError
from dspex.bus.records import Outputs
from dspex.bus.serving.call_spec import MAX_ITERS as MAX_ITERS
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.programs.modules import refusal
from dspex.bus.settings.not_built import OPTIONS
from dspex.engine.graph.nodes import Call, Retry
from dspex.operators.expressions import language as expressions
from dspex.operators.native.fields.checks import FAILURES
from dspex.operators.native.fields.types import fields_of
from dspex.operators.native.problems import all_of, problem
from dspex.operators.native.prompts.values import plain_input
from dspex.operators.native.signature import Signature
from dspex.operators.native.user_types.described import refuse_what_cannot_travel
from dspex.operators.parameters import Arguments, Parameter
from dspex.operators.parameters.parameter import checked
from dspex.operators.parameters.typed import type_option
from dspex.operators.recorded.lanes import in_batches, uncovered
from dspex.operators.recorded.optimize import Optimization, OptimizeOptions, optimize
from dspex.operators.recorded.options import CALL_OPTIONS, DEFAULTS, CallOptions
from dspex.operators.recorded.tenant import tenant_of
from dspex.operators.typing.names import T_co, V
from dspex.operators.typing.refs import Local, resolve
from dspex.operators.typing.shape import Shape, record_of, shape_of, validator
from dspex.operators.typing.stream_checks import MAP_IT, contradictions, missing_inputs

SignatureLike: TypeAlias = "str | Signature | type[Any]"

NOTHING = Arguments()
_REASONING: Mapping[str, object] = {"reasoning": str}  # the field that DSPy adds to these signatures


@dataclass(frozen=True)
class Spec(Generic[T_co]):
    """A recorded operator without a place in a topology. Frozen.

    Attributes:
        kind: "predict", "chain_of_thought", "react", "program" or "enrich".
        target: the signature for the first three, the ref for the others.
        signature: what goes in and out.
        into: the type of the result; None for a Record.
        options: CallOptions, checked, durations in seconds.
        tools, max_iters: of react. state: name of a saved state of the program.
        arguments: of one of DSPy's own modules, which may take tools, too.
    """

    kind: str
    target: str
    signature: Signature
    into: object = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    max_iters: int = MAX_ITERS
    state: str | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)

    takes: ClassVar[Mapping[str, Parameter]] = CALL_OPTIONS
    not_built: ClassVar[tuple[str, ...]] = OPTIONS["call"]

    def with_options(self, **o: Unpack[CallOptions]) -> Spec[T_co]:
        """The same spec with these options changed. Raises TopologyError for a wrong one."""
        changed, errors = checked(self.takes, cast("Mapping[str, object]", o), not_built=self.not_built)
        all_of(errors)
        return consistent(replace(self, options={**self.options, **changed}))

    def optimize(self, metric: str, **o: Unpack[OptimizeOptions]) -> Optimization:
        """A job of one of DSPy's optimizers, for `Client.submit`: `spec.optimize("f1", using="MIPROv2")`. It takes
        `{"rows": […]}`, or `{"train": […], "test": […]}`, of the signature's fields, and its result has the scores `before` and
        `after` in percent, and `state`, for `Client.put_program`. Of several models in `lm=` the first alone is asked.

        Args:
            metric: a name in `dspex.metrics`, which compares the outputs of a row; or the ref of a function of DSPy's form,
                (example, prediction, trace), which the pool allows.

        Raises:
            ConfigError: DX105, no such optimizer, option, metric or number.
        """
        return optimize(self.to_call().spec, metric, **o)

    @property
    def digest(self) -> str:
        """12 hex digits over everything that it is; not over the code of a program or of a fallback."""
        text = json.dumps([self.plain(), self.signature.digest], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def plain(self) -> dict[str, object]:
        """The spec as a node's options: the operator's key with its main argument, then the rest."""
        text = str(self.signature)
        secret = any(f.secret for f in self.signature.fields)
        if self.signature.described.plain or secret:  # the text alone does not say what its types are, nor what is secret
            text = Local(f"<{text}>, types {self.signature.digest}")
        data: dict[str, object] = {self.kind: self.target if self.kind == "program" else text}
        if self.kind == "program":
            data["signature"] = text
        if self.kind == "react":
            data |= {"tools": list(self.tools), "max_iters": self.max_iters}
        extra: dict[str, object] = {
            "instructions": self.signature.instructions,
            "state": self.state,
            "arguments": dict(self.arguments),
        }
        if self.kind == "program":
            extra["tools"] = list(self.tools)
        into = {} if self.into is None else {"into": type_option(self.into)}
        options = {n: CALL_OPTIONS[n].plain(v, NOTHING) for n, v in self.options.items()}
        return data | {k: v for k, v in extra.items() if v} | into | options

    @property
    def outputs(self) -> dict[str, object]:
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

    def misfits(self, shape: Shape) -> Iterator[TopologyError]:
        """Every way in which the spec does not fit data of this shape, or its own `into`."""
        mapped = self.options.get("inputs", {})
        yield from missing_inputs(self.signature, shape, MAP_IT, mapped)
        yield from contradictions(self.outputs, self.into, shape)
        for name, value in self.options.items():
            yield from CALL_OPTIONS[name].misfits(self.kind, value, shape, NOTHING)

    def to_call(self) -> Call[T_co]:
        """The call as the engine runs it. Made once: whoever calls a thousand times asks a thousand times."""
        return self._call

    @cached_property
    def _call(self) -> Call[T_co]:
        o: dict[str, Any] = {**DEFAULTS, **self.options}
        return Call(
            spec=self._work(o),
            pool=o["pool"],
            inputs=self._inputs(o.get("inputs", {})),
            accept=self._accept(),
            timeout=float(o["timeout"]),
            deadline=float(o["deadline"]),
            retry=Retry(**o.get("retry", {})),
            fallback=_fallback(o.get("fallback")),
            order=o["order"],
            on_error=o["on_error"],
            priority=o["priority"],
            tenant=tenant_of(o.get("tenant")),
            affinity=o["affinity"],
        )

    def contradictions(self) -> Iterator[TopologyError]:
        """Every way in which its own parts contradict each other."""
        if (error := _travels(self.signature)) is not None:
            yield error
        for name in self.options.get("inputs", {}):
            if name not in self.signature.inputs:
                wanted = ", ".join(self.signature.inputs)
                message = f"inputs= maps {name!r}, which is no input of the signature"
                yield problem("DX207", message, f"inputs: {wanted}")
        if self.kind == "program" and (why := refusal(self.target, self.arguments, self.tools, tuple(self.signature.inputs))):
            yield problem("DX247", *why)
        if self.options.get("route") == "native" and error is None:
            yield from uncovered(self, 'route="native"', 'leave it out, or route="worker": DSPy answers')
        if "first_token_timeout" in self.options and error is None:
            yield from uncovered(self, "first_token_timeout=", "leave it out: timeout= limits the whole answer")
        if self.options.get("lane") == "batch" and error is None:
            yield from in_batches(self)
        if self.options.get("choose") == "cheapest" and len(self.options.get("lm", ())) < 2:
            yield problem("DX205", 'choose="cheapest" has nothing to choose from', 'name several profiles: lm=["main", "big"]')
        if "hedge" in self.options and self.kind in ("react", "program"):
            message, fix = "hedge= would run code of yours twice at once", "leave it out: it is of predict and chain_of_thought"
            yield problem("DX205", message, fix)
        constant = self.options.get("fallback")
        if isinstance(constant, Mapping) and error is None:
            try:
                self.signature.check_outputs(cast("Outputs", constant))
            except InvalidOutput as e:
                yield problem("DX205", f"fallback: {e.message}", "give every output of the signature")

    def _work(self, o: Mapping[str, Any]) -> CallSpec:
        """What a worker needs."""
        return CallSpec(
            kind=self.kind,
            target=self.target,
            **self.signature.plain(),
            lm=tuple(o.get("lm", ())),
            adapter=o.get("adapter"),
            config=o.get("config", {}),
            tools=self.tools,
            max_iters=self.max_iters,
            state=self.state,
            route=o["route"],
            cache=float(o.get("cache", 0)),
            arguments=self.arguments,
            cost=o["cost"],
            hedge=o.get("hedge", ""),
            first_token_timeout=float(o.get("first_token_timeout", 0)),
            lane=o["lane"],
            choose=o["choose"],
        )

    def _inputs(self, mapped: Mapping[str, str]) -> Callable[[object], Outputs]:
        return _inputs(self.kind, self.signature, mapped)

    def _accept(self) -> Callable[[object, Outputs], Any]:
        return _accept(self)


def _inputs(kind: str, signature: Signature, mapped: Mapping[str, str]) -> Callable[[object], Outputs]:
    """data → inputs by name, checked, as plain data. Raises InvalidInput, ExpressionError.

    A program gets values of the signature's types; a prompt shows what was given.
    """
    read = {name: expressions.compile(text).function for name, text in mapped.items()}
    by_name = [n for n in signature.inputs if n not in read]

    def inputs(data: object) -> Outputs:
        record = record_of(data)
        found = {n: record[n] for n in by_name if n in record}
        found.update({n: value(record) for n, value in read.items()})
        if kind == "program":
            return {n: plain_input(n, v, for_code=True) for n, v in signature.check_inputs(found).items()}
        return {n: plain_input(n, v) for n, v in signature.sent_inputs(found).items()}

    return inputs


def _accept(spec: Spec[V]) -> Callable[[object, Outputs], Any]:
    """(data, outputs) → `{**data, **outputs}`, typed by `into`. Raises InvalidOutput."""
    check, extra = spec.signature.output_check, [n for n in spec.outputs if n not in spec.signature.outputs]
    typed = None if spec.into is None else validator(spec.into, InvalidOutput)
    validate, count = check.validate, len(check.names)

    def accept(data: object, outputs: Outputs) -> object:
        try:
            values = validate(outputs)
        except (ValueError, *FAILURES):
            values = check(outputs)  # says what is wrong
        if len(values) < count:
            values = check(outputs)
        record = data if type(data) is dict else record_of(data)
        result = {**record, **values}
        if extra:
            result = {**record, **{n: outputs[n] for n in extra if n in outputs}, **values}
        return result if typed is None else typed(result)

    return accept


def _fallback(value: object) -> Callable[[object], Outputs] | None:
    if isinstance(value, Mapping):
        constant = cast("Outputs", value)
        return lambda data: copied(constant)  # a function behind the call may change what it is given
    return cast("Callable[[object], Outputs] | None", resolve(value) if isinstance(value, str) else value)


def consistent(spec: Spec[V]) -> Spec[V]:
    """The spec, or one TopologyError with every way in which its parts contradict each other."""
    errors = list(spec.contradictions())
    timeout, deadline = spec.options.get("timeout", 0), spec.options.get("deadline", DEFAULTS["deadline"])
    if timeout > deadline:
        message = f"timeout, {timeout:g} s, is longer than deadline, {deadline:g} s, which ends all attempts"
        errors.append(problem("DX205", message, "lower timeout, or raise deadline"))
    all_of(errors)
    return spec


def _travels(signature: Signature) -> TopologyError | None:
    try:
        refuse_what_cannot_travel(signature)
    except TopologyError as e:
        return e
    return None
