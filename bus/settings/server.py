"""Settings under `server`, which NATS server, and how to log in; and under `http` and `calls`, what is offered over HTTP to
whom; and under `telemetry`. The only place where secrets are read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dspex.bus import subjects
from dspex.bus.errors import ConfigError
from dspex.bus.serving.keys.redaction import check_pattern
from dspex.bus.settings import layers
from dspex.bus.settings.values import (
    HostPort,
    LogLevels,
    NotEmpty,
    PositiveSize,
    Rate,
    SettingsTable,
    Texts,
    Variables,
    custom_error,
    interval,
    listed,
    number,
    without_effect,
)

SCHEMES = ("nats", "tls")
_NODE = re.compile(r"[^\s/]+/[^\s/]+")
_NAME = "^[a-z][a-z0-9_-]{0,47}$"  # of what stands in a path
LOGIN = ("creds", "nkey", "user", "password_env", "token_env", "tls", "context")
"""The settings that say how to log in."""


def _server_urls(text: str) -> str:
    try:
        wrong = [scheme for scheme in layers.schemes_of(text) if scheme not in SCHEMES]
    except ConfigError as e:
        raise custom_error(e) from None
    if wrong:
        raise ValueError(f"{wrong[0]}:// is not how a NATS server is reached; write nats://host:4222 or tls://host:4222")
    return text


def _inbox_prefix(text: str) -> str:
    if not re.fullmatch(subjects.INBOX + "[A-Za-z0-9_-]{0,64}", text):
        raise ValueError(f"{text!r} is no inbox prefix; it begins with {subjects.INBOX}, as in _INBOX_worker, and has no dots")
    return text


def need_events(pattern: str) -> None:
    """Raise ConfigError (DX105) for what is no subject, nor a wildcard over some, to which others may publish events."""
    fix = 'write tokens joined by dots: "orders.new", "orders.*" or "orders.>"'
    if not subjects.is_pattern(pattern):
        raise ConfigError(f"{pattern!r} is no subject", code="DX105", fix=fix)
    if subjects.is_own(pattern):
        raise ConfigError(
            f"{pattern!r} is a subject of dspex's own, and no event may come from elsewhere", code="DX105", fix=fix
        )


def _offered(pattern: str) -> str:
    try:
        need_events(pattern)
    except ConfigError as e:
        raise custom_error(e) from None
    return pattern


def _one_subject(text: str) -> str:
    if not subjects.is_subject(text):
        fix = 'write tokens joined by dots, without wildcards: "orders.new"'
        raise custom_error(ConfigError(f"{text!r} is no subject", code="DX105", fix=fix))
    return _offered(text)


def _target(text: str) -> str:
    if "->" not in text and not _NODE.fullmatch(text):
        raise ValueError('it is neither a signature nor a node; write "text -> lang", or "topology/node"')
    return text


ServerURLs: TypeAlias = Annotated[str, AfterValidator(_server_urls)]


_Patterns: TypeAlias = Annotated[tuple[Annotated[NotEmpty, AfterValidator(_offered)], ...], BeforeValidator(listed)]


class TLSSettings(SettingsTable):
    """Paths of PEM files."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    @model_validator(mode="after")
    def _a_key_is_of_a_certificate(self) -> Self:
        if self.key is not None and self.cert is None:
            raise without_effect("key", "there is no cert")
        return self


class LocalServerSettings(SettingsTable):
    """The server that dspex starts itself. `sync_interval`: seconds, or "always" to fsync each write."""

    port: Annotated[int, Field(ge=-1, le=65535)] = 4222
    store: Path = Path(".dspex/jetstream")
    sync_interval: Annotated[float | Literal["always"], BeforeValidator(interval)] = 120.0


