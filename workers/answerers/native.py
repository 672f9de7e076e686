"""Native calls: predict and chain_of_thought without DSPy, which is never imported here."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from functools import lru_cache, partial

from dspex.bus.errors import CallTimeout, TopologyError
from dspex.bus.records import BEGAN, Outputs, Tried, Usage
from dspex.operators.native.lm.completion import Completion
from dspex.operators.native.lm.endpoint import Endpoint
from dspex.operators.native.lm.native_support import own_server, why_not_native
from dspex.operators.native.lm.predict import KINDS, Predict, Prediction
from dspex.operators.native.prompts import versions
from dspex.operators.native.signature import Signature
from dspex.workers.answerers.attempt import KEPT, Attempt, plain
from dspex.workers.config import LOCAL_DEFAULTS, SPARE, PoolConfig, Profile, adapter_of, key_of, need_local

_OPENAI = "https://api.openai.com/v1"
_ELSEWHERE = ("OPENAI_API_BASE", "OPENAI_BASE_URL")  # where these are set, DSPy calls another server, by another library


class Native:
    """Answers the calls that DSPy need not answer. The `Predict` of a call is made once and serves all slots at once."""

    route = "native"

    def __init__(self, pool: PoolConfig) -> None:
        self._pool = pool
        self._endpoints: dict[str, Endpoint] = {}
        installed = versions.installed()
        self.dspy_version = installed or versions.NEWEST.name  # whose prompts are followed
        self._predict = lru_cache(maxsize=KEPT)(self._make)

    def refuses(self, attempt: Attempt) -> str | None:
        if attempt.spec.route == "worker":
            return "its route is worker"
        made = self.predict_of(attempt)
        return made if isinstance(made, str) else None

    async def ask(self, attempt: Attempt) -> Outputs:
        """The outputs. Raises the error that fits what the model's server did, or what is wrong with its answer."""
        predict = self.predict_of(attempt)
        assert isinstance(predict, Predict), "only called where refuses() gave None"
        attempt.program = attempt.spec.program
        profile, work = self._pool.profile(attempt.lm), attempt.work
        attempt.spend(Usage(), profile)  # known to be nothing, should no answer come
        heard = partial(attempt.heard, profile=profile, since=time.monotonic())
        limit = work.timeout + SPARE
        if attempt.chunk is None and not attempt.spec.first_token_timeout:
            found = await predict.ask(work.inputs, timeout=limit, retry=False, heard=heard)
        else:
            found = await self._streamed(predict, attempt, limit, heard)
        return {name: plain(name, value) for name, value in found.outputs.items()}

    async def _streamed(
        self, predict: Predict, attempt: Attempt, limit: float, heard: Callable[[Completion], None]
    ) -> Prediction:
        """The prediction, told to who wants to know while it is made. Raises CallTimeout where it does not begin in time."""
        first, asked = attempt.spec.first_token_timeout, time.perf_counter()
        clock = asyncio.timeout(first or None)
        try:
            async with clock:

                def write(name: str, text: str) -> None:
                    if clock.when() is not None and not clock.expired():
                        clock.reschedule(None)
                        attempt.routing.append(Tried(attempt.lm, BEGAN, round((time.perf_counter() - asked) * 1000, 3)))
                    attempt.write(name, text)

                return await predict.told(attempt.work.inputs, write, timeout=limit, heard=heard)
        except TimeoutError as error:
            if not clock.expired():
                raise
            attempt.silent = True
            raise CallTimeout(f"lm.{attempt.lm} did not begin to answer within {first:g} s") from error

    def predict_of(self, attempt: Attempt) -> Predict | str:
        """What answers the call; why it cannot be answered here."""
        spec = attempt.spec
        if spec.kind not in KINDS:
            return f"{spec.kind} runs in DSPy only"
        if spec.state:
            return "DSPy loads saved states"
        config = json.dumps(spec.config, sort_keys=True, default=str) if spec.config else ""
        local = attempt.local if self._pool.profile(attempt.lm).local else None
        return self._predict(spec.kind, spec.signature_json, spec.adapter, config, attempt.lm, local)

    def _make(self, kind: str, plain: str, adapter: str | None, config: str, name: str, local: str | None) -> Predict | str:
        profile = self._pool.profile(name)
        try:
            signature = Signature.from_plain(json.loads(plain))
        except TopologyError as error:
            return error.message.splitlines()[0]
        form = adapter_of(profile, adapter)
        params = {**(LOCAL_DEFAULTS if profile.local else {}), **profile.params, **(json.loads(config) if config else {})}
        own = own_server(profile.base_url)
        followed = self.dspy_version
        why = why_not_native(kind, signature, form, profile.model, params, own_server=own, version=followed)
        if why := why or self._unreachable(profile):
            return why
        endpoint = self.endpoint_of(profile, local)
        return KINDS[kind](signature, endpoint, model=profile.model, adapter=form, params=params, version=followed)

    def _unreachable(self, profile: Profile) -> str | None:
        if profile.local:
            return None
        if elsewhere := [v for v in _ELSEWHERE if os.environ.get(v)]:
            return f"{elsewhere[0]} is set, which sends DSPy's calls elsewhere"
        if not profile.base_url and not profile.key_env and not os.environ.get("OPENAI_API_KEY"):
            return f"lm.{profile.name} names no key"
        return None

    def endpoint_of(self, profile: Profile, local: str | None) -> Endpoint:
        """How a profile's server is asked. One pool of connections for each server and key."""
        if profile.local:
            url, key = need_local(profile, local), "none"
        else:
            # a server that wants no key still gets one, as DSPy does it
            key = key_of(profile, self._pool) or ("none" if profile.base_url else os.environ["OPENAI_API_KEY"])
            url = profile.base_url or _OPENAI
        at = f"{url} {profile.key_env}"
        if at not in self._endpoints:
            self._endpoints[at] = Endpoint(url, key, connections=2 * self._pool.slots)  # some calls ask twice
        return self._endpoints[at]

    async def close(self) -> None:
        """Close the connections."""
        for endpoint in self._endpoints.values():
            await endpoint.close()
