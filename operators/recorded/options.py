"""The options of recorded operators: their types for type checkers, and beside them their declaration for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar, TypedDict, cast

from dspex.bus.errors import ConfigError
from dspex.bus.records import DEFAULT_DEADLINE, DEFAULT_POOL, MOST_FACTOR
from dspex.bus.serving.call_spec import ModuleConfig
from dspex.bus.settings.duration import Duration
from dspex.bus.subjects import token
from dspex.engine.graph.nodes import Retry
from dspex.operators.expressions import language as expressions
from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.problems import did_you_mean, problem, wrong
from dspex.operators.parameters import (
    Arguments,
    ChoiceParameter,
    DurationParameter,
    ExpressionParameter,
    ExpressionsParameter,
    IntegerParameter,
    Parameter,
)
from dspex.operators.parameters.values import TEXT, in_seconds, mapping
from dspex.operators.typing.names import Adapter, Affinity, CallLane, Choice, Hedge, OnError, Order, Route
from dspex.operators.typing.refs import ref_of, resolve


class EnrichOptions(TypedDict, total=False):
    """What every recorded operator takes. CALL_OPTIONS says what each is; docs/operators.md lists them."""

    pool: str
    inputs: Mapping[str, str]
    timeout: Duration
    deadline: Duration
    retry: Retry
    fallback: Callable[[Any], Mapping[str, Any]] | Mapping[str, Any] | str
    on_error: OnError
    order: Order
    affinity: Affinity
    priority: int
    cache: Duration
    tenant: str
    cost: int


class CallOptions(EnrichOptions, total=False):
    """What a recorded operator takes that may ask a model."""

    lm: str | Sequence[str]
    config: ModuleConfig
    adapter: Adapter
    route: Route
    hedge: Hedge
    first_token_timeout: Duration
    lane: CallLane
    choose: Choice


_CONFIG: Mapping[str, tuple[type, ...]] = {
    "temperature": (int, float),
    "max_tokens": (int,),
    "top_p": (int, float),
    "n": (int,),
    "stop": (list, tuple),
    "rollout_id": (int,),
}


_BOUNDS: Mapping[str, tuple[int, float]] = {
    "temperature": (0, math.inf),
    "max_tokens": (1, math.inf),
    "top_p": (0, 1),
    "n": (1, math.inf),
}


@dataclass(frozen=True)
class PoolNameParameter(Parameter):
    """The name of a pool."""

    noun: ClassVar[str] = "the name of a pool"
    form: ClassVar[JsonSchema] = TEXT

    def check(self, name: str, value: object) -> object:
        try:
            return token(cast("str", value), name)
        except (ConfigError, TypeError) as e:
            raise wrong(name, value, "a name of letters, digits, - and _") from e


@dataclass(frozen=True)
class ProfilesParameter(Parameter):
    """The name of an LM profile, or several. Checked, they are a list."""

    noun: ClassVar[str] = "a profile, or a list of them"
    form: ClassVar[JsonSchema] = {"type": ["string", "array"], "items": TEXT}

    def check(self, name: str, value: object) -> object:
        names = [value] if isinstance(value, str) else value
        if isinstance(names, Sequence) and names:
            found = list(cast("Sequence[object]", names))
            if all(isinstance(n, str) and n for n in found):
                return found
        raise wrong(name, value, f'the name of a profile, or a list of names: {name}="main"')


@dataclass(frozen=True)
class InputsParameter(ExpressionsParameter):
    """Expressions by the signature's input. A call sees the data only: the event is not part of its record."""

    noun: ClassVar[str] = "signature input → expression"

    def check(self, name: str, value: object) -> object:
        texts = mapping(value)
        if texts is None:
            raise wrong(name, value, f'signature input -> expression: {name}={{"text": "message.body"}}')
        for field, text in texts.items():
            if expressions.compile(text).uses_event:
                raise problem(
                    "DX208",
                    f"{name} of {field!r} read `event`, which a call does not see",
                    'copy it before: .set({"key": "event.key"})',
                )
        return dict(texts)


