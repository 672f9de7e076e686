"""Language models in the settings: how they are reached, what they cost, and what may be used of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, Final, Self, TypeAlias, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, model_validator

from dspex.bus.errors import ConfigError
from dspex.bus.records import Adapter
from dspex.bus.settings.values import (
    MoneyRate,
    NotEmpty,
    PositiveSeconds,
    Rate,
    SettingsTable,
    custom_error,
    most,
    without_effect,
)

# Of `lm.*.params`: what is said elsewhere, or would make answers that nobody reads.
_NOT_PARAMS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("model", "messages", "prompt"), "leave it out: it is what the profile and the call say"),
    **dict.fromkeys(("api_base", "base_url"), "write base_url beside params"),
    "cache": "leave it out: cache= of an operator has its records used again",
    **dict.fromkeys(("num_retries", "max_retries"), "leave it out: retry= of an operator says how often it is called again"),
    "timeout": "leave it out: timeout of an operator, or of the pool, says how long a call may take",
    "stream": "leave it out: it is asked for where somebody reads an answer as it comes",
}


class ModuleSettings(SettingsTable):
    """Parameters of a DSPy module, as `dspex.ModuleConfig`. None: not set."""

    temperature: Annotated[float | None, Field(ge=0)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    n: Annotated[int | None, Field(ge=1)] = None
    stop: Annotated[list[NotEmpty] | None, Field(min_length=1)] = None
    rollout_id: int | None = None


def _params(params: dict[str, Any]) -> dict[str, Any]:
    for name, fix in _NOT_PARAMS.items():
        if name in params:
            raise custom_error(ConfigError(f"{name} is no parameter of a model here", code="DX105", fix=fix))
    if params.get("n") not in (None, 1):
        fix = 'leave it out; where a program reads several, its operator says so: config={"n": 2}'
        raise custom_error(ConfigError("n would have answers paid for that nobody reads", code="DX105", fix=fix))
    for name, value in _leaves(params):
        if not isinstance(value, (str, int, float, NoneType)) or value in (math.inf, -math.inf) or value != value:
            said = f"{name} is {value}, which JSON cannot hold, so no model can be told"
            raise custom_error(ConfigError(said, code="DX105", fix="write a finite number, a text, true or false"))
    stop = params.get("stop")
    known = {name: value for name, value in params.items() if name in ModuleSettings.model_fields and value is not None}
    try:
        ModuleSettings.model_validate(known | ({"stop": [stop]} if isinstance(stop, str) else {}))
    except ValidationError as e:
        wrong = e.errors(include_url=False)[0]
        said = f"{wrong['loc'][0]} = {wrong['input']!r} will not do: {wrong['msg'].lower()}"
        raise custom_error(ConfigError(said, code="DX105", fix="correct the value")) from None
    return params


def _leaves(value: object, name: str = "params") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, inner in cast("Mapping[str, object]", value).items():
            yield from _leaves(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for inner in cast("list[object]", value):
            yield from _leaves(inner, name)
    else:
        yield name, value


def _model(value: str) -> str:
    if not re.fullmatch(r"\S*[^/\s]", value):
        said = f"{value!r} names no model"
        raise custom_error(ConfigError(said, code="DX105", fix='write its provider and its name: "openai/gpt-4.1-mini"'))
    return value


def _base_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        said = "is no address of a model's server"
        raise custom_error(ConfigError(said, code="DX105", fix='write "https://host/v1" or "http://host:8000/v1"'))
    return value


_Price: TypeAlias = Annotated[float, Field(ge=0), most(1e6, "that is a dollar for a token")]


class LMPrice(SettingsTable):
    """USD per million tokens. `cached`: of the input that the provider had in its cache; None: as of the rest.

    `batch`: the part of these that calls of the batch lane cost; None: all of it.
    """

    input: _Price = 0.0
    output: _Price = 0.0
    cached: _Price | None = None
    batch: Annotated[float, Field(ge=0, le=1)] | None = None


class BatchSettings(SettingsTable):
    """Batches of a profile. `gather`: seconds that a call waits for others; `calls`: of one batch, at most; `poll`: seconds
    between two looks at one that has run for a while.
    """

    gather: PositiveSeconds = 10.0
    calls: Annotated[int, Field(ge=1, le=50_000)] = 5_000
    poll: PositiveSeconds = 60.0


class BreakerSettings(SettingsTable):
    """After `failures` in a row within `within` seconds a profile is not asked for `open` seconds; then one call tries it."""

    failures: Annotated[int, Field(ge=1)] = 5
    within: PositiveSeconds = 30.0
    open: PositiveSeconds = 15.0


class LMLimits(SettingsTable):
    """The most that all workers of the application may use of a profile together.

    `requests`, `tokens`, `cost`: in a time; `concurrent`: calls at once. None: any.
    """

    requests: Rate | None = None
    tokens: Rate | None = None
    concurrent: Annotated[int | None, Field(ge=1)] = None
    cost: MoneyRate | None = None


class LMProfile(SettingsTable):
    """A named language model. `key_env`: the variable that has its key; None: it needs none.

    A local model needs no `key_env` and no `base_url`, and answers in the JSON adapter's form alone.
    """

    model: Annotated[str, AfterValidator(_model)]
    key_env: Annotated[str | None, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = None
    base_url: Annotated[str, AfterValidator(_base_url)] | None = None
    adapter: Adapter | None = None
    params: Annotated[dict[str, Any], AfterValidator(_params)] = Field(default_factory=dict[str, Any])
    price: LMPrice | None = None
    breaker: BreakerSettings = BreakerSettings()
    limits: LMLimits = LMLimits()
    batch: BatchSettings = BatchSettings()

    @property
    def local(self) -> bool:
        """Whether the model runs on this machine, without key and network."""
        return self.model.startswith("local/")

    @model_validator(mode="after")
    def _a_local_model_needs_no_service(self) -> Self:
        if self.local:
            for name in ("key_env", "base_url"):
                if getattr(self, name) is not None:
                    raise without_effect(name, f"{self.model} runs on this machine")
            if self.adapter not in (None, "json"):
                raise without_effect("adapter", f"{self.model} always answers as the JSON adapter asks")
        return self

    @model_validator(mode="after")
    def _what_has_no_price_costs_nothing(self) -> Self:
        if self.limits.cost is not None and self.price is None:
            said = "limits.cost would never be reached: nobody knows what a call costs"
            raise custom_error(ConfigError(said, code="DX105", fix="say what tokens cost: price = { input = …, output = … }"))
        return self
