"""Language model profiles → `dspy.LM`. Keys are read here, from this process's environment, and go nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import dspy
from dspy import lm15

from dspex.bus.errors import ConfigError
from dspex.workers.config import PoolConfig, Profile, missing_key

_ADAPTERS: Mapping[str, Any] = {"chat": dspy.ChatAdapter, "json": dspy.JSONAdapter, "xml": dspy.XMLAdapter}
_LOCAL_DEFAULTS: Mapping[str, Any] = {"temperature": 0.0, "max_tokens": 256}  # a small model may never stop by itself
_SPARE = 1.0  # seconds that HTTP may take over the attempt's timeout: the parent's limit comes first


class Models:
    """The profiles of a pool as `dspy.LM` objects, made once and shared: each holds a pool of connections."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._made: dict[tuple[str, str | None], dspy.LM] = {}

    def names(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """The profiles that a call tries, in order: those that it names, else the pool's default. May be empty."""
        default = self._config.default_profile()
        return wanted or ((default.name,) if default else ())

    def profile(self, name: str) -> Profile:
        """The profile called `name`. Raises ConfigError."""
        return self._config.profile(name)

    def lm(self, name: str, local: str | None, timeout: float, params: Mapping[str, Any]) -> dspy.LM:
        """The profile's LM for one call. `local`: where the local model's server is; `params`: of the call."""
        key = (name, local if self.profile(name).local else None)
        if key not in self._made:
            self._made[key] = self._make(self.profile(name), local)
        return self._made[key].copy(timeout=timeout + _SPARE, **params)

    def adapter(self, name: str | None, wanted: str | None) -> dspy.Adapter:
        """The adapter of a call: its own, else the profile's, else chat; always json for a local model.

        A local model follows a format only while its decoding is held to a schema, which the JSON adapter asks for.
        The chat adapter's own second try with JSON is off: retries belong to the engine, which counts and records them.
        """
        profile = self.profile(name) if name else None
        kind = "json" if profile and profile.local else wanted or (profile and profile.adapter) or "chat"
        if kind not in _ADAPTERS:
            raise ConfigError(f"there is no adapter {kind!r}", code="DX116", fix="use chat, json or xml")
        return _ADAPTERS[kind]() if kind == "json" else _ADAPTERS[kind](use_json_adapter_fallback=False)

    def _make(self, profile: Profile, local: str | None) -> dspy.LM:
        shared: dict[str, Any] = {"cache": False, "num_retries": 0}
        if profile.local:
            if local is None:
                raise ConfigError(f"lm.{profile.name}: its model server does not run", fix="dspex model ls", node=profile.name)
            _declare_local()
            return dspy.LM(profile.model, api_base=local, **{**_LOCAL_DEFAULTS, **profile.params, **shared})
        key = os.environ.get(profile.key_env) if profile.key_env else None
        if profile.key_env and not key:
            raise missing_key(profile, self._config.name)
        if profile.base_url:
            # a server that wants no key still gets one: without it the client refuses to call
            shared |= {"api_base": profile.base_url, "api_key": key or "none"}
        elif key:
            shared["api_key"] = key
        return dspy.LM(profile.model, **{**profile.params, **shared})


def _declare_local() -> None:
    """Tell DSPy that models called `local/…` hold to a JSON schema; without it the JSON adapter would not send one."""
    access = lm15.AccessPolicy(
        provider="local",
        supports=lm15.EndpointSupport(complete=True, stream=True),
        base_url="http://127.0.0.1/v1",  # a place to stand: each LM says its own api_base
    )
    definition = lm15.ProviderDefinition.chat(access, compat=lm15.OpenAIChatCompat(), placeholder_key="none")
    lm15.register_provider(definition, supports=lm15.ModelSupport(response_schema=True))
