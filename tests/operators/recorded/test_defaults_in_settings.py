"""`[defaults.call]` takes what call options take. The bus repeats their declaration, which it cannot import."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
from pydantic import ValidationError

from dspex.bus.errors import TopologyError
from dspex.bus.settings.called.profiles import ModuleSettings
from dspex.bus.settings.duration import seconds
from dspex.bus.settings.tables import CallDefaults, RetrySettings
from dspex.engine.graph.nodes import Retry
from dspex.operators.recorded.options import CALL_OPTIONS, ModuleConfig

OF_ONE_OPERATOR = {"inputs", "fallback", "tenant", "lane"}  # no default makes sense: they are about one operator alone


def test_the_settings_have_the_names_of_the_call_options() -> None:
    assert set(CallDefaults.model_fields) | OF_ONE_OPERATOR == set(CALL_OPTIONS)
    assert set(ModuleSettings.model_fields) == set(ModuleConfig.__annotations__)


def test_the_settings_have_the_defaults_of_the_call_options() -> None:
    assert CallDefaults().options() == {}
    declared = asdict(Retry())
    assert RetrySettings().model_dump() == declared | {name: seconds(declared[name]) for name in ("backoff", "cap")}


NO_NUMBERS = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        ("pool", ["gpu", "my-pool"], ["a b", "", "a.b"]),
        ("lm", ["main", ["a", "b"]], [[], ""]),
        ("config", [{"temperature": 1}, {"n": 2}, {"stop": ["x"]}],
         [{"temprature": 1}, {"n": "x"}, {"stop": 5}, *({"temperature": n} for n in NO_NUMBERS)]),
        ("adapter", ["chat", "json", "xml"], ["yaml"]),
        ("timeout", ["1s", 0.5], ["0s", 0, -1, "soon"]),
        ("deadline", ["1h", 5], ["0s", 0, -1, "soon"]),
        ("retry", [{}, {"attempts": 1}, {"factor": 1}, {"jitter": 0}, {"jitter": 1}, {"cap": "2m"}],
         [{"attempts": 0}, {"factor": 0.5}, {"jitter": -0.1}, {"jitter": 1.1}, {"cap": "x"}, {"attemps": 1},
          {"backoff": "2m"}, {"factor": 1e3}, *({name: n} for n in NO_NUMBERS for name in ("factor", "jitter", "cap"))]),
        ("on_error", ["dead_letter", "skip"], ["ignore"]),
        ("order", ["any", "key", "serial"], ["none"]),
        ("priority", [0, 5, 9], [-1, 10, 1.5, True, "urgent"]),
        ("cache", ["1h", 5], ["0s", 0, -1, "soon"]),
        ("hedge", ["p50", "p95"], ["p0", "p100", "95", 95]),
        ("choose", ["listed", "cheapest"], ["fastest", ""]),
        ("first_token_timeout", ["2s", 0.5], ["0s", 0, -1, "soon"]),
        ("route", ["auto", "worker", "native"], ["dspy"]),
    ],
)  # fmt: skip
def test_a_default_has_the_bounds_of_the_call_option(option: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        CALL_OPTIONS[option].check(option, value)
        CallDefaults.model_validate({option: value})
    for value in bad:
        with pytest.raises(TopologyError):
            CALL_OPTIONS[option].check(option, value)
        with pytest.raises(ValidationError):
            CallDefaults.model_validate({option: value})
