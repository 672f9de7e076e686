"""Where settings come from: a TOML file, the environment, nats CLI contexts, flags; laid over each other.

A layer is nested data plus the origin of each leaf, so that every value, and every complaint about one, can name the
place where it was written.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast
from urllib.parse import SplitResult, urlsplit, urlunsplit

from dspex.bus.errors import ConfigError

SettingPath: TypeAlias = tuple[str, ...]

_PREFIX = "DSPEX_"
BUILD_STARTED = "DSPEX_BUILD_STARTED"
"""The folder whose code a command has begun anew with (`dspex replay --build`)."""
# Where weights of models are kept (of the machine, not of an application), and all settings, from a parent process.
_NOT_SETTINGS = {"DSPEX_CACHE", "DSPEX_SETTINGS_JSON", BUILD_STARTED}
# scheme://user:password@, https://token@, or a DSN of words
_LOGIN = re.compile(
    r"://[^/?#\s]*:[^/?#\s]*@|https?://[^/?#\s]+@|(^|[\s;&?])(password|passwd|pwd)\s*=\s*[^\s;&]", re.IGNORECASE
)
WITH_URL = ("NATS_URL", "DSPEX_SERVER__URL")
"""Variables whose URL may have a login in it."""
_NATS = {
    "NATS_URL": "url",
    "NATS_CREDS": "creds",
    "NATS_NKEY": "nkey",
    "NATS_USER": "user",
    "NATS_CONTEXT": "context",
}
_CONTEXT = {"url": "url", "creds": "creds", "nkey": "nkey", "user": "user"}
_CONTEXT_TLS = {"ca": "ca", "cert": "cert", "key": "key"}


@dataclass
class Layer:
    """Values from one kind of place. `origins`: of the leaves, or of a whole table."""

    values: dict[SettingPath, Any] = field(default_factory=dict)
    origins: dict[SettingPath, str] = field(default_factory=dict)

    def add(self, key: SettingPath, value: Any, origin: str) -> None:
        """Add the leaves of a value. Raises ConfigError (DX105) for text that is not Unicode: nothing could be done with it."""
        for path, leaf in flatten(value, key):
            if any(map(_is_half, (*path, leaf))):
                name = ".".join(path).encode("ascii", "backslashreplace").decode()
                raise ConfigError(f"{name} ({origin}) is not text in UTF-8", code="DX105", fix="write it in UTF-8")
            self.values[path] = leaf
            self.origins[path] = origin


def _is_half(leaf: object) -> bool:
    """Whether there is half of a surrogate pair in a value, or a byte that was not UTF-8, which Python reads as one."""
    if isinstance(leaf, str):
        return not leaf.isascii() and any("\ud800" <= character <= "\udfff" for character in leaf)
    return isinstance(leaf, list) and any(map(_is_half, cast("list[object]", leaf)))


def flatten(value: Any, key: SettingPath = ()) -> Iterator[tuple[SettingPath, Any]]:
    """The leaves of nested maps. An empty map is a leaf: `pools.x = {}` says that there is a pool x."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from flatten(inner, (*key, str(name)))
    else:
        yield key, value


def merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], dict[SettingPath, str]]:
    """The layers laid over each other, later ones on top: nested data, and the origin of each leaf."""
    merged: dict[str, Any] = {}
    origins: dict[SettingPath, str] = {}
    for layer in layers:
        for key, value in layer.values.items():
            at = merged
            for name in key[:-1]:
                inner = at.get(name)
                at[name] = at = inner if isinstance(inner, dict) else {}
            if value == {} and isinstance(at.get(key[-1]), dict):
                continue
            at[key[-1]] = value
            origins[key] = layer.origins[key]
    return merged, origins


def origin_of(key: SettingPath, origins: Mapping[SettingPath, str]) -> str:
    """Where `key`, or what it is part of, was written; "default" where it was not."""
    below = (o for k, o in origins.items() if k[: len(key)] == key)
    above = (origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in origins)
    return next(above, None) or next(below, "default")


# -- environment ---------------------------------------------------------------------------------------------------
def environment_layer(env: Mapping[str, str], known: Mapping[str, Any]) -> Layer:
    """`DSPEX_POOLS__GPU__SIZE=4` is pools.gpu.size. `known`: data so far, whose spelling of a name wins (`my-pool`)."""
    layer = Layer()
    for name in sorted(n for n in env if n.startswith(_PREFIX) and n not in _NOT_SETTINGS):
        words = name[len(_PREFIX) :].lower().split("__")
        layer.add(_spelled(words, known), _value(env[name]), f"env {name}")
    _without_password(layer)
    return layer


def variable(key: str) -> str:
    """The variable of a setting, by its dotted key."""
    return _PREFIX + key.replace(".", "__").upper()


