"""Settings: what a dspex process is told, each value with the place where it was written (API.md, section 4).

Durations are kept in seconds and sizes in bytes, whatever unit they were written in. A secret is never kept: settings
hold the name of the variable that has it, so they can be printed, and handed to a child process as JSON.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr
from pydantic_core import PydanticCustomError

from dspex.bus import duration, subjects
from dspex.bus.errors import ConfigError
from dspex.bus.settings import layers

LOCAL_MODEL = "local/smollm2-135m"
DEFAULT_POOL = "lightweight"


def _custom(e: ConfigError) -> PydanticCustomError:
    return PydanticCustomError("dspex", "{message}", {"message": e.message, "code": e.code, "fix": e.fix})


def _number(value: Any) -> Any:
    """A number that came as text, as every variable does."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value) else value


def _seconds(value: Any) -> float:
    try:
        return duration.seconds(_number(value))
    except ConfigError as e:
        raise _custom(e) from None


def _size(value: Any) -> int:
    try:
        return duration.size(value)
    except ConfigError as e:
        raise _custom(e) from None


def _token(value: Any) -> str:
    try:
        return subjects.token(str(value), "app")
    except ConfigError as e:
        raise _custom(e) from None


def _sync(value: Any) -> float | Literal["always"]:
    return "always" if value == "always" else _seconds(value)


def _list(value: Any) -> Any:
    """`a,b` from a variable."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Seconds: TypeAlias = Annotated[float, BeforeValidator(_seconds)]
Size: TypeAlias = Annotated[int, BeforeValidator(_size)]
Token: TypeAlias = Annotated[str, BeforeValidator(_token)]
Texts: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_list)]
Rate: TypeAlias = Annotated[str, Field(pattern=r"^\d+(\.\d+)?[kM]?/(s|min|h|day)$")]
Adapter: TypeAlias = Literal["chat", "json", "xml"]


class Table(BaseModel):
    """A table of the file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpSettings(Table):
    """What the gateway serves."""

    bind: str = ":8080"
    subjects: Texts = ()
    calls: dict[str, str] = {}


