"""The requests that DSPy makes, by the journal of their call: each of a model, and each use of a tool.

A request of a model is answered where DSPy looks into its own cache, and in the form that it keeps there, so all that comes
behind is DSPy's own: adapters, callbacks, history.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import dspy
from pydantic import BaseModel

from dspex.bus.records import Usage
from dspex.operators.native.lm.completion import MOST_TOKENS
from dspex.workers.dspy.versions import installed, litellm_import, litellm_requests
from dspex.workers.journal import requests as journal
from dspex.workers.journal.making import making
from dspex.workers.journal.requests import Requests, WhatIsAsked
from dspex.workers.journal.tools import ause, marks_of, use

_REQUESTS: Final = "dspex_requests"  # beside DSPy's own settings, as in replies.py
# Of DSPy 3.4 and newer; before, LiteLLM makes the requests (versions/litellm_requests.py).
call_result: Any = installed.client("call_result")
execution: Any = installed.client("execution")
legacy_outputs: Any = installed.client("legacy_outputs")
_EXECUTE: Any = getattr(execution, "execute", None)
_AEXECUTE: Any = getattr(execution, "aexecute", None)
_CALL, _ACALL = dspy.Tool.__call__, dspy.Tool.acall

# What is stored of a request, besides its messages: all else may hold keys, headers and addresses.
_NAMED: Final = frozenset(
    {
        *("temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "n", "stop", "seed", "rollout_id"),
        *("presence_penalty", "frequency_penalty", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice"),
        *("parallel_tool_calls", "reasoning_effort", "modalities"),
    }
)
_OF_A_BODY: Final = ("id", "object", "created", "model", "choices", "output", "usage", "incomplete_details")


def look() -> None:
    """Have every model and every tool of DSPy look into the journal, in calls that `asking` runs."""
    if dspy.Tool.__call__ is _call:
        return
    if execution is None:
        litellm_requests.look(_current, _asked_litellm, _body, lambda usage: replace(tokens({"": usage}), requests=1))
    else:
        execution.execute, execution.aexecute = _execute, _aexecute
    dspy.Tool.__call__, dspy.Tool.acall = _call, _acall
    journal.FINDERS.append(_current)


def asking(requests: Requests) -> dict[str, Any]:
    """What `dspy.context` needs for one call."""
    return {_REQUESTS: requests}


def _current() -> Requests | None:
    found: Requests | None = dspy.settings.get(_REQUESTS)
    return found


def tokens(found: Mapping[str, Mapping[str, Any]]) -> Usage:
    """Tokens read and written, over all models that were called."""
    read = sum(int(t.get("prompt_tokens") or t.get("input_tokens") or 0) for t in found.values())
    written = sum(int(t.get("completion_tokens") or t.get("output_tokens") or 0) for t in found.values())
    cached = sum(int((t.get("prompt_tokens_details") or {}).get("cached_tokens") or 0) for t in found.values())
    read, written, cached = (min(max(0, count), MOST_TOKENS) for count in (read, written, cached))
    return Usage(read, written, cached_tokens=cached)


def _used(result: Any) -> Usage:
    return replace(tokens({"": result.usage}), requests=1)


# -- models
def _execute(lm: Any, call: Any) -> Any:
    requests = _current()
    if requests is None:
        return _EXECUTE(lm, call)
    turn = requests.before_blocking(_asked(call))
    if turn.found is not None and turn.answered:
        return call_result.CallResult.load(turn.found.answer)
    with making(requests, turn):
        result = _EXECUTE(lm, call)
    requests.after_blocking(turn, _kept(result), _used(result))
    return result


async def _aexecute(lm: Any, call: Any) -> Any:
    requests = _current()
    if requests is None:
        return await _AEXECUTE(lm, call)
    turn = await requests.before(_asked(call))
    if turn.found is not None and turn.answered:
        return call_result.CallResult.load(turn.found.answer)
    await litellm_import.need(messages=call.legacy.get("messages"), by=lm)
    with making(requests, turn):
        result = await _AEXECUTE(lm, call)
    await requests.after(turn, _kept(result), _used(result))
    return result


def _asked(call: Any) -> WhatIsAsked:
    """What is asked, whatever profile is asked: its model, server and own parameters are not part of it."""
    if call.request is not None:
        about = {name: value for name, value in execution.request_to_dict(call.request).items() if name != "model"}
        about["rollout_id"] = call.kwargs.get("rollout_id")
    else:
        about = {name: value for name, value in call.kwargs.items() if name in _NAMED}
        about |= {"messages": call.legacy["messages"], "rollout_id": call.legacy.get("rollout_id")}
    return WhatIsAsked("model", "", json.loads(json.dumps(about, default=_schema)))


def _asked_litellm(given: Mapping[str, Any]) -> WhatIsAsked:
    about = {name: value for name, value in given.items() if name in _NAMED or name == "messages"}
    return WhatIsAsked("model", "", json.loads(json.dumps(about, default=_schema)))


def _schema(value: object) -> object:
    """A class that says how a reply is to look; of anything else its name, which has no address in it."""
    if isinstance(value, type) and issubclass(value, BaseModel):
        return value.model_json_schema()
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else type(value).__name__


def _kept(result: Any) -> dict[str, Any]:
    """An answer as DSPy's cache keeps it, but for what the server sent besides."""
    raw = None if result.responses else legacy_outputs.plain(result.raw)
    return {
        "_dspy_format": call_result.CACHE_FORMAT,
        "responses": [call_result.response_to_dict(response) for response in result.responses],
        "outputs": legacy_outputs.plain(result.outputs),
        "usage": {},
        "cost": None,
        "raw": _body(raw) if isinstance(raw, dict) else None,
        "response_model": result.response_model,
    }


def _body(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {name: raw[name] for name in _OF_A_BODY if name in raw}


# -- tools
def _of_a_module(tool: Any) -> bool:
    """Whether it is one that an agent of DSPy's made for itself: that it is finished is nothing that it has done."""
    return bool(str(getattr(tool.func, "__module__", "")).startswith("dspy.predict."))


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    requests, marks = _current(), marks_of(self.func)
    if requests is None or not marks.record or args or _of_a_module(self):
        return _CALL(self, *args, **kwargs)
    return use(requests, self.name, marks, kwargs, lambda: _CALL(self, **kwargs), returns=self.func)


async def _acall(self: Any, *args: Any, **kwargs: Any) -> Any:
    requests, marks = _current(), marks_of(self.func)
    if requests is None or not marks.record or args or _of_a_module(self):
        return await _ACALL(self, *args, **kwargs)
    return await ause(requests, self.name, marks, kwargs, lambda: _ACALL(self, **kwargs), returns=self.func)
