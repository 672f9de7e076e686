"""An answer of a chat-completions server, whole or in pieces, as the text of a model and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from dspex.bus.errors import CallError, InvalidOutput, LMRefused, LMUnavailable
from dspex.bus.records import Usage
from dspex.operators.native.lm.provider_errors import excerpt, of_body, word

MOST_TOKENS = (1 << 53) - 1  # of an answer: a server may say any number, and a record's numbers have 64 bits
_NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model said.

    Attributes:
        text: "" where it said nothing (a refusal, a call of a tool).
        usage: tokens; the cost is not known here.
        model: as the server names it. finish: why it stopped ("stop", "length", …), "" where the server does not say.
    """

    text: str
    usage: Usage = _NO_USAGE
    model: str = ""
    finish: str = ""


def read(body: bytes, where: str) -> Completion:
    """The completion in the body of an answer. Raises LMUnavailable for what is none, and the error that it holds."""
    try:
        data = orjson.loads(body)
    except ValueError:
        raise LMUnavailable(f"{where} answered with something that is not JSON: {excerpt(body)!r}") from None
    if not isinstance(data, dict):
        raise _no_completion(body, where)
    choice = _choice(data, body, where)
    message = choice.get("message")
    text = _text(message.get("content")) if isinstance(message, dict) else ""
    return Completion(text, _usage(data.get("usage")), word(data.get("model")), word(choice.get("finish_reason")))


def _no_completion(body: bytes, where: str) -> CallError:
    return LMUnavailable(f"{where} answered with JSON that is no completion: {excerpt(body)!r}")


def _choice(data: Mapping[str, Any], body: bytes, where: str) -> Mapping[str, Any]:
    if data.get("error"):
        raise of_body(data["error"], where)
    choices = data.get("choices") or [{}]
    if not isinstance(choices, list) or not isinstance(choices[0], dict):
        raise _no_completion(body, where)
    if len(choices) > 1:
        raise LMRefused(f"{where} gave {len(choices)} answers to a request for one")
    return choices[0]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # in parts, as some servers do
        return "".join(word(p.get("text")) for p in content if isinstance(p, dict) and p.get("type") == "text")
    return ""


def _usage(data: Any) -> Usage:
    if not isinstance(data, dict):
        return _NO_USAGE
    return Usage(_tokens(data.get("prompt_tokens")), _tokens(data.get("completion_tokens")))


def _tokens(value: Any) -> int:
    """A number of tokens; 0 for nonsense, which must not cost us the answer beside it."""
    return min(value, MOST_TOKENS) if isinstance(value, int) and value >= 0 else 0


class Pieces:
    """Reads an answer that comes in pieces (server-sent events). Feed it bytes as they come; `end` gives the whole."""

    def __init__(self, where: str, limit: int) -> None:
        self._where, self._limit = where, limit
        self._rest: list[bytes] = []  # of a line whose end has not come: joined once, for a line may come in many parts
        self._said: list[str] = []
        self._size = 0
        self._usage, self._model, self._finish = _NO_USAGE, "", ""
        self.done = False  # the server said that nothing follows

    def feed(self, data: bytes) -> Iterator[str]:
        """The pieces of text in these bytes. Raises the error that a server sends in the middle of a stream."""
        self._size += len(data)
        if self._size > self._limit:
            raise too_large(self._where, self._limit)
        self._rest.append(data)
        if b"\n" not in data:
            return
        *lines, rest = b"".join(self._rest).split(b"\n")
        self._rest = [rest]
        for line in lines:
            if line.startswith(b"data:") and not self.done:
                yield from self._event(line[5:].strip())

    def _event(self, data: bytes) -> Iterator[str]:
        if data == b"[DONE]":
            self.done = True
            return
        try:
            event = orjson.loads(data)
        except ValueError:
            raise self._broken(data) from None
        if not isinstance(event, dict):
            raise self._broken(data)
        choice = _choice(event, data, self._where)
        self._model = word(event.get("model")) or self._model
        self._finish = word(choice.get("finish_reason")) or self._finish
        if event.get("usage"):
            self._usage = _usage(event["usage"])
        delta = choice.get("delta")
        if isinstance(delta, dict) and (text := _text(delta.get("content"))):
            self._said.append(text)
            yield text

    def _broken(self, data: bytes) -> CallError:
        return LMUnavailable(f"{self._where} sent a piece that is none: {excerpt(data)!r}")

    def end(self) -> Completion:
        """The whole. Raises LMUnavailable where the server broke off."""
        if not self.done and not self._finish:
            raise LMUnavailable(f"{self._where} broke off in the middle of its answer")
        return Completion("".join(self._said), self._usage, self._model, self._finish)


def too_large(where: str, limit: int) -> InvalidOutput:
    """The error for an answer of more than `limit` bytes."""
    return InvalidOutput(f"{where}: the answer is larger than {limit >> 20} MiB")
