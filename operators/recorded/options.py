"""Options of recorded operators: checked, and brought to the one form that digests and YAML hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, cast

from dspex.bus.duration import seconds
from dspex.bus.errors import ConfigError, TopologyError
from dspex.bus.subjects import token
from dspex.engine.graph.graph import Retry
from dspex.operators.expressions import language as expressions
from dspex.operators.native.suggestions import did_you_mean
from dspex.operators.options import CallOptions, ModuleConfig
from dspex.operators.problems import all_of, problem, wrong
from dspex.operators.typing.refs import ref_of, resolve

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "adapter": ("chat", "json", "xml"),
    "on_error": ("dead_letter", "skip"),
    "order": ("any", "key"),
    "route": ("auto", "worker", "native"),
}
_CONFIG: Mapping[str, tuple[type, ...]] = {
    "temperature": (int, float),
    "max_tokens": (int,),
    "top_p": (int, float),
    "n": (int,),
    "stop": (list, tuple),
    "rollout_id": (int,),
}


def normal(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as plain data, durations in seconds; a function stays one.

    Raises one TopologyError with every unknown option (DX204) and every wrong value (DX205).
    """
    found: dict[str, Any] = {}
    errors: list[TopologyError] = []
    for name, value in options.items():
        try:
            found[name] = _normal(name, value)
        except TopologyError as e:
            errors.append(e)
    all_of(errors)
    return found


def _normal(name: str, value: Any) -> Any:
    if name not in CallOptions.__annotations__:
        raise problem("DX204", f"there is no option {name!r}", did_you_mean(name, CallOptions.__annotations__))
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise wrong(name, value, f"one of: {', '.join(_CHOICES[name])}")
        return value
    readers: Mapping[str, Callable[[Any], Any]] = {
        "pool": _pool, "lm": _lm, "inputs": _inputs, "config": _config, "timeout": partial(_duration, "timeout"),
        "deadline": partial(_duration, "deadline"), "retry": _retry, "fallback": _fallback,
    }  # fmt: skip
    return readers[name](value)


def _pool(value: Any) -> str:
    try:
        return token(value, "pool")
    except (ConfigError, TypeError) as e:
        raise wrong("pool", value, "a name of letters, digits, - and _") from e


def _lm(value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names or not all(isinstance(n, str) and n for n in cast("Sequence[Any]", names)):
        raise wrong("lm", value, 'the name of a profile, or a list of names: lm="main"')
    return list(cast("Sequence[str]", names))


def _inputs(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise wrong("inputs", value, 'signature input -> expression: inputs={"text": "message.body"}')
    for name, text in cast("Mapping[str, Any]", value).items():
        if expressions.compile(text).uses_event:
            raise problem(
                "DX208",
                f"inputs of {name!r} read `event`, which a call does not see",
                'copy it before: .set({"key": "event.key"})',
            )
    return dict(cast("Mapping[str, str]", value))


def _config(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise wrong("config", value, 'config={"temperature": 0.0}')
    config = dict(cast("Mapping[str, Any]", value))
    for name, v in config.items():
        if name not in _CONFIG:
            raise problem("DX204", f"config has no parameter {name!r}", did_you_mean(name, ModuleConfig.__annotations__))
        if not isinstance(v, _CONFIG[name]) or isinstance(v, bool):
            raise wrong(f"config.{name}", v, f"a value of type {_CONFIG[name][-1].__name__}")
    return {n: list(v) if isinstance(v, tuple) else v for n, v in config.items()}


def _duration(name: str, value: Any) -> int | float:
    try:
        found = seconds(value)
    except ConfigError as e:
        raise wrong(name, value, e.fix) from e
    if found == 0 and name in ("timeout", "deadline"):
        raise wrong(name, value, "more than 0: every call would fail")
    return int(found) if found.is_integer() else found


def _retry(value: Any) -> dict[str, Any]:
    fields = asdict(Retry())
    given = asdict(value) if isinstance(value, Retry) else value
    if not isinstance(given, Mapping):
        raise wrong("retry", value, 'Retry(attempts=4, backoff="1s")')
    given = cast("Mapping[str, Any]", given)
    for name, v in given.items():
        if name not in fields:
            raise problem("DX204", f"retry has no {name!r}", did_you_mean(name, fields))
        if name == "attempts" and (not isinstance(v, int) or v < 1):
            raise wrong("retry.attempts", v, "a whole number from 1 (the first attempt counts)")
        if name in ("factor", "jitter") and (not isinstance(v, (int, float)) or v < 0):
            raise wrong(f"retry.{name}", v, "a number from 0")
    return {**fields, **given, **{n: _duration(f"retry.{n}", {**fields, **given}[n]) for n in ("backoff", "cap")}}


def _fallback(value: Any) -> Any:
    if isinstance(value, str):
        resolve(value)
        return value
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    if not callable(value):
        raise wrong("fallback", value, 'a function of the data, constant outputs, or a ref "pkg.module:name"')
    return value


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Normal options as they stand in a node: functions by their refs."""
    return {n: ref_of(v) if callable(v) else v for n, v in options.items()}