class TLSSettings(Table):
    """Paths of PEM files."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


class LocalServerSettings(Table):
    """The server that dspex starts itself. `sync_interval`: seconds, or "always" to fsync each write."""

    port: Annotated[int, Field(ge=-1, le=65535)] = 4222
    store: Path = Path(".dspex/jetstream")
    sync_interval: Annotated[float | Literal["always"], BeforeValidator(_sync)] = 120.0


class ServerSettings(Table):
    """Which NATS server, and how to log in. Without `url` dspex uses a local one."""

    url: str | None = None
    creds: str | None = None
    nkey: str | None = None
    user: str | None = None
    password_env: str | None = None
    token_env: str | None = None
    tls: TLSSettings | None = None
    context: str | None = None
    replicas: Literal[1, 3, 5] = 1
    local: LocalServerSettings = LocalServerSettings()

    def login(self) -> dict[str, str]:
        """Keyword arguments for connecting: user, password, token, creds, nkey; only those that are set.

        Here, and only here, secrets are read. Raises ConfigError (DX112) when a named variable is not set.
        """
        stored = layers.context(self.context) if self.context else {}
        found = {
            "user": self.user,
            "password": _secret(self.password_env, "server.password_env") or stored.get("password"),
            "token": _secret(self.token_env, "server.token_env") or stored.get("token"),
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
    return layers.password_of(value) if "://" in value else value


class CommitSettings(Table):
    """How much one commit may hold, and how long it may wait to grow."""

    max_events: Annotated[int, Field(ge=1, le=1000)] = 1000
    max_wait: Seconds = 0.02


class EngineSettings(Table):
    commit: CommitSettings = CommitSettings()
    lease: Seconds = 5.0
    stall_after: Seconds = 30.0
    claim_check_above: Size = 256 * 1024
    records: Seconds = 30 * 86400.0
    max_open_calls: Annotated[int, Field(ge=1)] = 10000


class RetrySettings(Table):
    """As `dspex.Retry`."""

    attempts: Annotated[int, Field(ge=1)] = 4
    backoff: Seconds = 1.0
    factor: Annotated[float, Field(ge=1)] = 2.0
    cap: Seconds = 60.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.2


class CallDefaults(Table):
    """CallOptions for every recorded operator. None: not set here."""

    pool: str | None = None
    lm: Texts | None = None
    config: dict[str, Any] | None = None
    adapter: Adapter | None = None
    timeout: Seconds | None = None
    deadline: Seconds | None = None
    retry: RetrySettings | None = None
    on_error: Literal["dead_letter", "skip"] | None = None
    order: Literal["any", "key", "serial"] | None = None
    affinity: Literal["none", "prefer", "require"] | None = None
    cache: Seconds | None = None
    route: Literal["auto", "worker", "native"] | None = None

    def options(self) -> dict[str, Any]:
        """Those that are set, by name."""
        return self.model_dump(exclude_none=True)


class Defaults(Table):
    call: CallDefaults = CallDefaults()


class LMLimits(Table):
    """Shared by all workers that use the profile."""

    requests: Rate | None = None
    tokens: Rate | None = None
    concurrent: Annotated[int | None, Field(ge=1)] = None
    cost: Annotated[str, Field(pattern=r"^\d+(\.\d+)? USD/(h|day|month)$")] | None = None


class LMPrice(Table):
    """USD per million tokens."""

    input: Annotated[float, Field(ge=0)] = 0.0
    output: Annotated[float, Field(ge=0)] = 0.0


class LMBreaker(Table):
    """After `failures` within `within` seconds the profile is not called for `open` seconds."""

    failures: Annotated[int, Field(ge=1)] = 5
    within: Seconds = 30.0
    open: Seconds = 15.0


class LMProfile(Table):
    """A named language model. `key_env`: the variable that has its key; None: it needs none."""

    model: str
    key_env: Annotated[str | None, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = None
    base_url: str | None = None
    adapter: Adapter | None = None
    params: dict[str, Any] = {}
    limits: LMLimits | None = None
    price: LMPrice | None = None
    breaker: LMBreaker = LMBreaker()

    @property
    def local(self) -> bool:
        """Whether the model runs on this machine, without key and network."""
        return self.model.startswith("local/")


class Recycle(Table):
    """A worker process is replaced after so many calls, or at this age in seconds."""

    calls: Annotated[int | None, Field(ge=1)] = None
    age: Seconds | None = None


class Restart(Table):
    """More than `max` restarts within `within` seconds: the pool is marked failed."""

    max: Annotated[int, Field(ge=0)] = 5
    within: Seconds = 60.0


class PoolSettings(Table):
    """The workers of one resource class: `size` processes with `slots` calls at once in each."""

    size: Annotated[int, Field(ge=0)] = 1
    slots: Annotated[int, Field(ge=1)] = 4
    lm: str | None = None
    memory: Size | None = None
    cpu: Annotated[float | None, Field(gt=0)] = None
    threads: Annotated[int, Field(ge=1)] = 1
    programs: Texts = ()
    env: dict[str, str] = {}
    recycle: Recycle = Recycle()
    restart: Restart = Restart()
    python: str | None = None
    timeout: Seconds | None = None
    gpus: Annotated[int, Field(ge=0)] = 0
    devices: Annotated[tuple[int, ...], BeforeValidator(_list)] = ()


class TelemetrySettings(Table):
    metrics: str | None = None
    log: str = "info"
    content: bool = False
    redact: Texts = ()


def _folder_name(folder: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", folder.name).strip("-_")[:64] or "app"


class Settings(Table):
    """All settings. `Settings()` has the defaults; `Settings.load()` reads file and environment.

    Attributes:
        app: the namespace: one stream and one set of pools. Default: the folder's name.
        topologies: targets, `module:attr` or YAML files.
        path: folders put on `sys.path` so that refs are found, relative to `root`.
    """

    app: Token = Field(default_factory=lambda: _folder_name(Path.cwd()))
    topologies: Texts = ()
    path: Texts = (".",)
    http: HttpSettings | None = None
    server: ServerSettings = ServerSettings()
    engine: EngineSettings = EngineSettings()
    defaults: Defaults = Defaults()
    lm: dict[str, LMProfile] = Field(default_factory=lambda: {"local": LMProfile(model=LOCAL_MODEL)}, min_length=1)
    pools: dict[str, PoolSettings] = Field(default_factory=lambda: {DEFAULT_POOL: PoolSettings()}, min_length=1)
    telemetry: TelemetrySettings = TelemetrySettings()

    _root: Path = PrivateAttr(default_factory=Path.cwd)
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, **overrides: Any) -> Settings:
        """Flags over environment over file over defaults.

        Args:
            path: the file, or a folder to look in; default: the nearest one upwards from the working directory.
            overrides: the flags; nested maps, or `server__url=...`. None: not given.

        Raises:
            ConfigError: with every problem at once in `.problems`.
        """
        from dspex.bus.settings.load import load

        return load(path, overrides)

    @property
    def root(self) -> Path:
        """The folder of the file, or the working directory; relative paths in settings start here."""
        return self._root

    @property
    def store(self) -> Path:
        """Where the local server keeps its streams."""
        return self._root / self.server.local.store

    @property
    def search_path(self) -> list[str]:
        """Absolute folders where refs are looked for."""
        return [str((self._root / folder).resolve()) for folder in self.path]

    def origins(self) -> dict[str, str]:
        """Where each value was written: "flag", "env NAME", "context NAME", "file:line" or "default", by dotted key."""
        written = {tuple(key.split(".")): origin for key, origin in self._origins.items()}
        leaves = layers.flatten(self.model_dump(mode="json"))
        return {".".join(key): layers.origin_of(key, written) for key, _ in leaves}

    def values(self) -> dict[str, Any]:
        """Every value by dotted key."""
        return {".".join(key): value for key, value in layers.flatten(self.model_dump(mode="json"))}

    def lm_of(self, pool: str) -> str:
        """The profile that a pool uses: its own, else `main`, else the only one. Raises ConfigError (DX113)."""
        if (settings := self.pools.get(pool)) and settings.lm:
            return settings.lm
        if "main" in self.lm:
            return "main"
        if len(self.lm) == 1:
            return next(iter(self.lm))
        names = ", ".join(self.lm)
        fix = f'pools.{pool}.lm = "…", or call one of them main'
        raise ConfigError(
            f"pool {pool} names no language model, and there are several: {names}", code="DX113", node=pool, fix=fix
        )

    def placed(self, root: Path, origins: Mapping[str, str]) -> Self:
        """These settings, read from `root` with these origins."""
        self._root, self._origins = root, dict(origins)
        return self

    def to_json(self) -> str:
        """For a child process; `from_json` reads it. No secret is in it: only names of variables."""
        values = self.model_dump(mode="json")
        return json.dumps({"values": values, "root": str(self._root), "origins": self._origins})

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The settings that `to_json` wrote."""
        data = json.loads(text)
        return cls.model_validate(data["values"]).placed(Path(data["root"]), data["origins"])
