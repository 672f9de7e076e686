"""Language model profiles → `dspy.LM`. Keys come with the configuration, and are sent nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from dspex.workers.answerers.attempt import kept
from dspex.workers.config import LOCAL_DEFAULTS, SPARE, PoolConfig, Profile, adapter_of, key_of, need_local
from dspex.workers.dspy.versions import installed, litellm_import


class Models:
    """The profiles of a pool as `dspy.LM` objects, made once and shared: each holds a pool of connections."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._made: dict[tuple[str, str | None], dspy.LM] = {}
        self._for_calls: dict[object, dspy.LM] = {}  # those, with the time and the parameters of calls
        self._ready: set[str] = set()

    def profile(self, name: str) -> Profile:
        """The profile called `name`. Raises ConfigError."""
        return self._config.profile(name)

    def lm(self, name: str, local: str | None, timeout: float, params: Mapping[str, object]) -> dspy.LM:
        """The profile's LM for one call, whose program may change it. `local`: where the local model's server is; `params`: of
        the call.
        """
        key = (name, local if self.profile(name).local else None)
        if key not in self._made:
            self._made[key] = self._make(self.profile(name), local)
        asked = key, timeout, str(params)
        return _own(kept(self._for_calls, asked, lambda: self._made[key].copy(timeout=timeout + SPARE, **params)))

    async def ready(self, name: str) -> None:
        """Have all imported by which DSPy asks the profile's model: that takes seconds, and other calls go on meanwhile."""
        if name not in self._ready:
            await litellm_import.need(of=self.profile(name))
            self._ready.add(name)

    def adapter(self, name: str | None, wanted: str | None) -> dspy.Adapter:
        """The adapter of a call (`adapter_of`). Raises ProgramError where the installed DSPy has none."""
        profile = self.profile(name) if name else None
        return installed.adapter(adapter_of(profile, wanted), schema=profile is not None and profile.local)

    def _make(self, profile: Profile, local: str | None) -> dspy.LM:
        shared: dict[str, Any] = {"cache": False, "num_retries": 0}
        if profile.local:
            known: dict[str, Any] = {**LOCAL_DEFAULTS, **profile.params, **shared, "api_key": "none"}
            made = dspy.LM(installed.local_model(profile.model), api_base=need_local(profile, local), **known)
            return litellm_import.mark(made)
        key = key_of(profile, self._config)
        if profile.base_url:
            # a server that wants no key still gets one: without it the client refuses to call
            shared |= {"api_base": profile.base_url, "api_key": key or "none"}
        elif key:
            shared["api_key"] = key
        return litellm_import.mark(dspy.LM(profile.model, **{**profile.params, **shared}))


def _own(lm: dspy.LM) -> dspy.LM:
    """A copy for one call, in which is its own what DSPy keeps apart in copies. `copy` does the same, and looks through all
    that the classes define each time: a tenth of what a call costs here.
    """
    made = object.__new__(type(lm))
    vars(made).update(vars(lm), history=[], callbacks=list(lm.callbacks or ()), kwargs=dict(lm.kwargs))
    return made