def _spelled(words: list[str], known: Mapping[str, Any]) -> SettingPath:
    key: list[str] = []
    at: Any = known
    for word in words:
        names = at if isinstance(at, Mapping) else {}
        name = next((n for n in names if n.lower().replace("-", "_") == word), word)
        key.append(name)
        at = names.get(name)
    return tuple(key)


def _value(text: str) -> Any:
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):  # no JSON, or a number of thousands of digits
            return text  # the check of the setting complains, and names the variable
    return text


def nats_layer(env: Mapping[str, str]) -> Layer:
    """The variables that the nats tools read."""
    layer = Layer()
    for name, setting in _NATS.items():
        if env.get(name):
            layer.add(("server", setting), env[name], f"env {name}")
    if env.get("NATS_PASSWORD"):
        layer.add(("server", "password_env"), "NATS_PASSWORD", "env NATS_PASSWORD")
    _without_password(layer)
    return layer


def _without_password(layer: Layer) -> None:
    """A login inside a URL stays in its variable: the settings keep the URL without it, and the variable's name."""
    key = ("server", "url")
    url, origin = layer.values.get(key), layer.origins.get(key, "")
    if not isinstance(url, str) or (login := login_of(url, origin)) is None:
        return
    user, password = login
    layer.values[key] = without_user(url)
    if password is None:
        layer.add(("server", "token_env"), origin.removeprefix("env "), origin)
    else:
        layer.add(("server", "user"), user, origin)
        layer.add(("server", "password_env"), origin.removeprefix("env "), origin)


def _urls(text: str) -> list[SplitResult]:
    """The parts of the comma-separated URLs. Raises ConfigError (DX105), which does not show them: they may have a password."""
    try:
        parts = [urlsplit(u if "://" in u else f"nats://{u}") for u in (part.strip() for part in text.split(","))]
        _ = [part.port for part in parts]  # of a password with a comma the beginning would be the port of the first
        return parts
    except ValueError:
        fix = "write nats://host:4222; special characters of a password as %XX"
        raise ConfigError("the URL of the server is none", code="DX105", node="server.url", fix=fix) from None


def login_of(url: str, origin: str) -> tuple[str, str | None] | None:
    """User and password inside the comma-separated URLs, or a token and None; None where there is none.

    Raises ConfigError (DX105) for two that differ: a connection has one.
    """
    found = {(part.username or "", part.password) for part in _urls(url) if "@" in part.netloc}
    if len(found) > 1:
        fix = "write it once, or name it in server.user and server.password_env"
        raise ConfigError(f"the URLs of {origin} have different logins", code="DX105", node="server.url", fix=fix)
    return found.pop() if found else None


def has_login(text: str) -> bool:
    """Whether a text has a login in it: URLs with a password; a URL of a web service with a token; a DSN that says
    `password=`. A password may have any characters, also some that make the URL none.
    """
    return bool(_LOGIN.search(text))


def schemes_of(url: str) -> list[str]:
    """The scheme of each of the comma-separated URLs; "nats" where there is none."""
    return [part.scheme for part in _urls(url)]


def without_user(url: str) -> str:
    """The URL, or the comma-separated URLs, without `user:password@`."""
    return ",".join(urlunsplit(p._replace(netloc=p.netloc.rpartition("@")[2])) for p in _urls(url))


# -- nats contexts -------------------------------------------------------------------------------------------------
def context(name: str) -> dict[str, Any]:
    """A context of the nats CLI, as it stands in its file. Raises ConfigError (DX107)."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    path = Path(home) / "nats" / "context" / f"{name}.json"
    try:
        data: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as e:
        fix = "nats context ls shows the names; or say where the server is with --server"
        raise ConfigError(f"no nats context {name!r}: {path} cannot be read", code="DX107", fix=fix) from e
    return data


def context_layer(name: str) -> Layer:
    """What a context says about the server, without its secrets: those are read when the connection is made."""
    data, layer = context(name), Layer()
    for theirs, ours in _CONTEXT.items():
        if data.get(theirs):
            layer.add(("server", ours), data[theirs], f"context {name}")
    if isinstance(url := layer.values.get(("server", "url")), str):
        layer.values["server", "url"] = without_user(url)  # the login in it is read with the other secrets
    for theirs, ours in _CONTEXT_TLS.items():
        if data.get(theirs):
            layer.add(("server", "tls", ours), data[theirs], f"context {name}")
    return layer


# -- flags ---------------------------------------------------------------------------------------------------------
def flag_layer(overrides: Mapping[str, Any]) -> Layer:
    """Keyword arguments: nested maps, or `__` between levels. None: not given."""
    layer = Layer()
    for name, value in overrides.items():
        for key, leaf in flatten(value, tuple(name.split("__"))):
            if leaf is not None:
                layer.add(key, leaf, "flag")
    return layer
