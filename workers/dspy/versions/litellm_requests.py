"""The requests that DSPy makes of models before 3.4, by LiteLLM, by the journal of their call: see ../requests.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import dspy

from dspex.workers.journal.making import making
from dspex.workers.journal.requests import OpenRequest, Requests, WhatIsAsked

_KINDS: Final = ("ModelResponse", "TextCompletionResponse", "ResponsesAPIResponse")  # LiteLLM's classes of answers


def look(
    current: Callable[[], Requests | None],
    asked: Callable[[Mapping[str, Any]], WhatIsAsked],
    kept: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    used: Callable[[Mapping[str, Any]], Any],
) -> None:
    """Have every model look into the journal that `current` gives. To be called once a process.

    Args:
        asked: what a request is, by its parameters and messages.
        kept: what is stored of an answer. used: its tokens.
    """
    forward, aforward = dspy.LM.forward, dspy.LM.aforward

    def _forward(self: Any, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        requests = current()
        if requests is None:
            return forward(self, prompt, messages, **kwargs)
        turn = requests.before_blocking(asked(_whole(self, prompt, messages, kwargs)))
        if (found := _found(turn)) is not None:
            return found
        with making(requests, turn):
            result: Any = forward(self, prompt, messages, **kwargs)
        requests.after_blocking(turn, _stored(result, kept), used(dict(result.usage)))
        return result

    async def _aforward(self: Any, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        requests = current()
        if requests is None:
            return await aforward(self, prompt, messages, **kwargs)
        turn = await requests.before(asked(_whole(self, prompt, messages, kwargs)))
        if (found := _found(turn)) is not None:
            return found
        with making(requests, turn):
            result: Any = await aforward(self, prompt, messages, **kwargs)
        await requests.after(turn, _stored(result, kept), used(dict(result.usage)))
        return result

    dspy.LM.forward, dspy.LM.aforward = _forward, _aforward


def _whole(lm: Any, prompt: Any, messages: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {**lm.kwargs, **kwargs, "messages": messages or [{"role": "user", "content": prompt}]}


def _stored(result: Any, kept: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
    return {"litellm": type(result).__name__, "body": kept(result.model_dump(mode="json"))}


def _found(turn: OpenRequest) -> Any:
    """The answer that the journal has, as LiteLLM gave it; None where there is none, or that of another version of DSPy."""
    if turn.found is None or not turn.answered:
        return None
    import litellm

    answer: Any = turn.found.answer
    kind = answer.get("litellm") if isinstance(answer, dict) else None
    return getattr(litellm, kind)(**answer["body"]) if kind in _KINDS else None
