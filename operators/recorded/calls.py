"""The recorded operators: each as a function that makes a Spec, and as a declaration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, cast

from typing_extensions import Unpack

from dspex.bus.errors import ConfigError
from dspex.bus.serving.programs.modules import ModuleArguments
from dspex.bus.serving.programs.names import StateName
from dspex.bus.settings.not_built import OPTIONS
from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.problems import all_of, wrong
from dspex.operators.operator import Declaration, Edges
from dspex.operators.parameters import (
    INTO,
    IntegerParameter,
    Parameter,
    RefParameter,
    RefsParameter,
    SignatureParameter,
    TextParameter,
)
from dspex.operators.parameters.parameter import checked
from dspex.operators.plan import NodeDraft, Plan
from dspex.operators.recorded.options import CALL_OPTIONS, CallOptions
from dspex.operators.recorded.spec import MAX_ITERS, SignatureLike, Spec, consistent
from dspex.operators.typing import code, purity
from dspex.operators.typing.names import V
from dspex.operators.typing.shape import Shape

_INSTRUCTIONS = TextParameter(
    None, fix="what the signature's task is", doc="the signature's instructions; in Python a part of the Signature"
)


@dataclass(frozen=True)
class ArgumentsParameter(Parameter):
    """What a module is built with. Which it takes is known with the module."""

    noun: ClassVar[str] = '`{"max_iters": 5}`'
    form: ClassVar[JsonSchema] = {"type": "object", "additionalProperties": {"type": ["number", "string"]}}

    def check(self, name: str, value: object) -> object:
        if not isinstance(value, Mapping):
            raise wrong(name, value, f'{name}={{"max_iters": 5}}')
        return dict(cast("Mapping[str, object]", value))


@dataclass(frozen=True)
class StateParameter(TextParameter):
    """The name of a saved state."""

    _: KW_ONLY
    fix: str = 'the name of a saved state: "draft@3" (a version), "draft@prod" (an alias) or "draft" (the newest)'
    doc: str = "a saved state of the program: its demonstrations and instructions"

    def check(self, name: str, value: object) -> object:
        found = super().check(name, value)
        if isinstance(found, str):
            try:
                StateName.read(found)
            except ConfigError:
                raise wrong(name, value, self.fix) from None
        return found


@dataclass(frozen=True)
class CallOperator(Declaration):
    """A recorded operator. `spec`: (main argument, **options) → its Spec; raises TopologyError with every problem."""

    _: KW_ONLY
    spec: Callable[..., Spec[Any]]

    @property
    def not_built(self) -> tuple[str, ...]:
        return (*OPTIONS["call"], *OPTIONS.get(self.name, ()))

    @property
    def keys(self) -> Mapping[str, Parameter]:
        signs = any(isinstance(p, SignatureParameter) for p in self.parameters.values())
        return {**super().keys, **({"instructions": _INSTRUCTIONS} if signs else {})}


def add(plan: Plan, inputs: Edges, shape: Shape, kind: str, make: Callable[[], Spec[V]], name: str) -> NodeDraft:
    """Add a node for the spec to a plan, and note what is wrong with it."""
    draft = plan.add(NodeDraft(kind, kind, name or "", inputs=list(inputs)))
    with plan.collecting(draft):
        spec = make()
        call = spec.to_call()
        draft.options, draft.shape, draft.payload = spec.plain(), spec.shape(shape), call
        draft.code, draft.uses = code.digest_of([call.fallback]), [call.fallback]
        for e in spec.misfits(shape):
            plan.refuse(draft, e)
        for value in spec.options.values():
            purity.lint(plan, draft, value)
    return draft


def predict(
    signature: SignatureLike, *, state: str | None = None, into: type[V] | None = None, **o: Unpack[CallOptions]
) -> Spec[V]:
    """One call of the model with the signature (`dspy.Predict`). `state`: a saved state, "classify@3" or "classify@prod"."""
    return _spec(PREDICT, {"predict": signature, "state": state, "into": into}, o)


def chain_of_thought(
    signature: SignatureLike, *, state: str | None = None, into: type[V] | None = None, **o: Unpack[CallOptions]
) -> Spec[V]:
    """The model reasons before it answers (`dspy.ChainOfThought`); the result has the field `reasoning` too.

    `state`: a saved state, "classify@3" or "classify@prod".
    """
    return _spec(CHAIN_OF_THOUGHT, {"chain_of_thought": signature, "state": state, "into": into}, o)


def react(
    signature: SignatureLike,
    *,
    tools: Sequence[str],
    max_iters: int = MAX_ITERS,
    state: str | None = None,
    into: type[V] | None = None,
    **o: Unpack[CallOptions],
) -> Spec[V]:
    """The model uses tools until it has the answer (`dspy.ReAct`). `tools`: refs of functions, run in the worker; `state`: a
    saved state.
    """
    return _spec(REACT, {"react": signature, "tools": tools, "max_iters": max_iters, "state": state, "into": into}, o)


def program(
    ref: str | type[Any],
    signature: SignatureLike,
    *,
    arguments: ModuleArguments | None = None,
    tools: Sequence[str] | None = None,
    state: str | None = None,
    into: type[V] | None = None,
    **o: Unpack[CallOptions],
) -> Spec[V]:
    """A `dspy.Module` of yours, by ref; or one of DSPy's own: `program("dspy:RLM", "book, question -> answer")`.

    Args:
        arguments: what DSPy's own module is built with: `{"max_iters": 5}`. tools: refs of functions for those that take some.
        state: a saved state of it, "draft@3" or "draft@prod".
    """
    own = {"signature": signature, "arguments": arguments, "tools": tools, "state": state}
    return _spec(PROGRAM, {"program": ref, **own, "into": into}, o)


def _spec(operator: CallOperator, own: Mapping[str, object], options: CallOptions) -> Spec[Any]:
    """A spec from what the user wrote. Raises one TopologyError with every problem."""
    given = {**own, **cast("Mapping[str, object]", options)}
    o, errors = checked(operator.parameters, given, options=operator.options, not_built=operator.not_built)
    all_of(errors)
    signature, target = (o["signature"], o["program"]) if "signature" in o else (o[operator.name], str(o[operator.name]))
    extra = {name: o[name] for name in ("tools", "max_iters", "state", "arguments") if o.get(name) is not None}
    return consistent(
        Spec(operator.name, target, signature, o["into"], {n: o[n] for n in options if n in CALL_OPTIONS}, **extra)
    )


_OPTIONS: Mapping[str, Parameter] = {"state": StateParameter(None), "into": INTO, **CALL_OPTIONS}

PREDICT = CallOperator(
    "predict",
    main=SignatureParameter(),
    options=_OPTIONS,
    spec=predict,
)
CHAIN_OF_THOUGHT = CallOperator(
    "chain_of_thought",
    main=SignatureParameter(),
    options=_OPTIONS,
    spec=chain_of_thought,
)
REACT = CallOperator(
    "react",
    main=SignatureParameter(),
    options={
        "tools": RefsParameter(what="a tool", doc="functions that the model may use; they run in the worker"),
        "max_iters": IntegerParameter(MAX_ITERS, doc="the most steps"),
        **_OPTIONS,
    },
    spec=react,
)
PROGRAM = CallOperator(
    "program",
    main=RefParameter(what="a program"),
    options={
        "signature": SignatureParameter(doc="what goes in and out"),
        "arguments": ArgumentsParameter(None, doc="what one of DSPy's own modules is built with"),
        "tools": RefsParameter(None, what="a tool", doc="functions that one of DSPy's own modules may use"),
        **_OPTIONS,
    },
    spec=program,
)
