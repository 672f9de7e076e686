"""`dspex doctor`: do the language models answer? Each is sent one small call, as a worker would send it.

A profile with a wrong key or URL looks right until it is used, and where calls have a fallback also then. What is called by
OpenAI's chat API is asked directly; any other provider is asked by DSPy, in the interpreter of a pool that uses the profile.
A local model is not asked: a pool starts it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from dspex.bus.errors import ConfigError, DspexError, LMRefused, LMUnavailable, RateLimited
from dspex.bus.settings.called.profiles import LMProfile
from dspex.bus.settings.model import Settings
from dspex.engine.cli.server.diagnosis import Diagnosis, fault
from dspex.operators.native.lm.endpoint import Endpoint
from dspex.operators.native.lm.native_support import body_params, model_name
from dspex.operators.native.lm.provider_errors import short, without_key
from dspex.workers.models import weights

WITHIN: Final = 20.0  # seconds that a model has to answer
_START = 40.0  # more, for an interpreter to import DSPy
_PROMPT = "Reply with the one word: ok"
_LONGEST = 16  # tokens, where the profile limits them at all; a server may know no such limit
_ELSEWHERE = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
_OPENAI = "https://api.openai.com/v1"
_BY_DSPY = """
import json, sys
said = json.load(sys.stdin)
import dspy
try:
    dspy.LM(said["model"], cache=False, num_retries=0, timeout=said["timeout"], **said["params"])(said["prompt"])
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
else:
    print(json.dumps([]))
"""


async def models(settings: Settings, *, ask: bool) -> list[Diagnosis]:
    """A diagnosis of each profile. Keys are named by their variables only: no value of one is ever printed."""
    return await asyncio.gather(*(_model(settings, name, profile, ask) for name, profile in settings.lm.items()))


async def _model(settings: Settings, name: str, profile: LMProfile, ask: bool) -> Diagnosis:
    key = f"lm.{name}"
    if profile.local:
        try:
            weights.require(profile.model)
        except ConfigError as e:
            return fault(key, e)
        return Diagnosis(key, True, f"{profile.model} is installed; a pool starts it")
    if profile.key_env is not None and not os.environ.get(profile.key_env):
        message = f"{profile.model}; the variable {profile.key_env}, named by key_env, is not set"
        return Diagnosis(key, False, message, f"export {profile.key_env}")
    has = f"{profile.model} needs no key" if profile.key_env is None else f"{profile.model}; {profile.key_env} is set"
    if not ask:
        return Diagnosis(key, True, f"{has}; not asked")
    began = time.monotonic()
    try:
        await _asked(settings, name, profile)
    except DspexError as e:
        which = f"with the key in {profile.key_env}" if profile.key_env else "without a key"
        return Diagnosis(key, False, f"{profile.model}, asked {which}, did not answer: {e.message}", _fix(key, profile, e))
    return Diagnosis(key, True, f"{has}; it answered in {time.monotonic() - began:.1f} s")


def _fix(key: str, profile: LMProfile, error: DspexError) -> str:
    url = f"{key}.base_url" if profile.base_url else "the network"
    if isinstance(error, LMRefused):
        return f"correct the key in {profile.key_env}, or {key}.model" if profile.key_env else f"name its key: {key}.key_env"
    if isinstance(error, LMUnavailable):
        return f"start the model's server, or correct {url}" if profile.base_url else f"check {url}"
    if isinstance(error, RateLimited):
        return "wait, or have the provider raise the limit"
    return error.fix


async def _asked(settings: Settings, name: str, profile: LMProfile) -> None:
    """Raise what goes wrong with one call."""
    key = os.environ[profile.key_env] if profile.key_env else None
    model = model_name(profile.model)
    if model is None:
        await _asked_by_dspy(settings, name, profile, key)
        return
    base = profile.base_url or next((url for v in _ELSEWHERE if (url := os.environ.get(v))), _OPENAI)
    params = body_params(profile.params)
    if "max_completion_tokens" in params:
        params["max_completion_tokens"] = _LONGEST
    body = {"model": model, "messages": [{"role": "user", "content": _PROMPT}], **params}
    async with Endpoint(base, key or ("none" if profile.base_url else None)) as endpoint:
        await endpoint.complete(body, WITHIN)


async def _asked_by_dspy(settings: Settings, name: str, profile: LMProfile, key: str | None) -> None:
    pools = [pool for pool in settings.pools if name in settings.lms_of(pool)] or list(settings.pools)
    python = settings.pools[pools[0]].python or sys.executable
    params: dict[str, Any] = dict(profile.params) | ({"api_key": key} if key else {})
    params |= {"api_base": profile.base_url, "api_key": key or "none"} if profile.base_url else {}
    said = {"model": profile.model, "prompt": _PROMPT, "timeout": WITHIN, "params": params}
    found = await _answer_of(python, said)
    if found:
        kind, text = found
        refused = any(word in kind for word in ("Auth", "BadRequest", "Invalid", "NotFound", "Permission"))
        error = LMRefused if refused else LMUnavailable
        raise error(without_key(short(f"{kind}: {text}"), key or ""))


async def _answer_of(python: str, said: Mapping[str, Any]) -> list[str]:
    """What the interpreter's DSPy said: nothing, or the kind and the text of an error. The key goes to it on stdin alone."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-c", _BY_DSPY, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, cwd="/"
        )
    except OSError as e:
        return ["LMUnavailable", f"{python} cannot be run: {e.strerror}"]
    try:
        async with asyncio.timeout(_START + WITHIN):
            out, _ = await process.communicate(json.dumps(said).encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        return ["CallTimeout", f"no answer within {_START + WITHIN:.0f} s"]
    try:
        found: list[str] = json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        return ["LMUnavailable", f"{python} has no DSPy that could ask it"]
    return found
