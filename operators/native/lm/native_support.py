"""Whether native Predict can answer a call in place of DSPy, and if not, why not.

It can where its request is known to be the same, with the same bytes in the messages, and the same reply to give the same
outputs. All other calls go to DSPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast
from urllib.parse import urlsplit

from dspex.operators.native.lm.openai_models import json_mode, json_mode_known, reasons
from dspex.operators.native.prompts.values import has_a_known_form
from dspex.operators.native.prompts.versions import version_of
from dspex.operators.native.signature import Signature

_KINDS = ("predict", "chain_of_thought")
REASONING = "reasoning"
OPENAI, LOCAL = "openai/", "local/"


def why_not_native(
    kind: str,
    signature: Signature,
    adapter: str,
    model: str,
    params: Mapping[str, object],
    *,
    own_server: bool = False,
    version: str | None = None,
) -> str | None:
    """None where native Predict can answer, else the reason, as the end of a sentence.

    Args:
        kind: the kind of the call. model: its name in DSPy, "openai/gpt-4.1-mini".
        params: those of the profile and of the call together. own_server: see the function of this name.
        version: the version of DSPy whose requests are sent; None: the newest known one.
    """
    return why_not_native_signature(kind, signature) or why_not_native_model(
        model, adapter, params, own_server=own_server, version=version
    )


def why_not_native_signature(kind: str, signature: Signature) -> str | None:
    """The reason that does not depend on the model: the kind of call, or a type. None if there is none."""
    if kind not in _KINDS:
        return f"{kind} runs in DSPy only"
    if kind == "chain_of_thought" and any(f.name == REASONING for f in signature.fields):
        return f"the signature has a field {REASONING} of its own, which chain_of_thought adds"
    for field in signature.fields:
        if not has_a_known_form(field):
            return f"{field.name}: {field.type} is a type of DSPy's own"
    return None


def why_not_native_model(
    model: str,
    adapter: str,
    params: Mapping[str, object],
    *,
    own_server: bool = False,
    version: str | None = None,
) -> str | None:
    """The reason that depends on the model: its provider, its family, its parameters. None if there is none."""
    name, followed = model_name(model), version_of(version)
    if name is None:
        return f"{model} is not called by OpenAI's chat API: openai/… and local/… are"
    if not model.startswith(LOCAL):
        if reasons(name):
            return f"{model} is a reasoning model"
        if adapter == "json" and not followed.own_client and json_mode(name) is not None:
            return f"how DSPy {followed.name} asks for JSON is known only to LiteLLM's catalog of models"
        if adapter == "json" and not json_mode_known(name, own_server):
            return f"whether {model} takes a JSON schema is known only to DSPy's catalog of models"
    params = {**dict(followed.unasked), **params}
    for key, value in params.items():
        if value is not None and (key not in _PARAMS or not _PARAMS[key](value)):
            return f"{key}={value!r} is given to DSPy as it is"
    if "max_tokens" in params and "max_completion_tokens" in params:
        return "max_tokens and max_completion_tokens are both given"
    return None


def model_name(model: str) -> str | None:
    """The name that the server knows: without "openai/" or "local/"; None for another provider's."""
    for prefix in (OPENAI, LOCAL):
        if model.startswith(prefix) and len(model) > len(prefix):
            return model.removeprefix(prefix)
    return None


def own_server(base_url: str | None) -> bool:
    """Whether this is another server than OpenAI's: its models are in no catalog, unless a name is well known."""
    return base_url is not None and urlsplit(base_url).hostname != "api.openai.com"


def _between(low: float, high: float) -> Callable[[object], bool]:
    return lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and low <= v <= high


def _whole(low: int | None = None) -> Callable[[object], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v in _INTEGERS and (low is None or v >= low)


def _stops(value: object) -> bool:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)):
        return False
    return all(isinstance(t, str) and t and _is_unicode(t) for t in cast("list[object]", texts))


def _is_unicode(text: str) -> bool:
    """Whether the text has no lone surrogate: only then can it be sent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_INTEGERS = range(-(1 << 63), 1 << 64)  # the integers that orjson can write into a request
# Parameters of which it is known how DSPy sends them, and the values that DSPy sends unchanged.
_PARAMS: Mapping[str, Callable[[object], bool]] = {
    "temperature": _between(0, 2),
    "top_p": _between(0, 1),
    "frequency_penalty": _between(-2, 2),
    "presence_penalty": _between(-2, 2),
    "max_tokens": _whole(1),
    "max_completion_tokens": _whole(1),
    "seed": _whole(),
    "stop": _stops,
    "n": lambda v: v == 1 and _whole()(v),
    "rollout_id": _whole(),
}


def body_params(params: Mapping[str, object], version: str | None = None) -> dict[str, object]:
    """Parameters that `why_not_native` allows, as DSPy writes them into a request. `version`: of DSPy; None: the newest."""
    followed = version_of(version)
    known = {k: v for k, v in {**dict(followed.unasked), **params}.items() if v is not None and k != "rollout_id"}
    if not followed.own_client:
        return known
    known.pop("n", None)
    limit = known.pop("max_tokens", None)
    if limit is not None:
        known["max_completion_tokens"] = limit
    stop = known.pop("stop", None)
    if stop:
        known["stop"] = [stop] if isinstance(stop, str) else list(cast("list[str]", stop))
    return known
