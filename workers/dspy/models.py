"""Language model profiles → `dspy.LM`. Keys come with the configuration, and are sent nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy
from dspy import lm15

from dspex.workers.config import LOCAL_DEFAULTS, SPARE, PoolConfig, Profile, adapter_of, key_of, need_local

ADAPTERS: Mapping[str, Any] = {"chat": dspy.ChatAdapter, "json": dspy.JSONAdapter, "xml": dspy.XMLAdapter}


class Models:
    """The profiles of a pool as `dspy.LM` objects, made once and shared: each holds a pool of connections."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._made: dict[tuple[str, str | None], dspy.LM] = {}

    def profile(self, name: str) -> Profile:
        """The profile called `name`. Raises ConfigError."""
        return self._config.profile(name)

    def lm(self, name: str, local: str | None, timeout: float, params: Mapping[str, object]) -> dspy.LM:
        """The profile's LM for one call. `local`: where the local model's server is; `params`: of the call."""
        key = (name, local if self.profile(name).local else None)
        if key not in self._made:
            self._made[key] = self._make(self.profile(name), local)
        return self._made[key].copy(timeout=timeout + SPARE, **params)

    def adapter(self, name: str | None, wanted: str | None) -> dspy.Adapter:
        """The adapter of a call (`adapter_of`).

        The chat adapter's own second try with JSON is off: retries belong to the engine, which counts and records them.
        """
        kind = adapter_of(self.profile(name) if name else None, wanted)
        return ADAPTERS[kind]() if kind == "json" else ADAPTERS[kind](use_json_adapter_fallback=False)

    def _make(self, profile: Profile, local: str | None) -> dspy.LM:
        shared: dict[str, Any] = {"cache": False, "num_retries": 0}
        if profile.local:
            _declare_local()
            return dspy.LM(profile.model, api_base=need_local(profile, local), **{**LOCAL_DEFAULTS, **profile.params, **shared})
        key = key_of(profile, self._config)
        if profile.base_url:
            # a server that wants no key still gets one: without it the client refuses to call
            shared |= {"api_base": profile.base_url, "api_key": key or "none"}
        elif key:
            shared["api_key"] = key
        return dspy.LM(profile.model, **{**profile.params, **shared})


def _declare_local() -> None:
    """Register models called `local/…` with DSPy as following a JSON schema; without it the JSON adapter would not send one."""
    access = lm15.AccessPolicy(
        provider="local",
        supports=lm15.EndpointSupport(complete=True, stream=True),
        base_url="http://127.0.0.1/v1",  # required, and not used: each LM has its own api_base
    )
    definition = lm15.ProviderDefinition.chat(access, compat=lm15.OpenAIChatCompat(), placeholder_key="none")
    lm15.register_provider(definition, supports=lm15.ModelSupport(response_schema=True))
