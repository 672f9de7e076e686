"""What a model or a tool said, in an answer as the journal keeps it; of a model that is the form that DSPy's cache has."""

from __future__ import annotations

from typing import Any, Literal

from dspex.bus.records import Usage
from dspex.bus.serving.programs.exchanges import Exchange


def exchange(
    kind: Literal["model", "tool"],
    name: str,
    asked: object,
    answer: object,
    used: Usage | None,
    seconds: float,
    journaled: bool = False,
) -> Exchange:
    """What is kept of a request. `answer`: as the journal keeps it, or a text."""
    usage = {name: value for name, value in vars(used).items() if value} if used is not None else {}
    return Exchange(kind, name, asked, _said(answer), usage, round(seconds, 4), journaled)


def _said(answer: Any) -> Any:
    """The text that a model replied with; of several the list; of one that is no text, such as the use of a tool, all."""
    if not isinstance(answer, dict):
        return answer
    if "_dspy_format" in answer:
        return _alone([_text(one) for one in answer.get("outputs") or ()] or answer.get("responses"))
    if "litellm" in answer:
        return _alone([_choice(one) for one in answer["body"].get("choices") or ()] or answer["body"])
    if answer.keys() <= {"value", "typed"}:  # of a tool
        return answer.get("value")
    return answer


def _alone(replies: Any) -> Any:
    return replies[0] if isinstance(replies, list) and len(replies) == 1 else replies


def _text(reply: Any) -> Any:
    return reply["text"] if isinstance(reply, dict) and {name for name, value in reply.items() if value} == {"text"} else reply


def _choice(choice: Any) -> Any:
    message = choice.get("message") or choice
    said = {name: value for name, value in message.items() if value and name != "role"}
    return message["content"] if set(said) == {"content"} else said
