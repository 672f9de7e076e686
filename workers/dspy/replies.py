"""What a model said at the end of its reply: DSPy takes a reply that was cut, or refused, for an answer like any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dspy

from dspex.operators.native.lm.finish import incomplete


class Model(dspy.LM):  # type: ignore[misc]  # Any to mypy, which does not read DSPy
    """A model of a profile. A call of it raises InvalidOutput where the reply was cut, and LMRefused where there is none.

    A program may catch that, as any other error of a model. `ends`: the finish reason of each reply, in order; copies that a
    program makes write to the same list. None: nobody asks.
    """

    ends: list[str] | None = None

    def __call__(self, *args: Any, **kw: Any) -> Any:
        with dspy.context(disable_history=False):  # for `update_history`, which keeps none
            return super().__call__(*args, **kw)

    async def acall(self, *args: Any, **kw: Any) -> Any:
        with dspy.context(disable_history=False):
            return await super().acall(*args, **kw)

    def update_history(self, entry: Mapping[str, Any]) -> None:
        """Look at what DSPy is about to return: only here it says what the server answered."""
        answered = entry["response"]
        for one in answered if isinstance(answered, tuple) else (answered,):
            for end, text, refusal in _ends(one):
                if self.ends is not None:
                    self.ends.append(end)
                if (error := incomplete(end, text, refusal, _written(entry["usage"]))) is not None:
                    raise error


def _ends(response: Any) -> Iterator[tuple[str, str, str]]:
    """(finish reason, text, refusal) of each candidate, in the server's own words where DSPy kept them."""
    body = getattr(response, "provider_data", None)
    choices = _get(body, "choices") or _get(response, "choices")
    if isinstance(choices, Sequence) and choices and not isinstance(choices, str):
        for choice in choices:
            message = _get(choice, "message")
            text = _get(message, "content") or _get(choice, "text")  # of a text completion
            yield _word(_get(choice, "finish_reason")), _word(text), _word(_get(message, "refusal"))
        return
    parts = getattr(getattr(response, "message", None), "parts", ())
    refused = [p.text for p in parts if type(p).__name__ == "RefusalPart"]
    texts = [p.text for p in parts if type(p).__name__ == "TextPart"]
    end = _get(response, "finish_reason") or _get(_get(response, "incomplete_details"), "reason")  # of the responses API
    yield _word(end), "".join(texts), "".join(refused)


def _get(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def _word(value: object) -> str:
    return value if isinstance(value, str) else ""


def _written(usage: Any) -> int:
    found = _get(usage, "completion_tokens")
    return found if isinstance(found, int) else 0
