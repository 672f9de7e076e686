"""Layers in, checked settings out, or every problem at once: which key, where it was written, what to do."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dspex.bus.errors import ConfigError, Problem
from dspex.bus.settings import files, layers, not_built
from dspex.bus.settings.called import together
from dspex.bus.settings.layers import Layer, SettingPath
from dspex.bus.settings.model import Settings

_SECRET = re.compile(r"(.*[_-])?(api_?key|key|password|passwd|secret|token|authorization)", re.IGNORECASE)
_SHOWN = 300  # characters of a wrong value
_LITERAL_FIX = {
    "lm": 'name the variable that has it instead: key_env = "OPENAI_API_KEY"',
    "server": 'name the variable that has it instead: password_env = "…" or token_env = "…"',
    "pools": 'export it, and name the variable that has it: env = { NAME = "$NAME" }',
}


def load(path: str | os.PathLike[str] | None, overrides: Mapping[str, Any]) -> Settings:
    """See `Settings.load`."""
    file = _file(path)
    root = file.parent if file else Path(path).resolve() if path else Path.cwd()
    found = _layers(file, overrides)
    merged, origins = layers.merge(found)
    if "app" not in merged:
        merged["app"] = re.sub(r"[^A-Za-z0-9_-]+", "-", root.name).strip("-_")[:64] or "app"
    problems = list(_literal_secrets(found, origins))
    secret_keys = {p.node for p in problems}
    try:
        settings = Settings.model_validate(merged, context=origins)
    except ConfigError as e:
        problems += [p for p in e.problems if p.node not in secret_keys]
    else:
        if not problems:
            return settings.placed(root, {".".join(key): origin for key, origin in origins.items()})
    raise _all_of(problems)


S = TypeVar("S", bound="Settings")


def checked(values: Any, build: Callable[[Any], S], origins: Mapping[SettingPath, str] | None) -> S:
    """The settings that `build` makes of `values`, wherever they come from. Raises ConfigError with every problem.

    Args:
        origins: where each value was written; None: in Python.
    """
    if origins is None:
        origins = {key: "Settings(…)" for key, _ in layers.flatten(values)}
    try:
        settings = build(values)
    except ValidationError as e:
        raise _all_of([_problem(error, values, origins) for error in e.errors(include_url=False)]) from None
    if wrong := list(together.problems(settings, origins)):
        raise _all_of(wrong)
    return settings


def _file(path: str | os.PathLike[str] | None) -> Path | None:
    if path is None:
        return files.find_file(Path.cwd())
    given = Path(path).resolve()
    return files.find_file(given) if given.is_dir() else given


def _layers(file: Path | None, overrides: Mapping[str, Any]) -> list[Layer]:
    """From weakest to strongest. A nats context counts just below the place that names it."""
    below = files.file_layer(file) if file else Layer()
    known, _ = layers.merge([below])
    found = [
        below,
        layers.nats_layer(os.environ),
        layers.environment_layer(os.environ, known),
        layers.flag_layer(overrides),
    ]
    result: list[Layer] = []
    for layer in found:
        if isinstance(name := layer.values.get(("server", "context")), str):
            result.append(layers.context_layer(name))
        result.append(layer)
    return result


def _literal_secrets(found: list[Layer], origins: Mapping[SettingPath, str]) -> Iterator[Problem]:
    """Secrets written where others read them: in the file, or on the command line. Their values are not repeated."""
    for layer in found:
        for key, value in layer.values.items():
            if isinstance(value, str) and value and _is_secret(key, value):
                fix = _LITERAL_FIX.get(key[0], "put it into a variable and name the variable")
                yield Problem(
                    "DX110", "error", "", ".".join(key), layer.origins[key], None, "a secret is written out here", fix
                )


def _is_secret(key: SettingPath, value: str) -> bool:
    if key == ("server", "url"):
        return "@" in value  # a user alone is a token
    if key[:2] == ("server", "tls") or key[0] not in ("lm", "server", "pools"):
        return False
    if key[2:3] == ("limits",):
        return False  # tokens of a model, and whatever that was meant to be
    if key[0] == "pools" and key[2:3] == ("env",) and value.startswith("$"):
        return False  # the name of a variable
    return bool(_SECRET.fullmatch(key[-1])) or layers.has_login(value)


def _problem(error: ErrorDetails, merged: Mapping[str, Any], origins: Mapping[SettingPath, str]) -> Problem:
    key = _written_key(tuple(str(part) for part in error["loc"]), merged)
    origin = layers.origin_of(key, origins)
    context = error.get("ctx", {})
    if error["type"] == "extra_forbidden":
        code, message, fix = _unknown(key, origin)
    elif error["type"] == "missing":
        code, message, fix = "DX105", "is missing", f"write {'.'.join(key)} = …"
        origin = layers.origin_of(key[:-1], origins)  # a missing key has no origin; its table has one
    elif key[:2] == ("defaults", "call") and error["input"] in not_built.CHOICES.get(key[-1], ()):
        code, message, fix = (
            not_built.CODE,
            f"{error['input']!r} is not built in this version",
            "choose another",
        )
    elif error["type"] == "dspex":
        code, message, fix = context["code"], error["msg"], context["fix"]
    else:
        said = error["msg"].removeprefix("Value error, ")
        shown = repr(error["input"])
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        code, message = "DX105", f"{shown} will not do: {said[:1].lower()}{said[1:]}"
        fix = "correct the value; dspex config show says where each one came from"
    return together.problem_at(code, ".".join(key), origin, message, fix)


def _unknown(key: SettingPath, origin: str) -> tuple[str, str, str]:
    """Code, message and fix for a key that no table has."""
    if fix := not_built.fix_of(".".join(key)):
        return not_built.CODE, "is not built in this version", fix
    message = f"there is no setting {key[-1]!r}"
    table = next((t for t in Settings.model_fields if key[0].startswith(f"{t}_")), None)
    if origin.startswith("env ") and len(key) == 1 and table:
        return "DX104", message, f"did you mean DSPEX_{table.upper()}__{key[0][len(table) + 1 :].upper()}?"
    return "DX104", message, _suggestion(key)


def _written_key(loc: SettingPath, merged: Mapping[str, Any]) -> SettingPath:
    """pydantic's path without the names of union members, which nobody wrote."""
    key: list[str] = []
    at: Any = merged
    for part in loc:
        if isinstance(at, Mapping) and part != "[key]":  # so pydantic says that the name itself is wrong
            key.append(part)
            at = at.get(part)
    return tuple(key)


def _model_at(key: SettingPath) -> type[BaseModel] | None:
    at: Any = Settings
    for part in key:
        if isinstance(at, type) and issubclass(at, BaseModel):
            known = at.model_fields.get(part)
            at = _inner(known.annotation) if known else None
        else:
            at = _inner(get_args(at)[1]) if get_origin(at) is dict else None
    return at if isinstance(at, type) and issubclass(at, BaseModel) else None


def _inner(annotation: Any) -> Any:
    """`X` of `X | None`."""
    if get_origin(annotation) in (Union, UnionType):
        return next(a for a in get_args(annotation) if a is not type(None))
    return annotation


def _suggestion(key: SettingPath) -> str:
    model = _model_at(key[:-1])
    names = list(model.model_fields) if model else []
    if close := difflib.get_close_matches(key[-1], names, n=1):
        return f"did you mean {'.'.join((*key[:-1], close[0]))}?"
    return f"one of: {', '.join(names)}"


def _all_of(problems: list[Problem]) -> ConfigError:
    first = problems[0]
    text = "\n".join(f"{p.place}: {p.message}" for p in problems)
    return ConfigError(text, code=first.code, fix=first.fix, node=first.node, problems=problems)
