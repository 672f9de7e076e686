"""Settings: every value that configures a dspex process, with the place where it was written (API.md, section 4).

Durations are kept in seconds and sizes in bytes, whatever unit they were written in. A secret is never kept: settings
hold the name of the variable that has it, so they can be printed, and handed to a child process as JSON.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, ValidationInfo, model_validator

from dspex.bus.errors import ConfigError
from dspex.bus.records import DEFAULT_POOL
from dspex.bus.settings import layers
from dspex.bus.settings.called.profiles import LMProfile
from dspex.bus.settings.server import HttpSettings, ServerSettings, TelemetrySettings, TokenSettings
from dspex.bus.settings.tables import BudgetSettings, Defaults, EngineSettings, PoolSettings
from dspex.bus.settings.values import AppName, PoolName, ProfileName, SettingsTable, Texts

LOCAL_MODEL = "local/smollm2-135m"


def _folder_name(folder: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", folder.name).strip("-_")[:64] or "app"


class Settings(SettingsTable):
    """All settings. `Settings()` has the defaults; `Settings.load()` reads file and environment.

    Both raise ConfigError with every problem at once in `.problems`.

    Attributes:
        app: the namespace: one stream and one set of pools. Default: the folder's name.
        topologies: targets, `module:attr` or YAML files.
        path: folders put on `sys.path` so that refs are found, relative to `root`.
    """

    app: AppName = Field(default_factory=lambda: _folder_name(Path.cwd()))
    topologies: Texts = ()
    path: Texts = (".",)
    server: ServerSettings = ServerSettings()
    engine: EngineSettings = EngineSettings()
    defaults: Defaults = Defaults()
    lm: dict[ProfileName, LMProfile] = Field(default_factory=lambda: {"local": LMProfile(model=LOCAL_MODEL)}, min_length=1)
    pools: dict[PoolName, PoolSettings] = Field(default_factory=lambda: {DEFAULT_POOL: PoolSettings()}, min_length=1)
    telemetry: TelemetrySettings = TelemetrySettings()
    budgets: dict[ProfileName, BudgetSettings] = Field(default_factory=dict[str, BudgetSettings])
    http: HttpSettings = HttpSettings()
    calls: dict[str, TokenSettings] = Field(default_factory=dict[str, TokenSettings])

    _root: Path = PrivateAttr(default_factory=Path.cwd)
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _problems_in_our_words(cls, values: Any, build: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        from dspex.bus.settings.load import checked

        return checked(values, build, info.context)

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

    @property
    def timeouts(self) -> dict[str, float]:
        """Seconds that calls have, by their pool, where they say nothing themselves."""
        return {name: pool.timeout for name, pool in self.pools.items() if pool.timeout is not None}

    def pool(self, name: str, **flags: int | None) -> PoolSettings:
        """Those of a pool, with what flags say in place of the file. Raises ConfigError where the two do not go together."""
        given = {flag: value for flag, value in flags.items() if value is not None}
        if not given:
            return self.pools[name]
        values = self.model_dump()
        values["pools"][name] |= given
        return type(self).model_validate(values, context={("pools", name, flag): f"--{flag}" for flag in given}).pools[name]

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

    def priceless(self, lms: Iterable[str]) -> list[str]:
        """The profiles among these of which nobody knows what their tokens cost; a local model's cost nothing."""
        return [name for name in lms if (lm := self.lm.get(name)) is not None and lm.price is None and not lm.local]

    def lms_of(self, pool: str) -> list[str]:
        """The profiles that calls of a pool may use, whose keys its workers get: its `lm` and `lms`, and those of
        `defaults.call.lm`; all where it names neither.
        """
        settings = self.pools[pool]
        if not settings.lms and not settings.lm:
            return list(self.lm)
        default = settings.lm or ("main" if "main" in self.lm else None)
        return list(dict.fromkeys([*([default] if default else []), *settings.lms, *(self.defaults.call.lm or ())]))

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