@dataclass(frozen=True)
class TenantParameter(ExpressionParameter):
    """An expression that says on whose behalf a call is. It sees the data only."""

    def check(self, name: str, value: object) -> object:
        if value is not self.default and expressions.compile(cast("str", value)).uses_event:
            fix = 'copy it before: .set({"tenant": "event.key"})'
            raise problem("DX208", f"{name} reads `event`, which a call does not see", fix)
        return value


@dataclass(frozen=True)
class ConfigParameter(Parameter):
    """Parameters of the DSPy module."""

    noun: ClassVar[str] = '`{"temperature": 0.0, "max_tokens": 200}`'

    def check(self, name: str, value: object) -> object:
        given = mapping(value)
        if given is None:
            raise wrong(name, value, f'{name}={{"temperature": 0.0}}')
        for key, v in given.items():
            if key not in _CONFIG:
                raise problem("DX204", f"{name} has no parameter {key!r}", did_you_mean(key, _CONFIG))
            if not isinstance(v, _CONFIG[key]) or isinstance(v, bool):
                raise wrong(f"{name}.{key}", v, f"a value of type {_CONFIG[key][-1].__name__}")
            _in_bounds(f"{name}.{key}", key, v)
        return {n: list(cast("tuple[object, ...]", v)) if isinstance(v, tuple) else v for n, v in given.items()}

    def schema(self) -> JsonSchema:
        return {"type": "object", "properties": {k: {} for k in _CONFIG}, "additionalProperties": False}


def _in_bounds(name: str, key: str, value: object) -> None:
    """Refuse what no provider can mean. Raises TopologyError (DX205)."""
    if isinstance(value, (int, float)) and key in _BOUNDS:
        least, most = _BOUNDS[key]
        if not least <= value <= most or value == math.inf:
            raise wrong(name, value, f"a number from {least}" + ("" if most == math.inf else f" to {most}"))
    if isinstance(value, (list, tuple)):
        texts = cast("Sequence[object]", value)
        if not texts or not all(isinstance(t, str) and t for t in texts):
            raise wrong(name, value, "a list of texts, none of them empty; or leave it out")


@dataclass(frozen=True)
class RetryPolicyParameter(Parameter):
    """A `Retry`, or its fields as a mapping. Checked, it is a mapping of all fields, durations in seconds."""

    noun: ClassVar[str] = "a `Retry`; in YAML a mapping of its fields"
    form: ClassVar[JsonSchema] = {"type": "object"}

    def check(self, name: str, value: object) -> object:
        fields: dict[str, object] = asdict(Retry())
        given = asdict(value) if isinstance(value, Retry) else mapping(value)
        if given is None:
            raise wrong(name, value, 'Retry(attempts=4, backoff="1s")')
        for key, v in given.items():
            if key not in fields:
                raise problem("DX204", f"{name} has no {key!r}", did_you_mean(key, fields))
            if key == "attempts" and (not isinstance(v, int) or v < 1):
                raise wrong(f"{name}.{key}", v, "a whole number from 1 (the first attempt counts)")
            if key == "factor" and (not isinstance(v, (int, float)) or not 1 <= v <= MOST_FACTOR):
                raise wrong(f"{name}.{key}", v, f"a number from 1 to {MOST_FACTOR:g}")
            if key == "jitter" and (not isinstance(v, (int, float)) or not 0 <= v <= 1):
                raise wrong(f"{name}.{key}", v, "a number from 0 to 1")
        whole = {**fields, **given}
        if (backoff := in_seconds(f"{name}.backoff", whole["backoff"])) > (cap := in_seconds(f"{name}.cap", whole["cap"])):
            raise wrong(f"{name}.backoff", whole["backoff"], f"no more than cap, {cap:g} s, which no pause exceeds")
        return whole | {"backoff": backoff, "cap": cap}


