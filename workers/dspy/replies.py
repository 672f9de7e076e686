"""What a model said at the end of its reply: DSPy takes a reply that was cut, or refused, for an answer like any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

import dspy
from dspy.utils.usage_tracker import UsageTracker

from dspex.operators.native.lm.finish import incomplete
from dspex.workers.dspy.versions import installed

_ENDS: Final = (
    "dspex_ends"  # beside DSPy's own settings, so it goes wherever those go: into tasks, threads and copies of models
)
_SAID: Final = {"TextPart": "text", "DataPart": "value"}  # parts of a reply with what the model said, and where it is


@cache
def look() -> None:
    """Have every `dspy.LM` look at its replies in calls that `asking` runs, also one that a program makes itself.

    A call of it raises InvalidOutput where the reply was cut, and LMRefused where there is none. A program may catch that, as
    any other error of a model.
    """
    installed.watch(_look, lambda: dspy.settings.get(_ENDS) is not None)


class Spent(UsageTracker):  # type: ignore[misc]  # DSPy has no types
    """The tokens of one call, also of the threads that it starts: for those DSPy copies its tracker, and drops the copies."""

    @property
    def requests(self) -> int:
        """How many a model has answered."""
        return sum(len(of_one) for of_one in self.usage_data.values())

    def __deepcopy__(self, memo: object) -> Spent:
        return self


def asking() -> dict[str, Any]:
    """What `dspy.context` needs for one call, with its own list of finish reasons: one of each reply, in order."""
    return {"disable_history": False, _ENDS: []}  # `_look` keeps none


def last(context: Mapping[str, Any]) -> str:
    """The finish reason of the last reply of a call, by what `asking` made for it; "" where there was none."""
    return next(reversed(context[_ENDS]), "")


def _look(entry: Mapping[str, Any]) -> None:
    """Look at what DSPy is about to return."""
    ends: Any = dspy.settings.get(_ENDS)
    answered = entry["response"]
    for one in answered if isinstance(answered, tuple) else (answered,):
        for end, text, refusal in _ends(one):
            ends.append(end)
            if (error := incomplete(end, text, refusal, _written(entry["usage"]))) is not None:
                raise error


def _ends(response: Any) -> Iterator[tuple[str, str, str]]:
    """(finish reason, text, refusal) of each candidate, in the server's own words where DSPy kept them."""
    body = getattr(response, "provider_data", None)
    choices = _get(body, "choices") or _get(response, "choices")
    if isinstance(choices, Sequence) and not isinstance(choices, str) and any(map(_is_whole, choices)):
        for choice in choices:
            message = _get(choice, "message")
            text = _get(message, "content") or _get(choice, "text")  # of a text completion
            yield _word(_get(choice, "finish_reason")), _word(text), _word(_get(message, "refusal"))
        return
    parts = getattr(getattr(response, "message", None), "parts", ())
    refused = [p.text for p in parts if type(p).__name__ == "RefusalPart"]
    texts = [str(getattr(p, _SAID[kind])) for p in parts if (kind := type(p).__name__) in _SAID]
    end = _get(response, "finish_reason") or _get(_get(response, "incomplete_details"), "reason")  # of the responses API
    yield _word(end), "".join(texts), "".join(refused)


def _is_whole(choice: Any) -> bool:
    """Whether it is an answer, and not the last piece of one that was streamed: that is put together elsewhere."""
    return _get(choice, "message") is not None or _get(choice, "text") is not None


def _get(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def _word(value: object) -> str:
    return value if isinstance(value, str) else ""


def _written(usage: Any) -> int:
    found = _get(usage, "completion_tokens")
    return found if isinstance(found, int) else 0