class ServerSettings(SettingsTable):
    """Which NATS server, and how to log in. Without `url` dspex uses a local one.

    `inbox_prefix`: what the subjects begin with on which answers and deliveries come; one for each role, and nobody may hear
    what is for another.
    """

    url: ServerURLs | None = None
    creds: str | None = None
    nkey: str | None = None
    user: str | None = None
    password_env: str | None = None
    token_env: str | None = None
    tls: TLSSettings | None = None
    context: str | None = None
    inbox_prefix: Annotated[str, AfterValidator(_inbox_prefix)] = subjects.INBOX
    replicas: Annotated[Literal[1, 3, 5], BeforeValidator(number)] = 1
    local: LocalServerSettings = LocalServerSettings()

    def login(self) -> dict[str, str]:
        """Keyword arguments for connecting: user, password, token, creds, nkey; only those that are set.

        Here, and only here, secrets are read. Raises ConfigError (DX112) when a named variable is not set.
        """
        stored = layers.context(self.context) if self.context else {}
        user, password = layers.login_of(str(stored.get("url") or ""), f"context {self.context}") or (None, None)
        found = {
            "user": self.user or (user if password is not None else None),
            "password": _secret(self.password_env, "server.password_env") or stored.get("password") or password,
            "token": _secret(self.token_env, "server.token_env") or stored.get("token") or (None if password else user),
            "creds": self.creds,
            "nkey": self.nkey,
        }
        return {name: value for name, value in found.items() if value}


def _secret(variable: str | None, setting: str) -> str | None:
    if variable is None:
        return None
    if not (value := os.environ.get(variable)):
        raise ConfigError(
            f"the variable {variable}, named by {setting}, is not set",
            code="DX112",
            node=setting,
            fix=f"export {variable}",
        )
    if variable not in layers.WITH_URL:
        return value
    user, password = layers.login_of(value, f"env {variable}") or ("", None)
    return user if password is None else password


class HookSettings(SettingsTable):
    """A webhook, at `/v1/hooks/<name>`: whose signature is on it, the variable with the secret ("NEW,OLD": either is right),
    and the subject to which what it says is published.
    """

    scheme: Literal["github", "slack", "stripe"]
    secret_env: Variables
    subject: Annotated[NotEmpty, AfterValidator(_one_subject)]


class HttpSettings(SettingsTable):
    """What `dspex gateway`, `dspex run --http` and `dspex.asgi.app` offer.

    Attributes:
        bind: where it listens.
        subjects: to which events may be published; wildcards are allowed.
        calls: what may be called, by its name in the path: a deployed node `topology/node`, or a signature.
        hooks: webhooks, by their name in the path.
        max_body: bytes of a request.
    """

    bind: HostPort = "127.0.0.1:8080"
    subjects: _Patterns = ()
    calls: dict[Annotated[str, Field(pattern=_NAME)], Annotated[NotEmpty, AfterValidator(_target)]] = Field(
        default_factory=dict[str, str]
    )
    hooks: dict[Annotated[str, Field(pattern=_NAME)], HookSettings] = Field(default_factory=dict[str, HookSettings])
    max_body: PositiveSize = 1 << 20


class TokenSettings(SettingsTable):
    """Who has a bearer token, and what it is good for.

    Attributes:
        token_env: the variable with the token. "NEW,OLD": either is right.
        calls, subjects: which of those in `http`, by name; "*": all of them.
        read: it sees all runs, and what waits for approval. operate: it decides, cancels and scores, too.
        requests: so many in a time, of each gateway process. concurrent: so many calls at once, likewise.
    """

    token_env: Variables
    calls: Texts = ()
    subjects: _Patterns = ()
    read: bool = False
    operate: bool = False
    requests: Rate | None = None
    concurrent: Annotated[int | None, Field(ge=1)] = None


def secrets(names: str, setting: str) -> list[str]:
    """What the variables have that a setting names, "NEW,OLD". Raises ConfigError (DX112) where one is not set."""
    return [value for name in names.split(",") if (value := _secret(name, setting)) is not None]


def _patterns(names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(map(check_pattern, names))
    except ConfigError as e:
        raise custom_error(e) from None


class TelemetrySettings(SettingsTable):
    """What dspex says about itself.

    Attributes:
        log: levels, "info,dspex.engine=debug". metrics: where they are served, ":9464".
        content: prompts and answers in spans and in the log.
        redact: fields that are left out there, and of what a record keeps of its requests: "customer", "*.iban"; or a function,
            "module:name", which gets each text and gives what may be seen of it.
    """

    log: LogLevels = "info"
    metrics: HostPort | None = None
    content: bool = False
    redact: Annotated[Texts, AfterValidator(_patterns)] = ()