@dataclass(frozen=True)
class FallbackParameter(Parameter):
    """What answers when the attempts are spent."""

    noun: ClassVar[str] = "a function of the data, constant outputs, or a ref"
    form: ClassVar[JsonSchema] = {"type": ["string", "object"]}

    def check(self, name: str, value: object) -> object:
        if isinstance(value, str):
            resolve(value)
            return value
        constant = mapping(value)
        if constant is not None:
            return dict(constant)
        if not callable(value):
            raise wrong(name, value, 'a function of the data, constant outputs, or a ref "pkg.module:name"')
        return value

    def plain(self, value: object, others: Arguments) -> object:
        return ref_of(value) if callable(value) else value


CALL_OPTIONS: Mapping[str, Parameter] = MappingProxyType(
    {
        "pool": PoolNameParameter(DEFAULT_POOL, doc="which workers"),
        "lm": ProfilesParameter(None, doc="who answers; several are tried in order while one is down; default: the pool's"),
        "inputs": InputsParameter(None, doc="default: the field of that name"),
        "config": ConfigParameter(None, doc="parameters of the DSPy module; default: the profile's"),
        "adapter": ChoiceParameter(None, of=Adapter, doc="default: the profile's; local models always use JSON"),
        "timeout": DurationParameter("60s", zero=False, doc="of one attempt"),
        "deadline": DurationParameter(DEFAULT_DEADLINE, zero=False, doc="of all attempts together"),
        "retry": RetryPolicyParameter(
            None, doc="default: 4 attempts, back-off from 1 s to 60 s with jitter; dspex is the only layer that retries"
        ),
        "fallback": FallbackParameter(
            None,
            doc="gives the outputs when the attempts are spent, or the deadline has passed; "
            "events made of them have the error in a header",
        ),
        "on_error": ChoiceParameter("dead_letter", of=OnError, doc="what happens after retry and fallback"),
        "affinity": ChoiceParameter(
            "prefer",
            of=Affinity,
            doc="prefer: calls of one key, or else session, go to one process of a pool where that has room; "
            "require: to no other one for as long as it lives, and when it is gone one call is told (AffinityLost)",
        ),
        "order": ChoiceParameter(
            "any",
            of=Order,
            doc="as they finish; in the order of their key; or each call of a key behind the end of the one before",
        ),
        "priority": IntegerParameter(
            5, least=0, most=9, doc="0 comes first; a pool takes calls of 0 to 3 before those of 4 to 6, and 7 to 9 last"
        ),
        "cache": DurationParameter(None, zero=False, doc="for so long an equal call is given the answer again; default: never"),
        "tenant": TenantParameter(
            None,
            doc="on whose behalf: a pool gives tenants that have many calls waiting the same tokens, and takes calls of one "
            "that has few soon; and budgets may count it",
        ),
        "cost": IntegerParameter(1, least=1, doc="slots that a call takes; no more than a process of its pool has"),
        "choose": ChoiceParameter(
            "listed",
            of=Choice,
            doc="which of several profiles is asked first: that which is written first, or that with which a call is expected "
            "to cost least, by its price and by the tokens that calls of the program used",
        ),
        "hedge": ChoiceParameter(
            None,
            of=Hedge,
            doc="the model is asked once more when its answer takes longer than so many percent of the last ones took; "
            "the first answer counts; default: never; of `predict` and `chain_of_thought`",
        ),
        "first_token_timeout": DurationParameter(
            None,
            zero=False,
            doc="until the model begins to answer; then the next of `lm` is asked; of native `predict` and `chain_of_thought`; "
            "default: no limit but `timeout`",
        ),
        "lane": ChoiceParameter(
            "live",
            of=CallLane,
            doc="batch: through the provider's batch API, at its price; live again near the deadline, which has to be given; "
            "of native `predict` and `chain_of_thought`",
        ),
        "route": ChoiceParameter(
            "auto",
            of=Route,
            doc="who answers in the worker: native Predict where it gives what DSPy gives, else DSPy; always DSPy; never DSPy",
        ),
    }
)
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {name: p.check(name, p.default) for name, p in CALL_OPTIONS.items() if p.default is not None}
)
"""What a call has where nothing was said, in the form that `Spec.options` has."""
