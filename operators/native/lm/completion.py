"""An answer of a chat-completions server, whole or in pieces: the text of the model, and the tokens that it used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

import orjson

from dspex.bus.errors import CallError, InvalidOutput, LMRefused, LMUnavailable
from dspex.bus.records import Usage
from dspex.operators.native.lm.provider_errors import excerpt, of_body, word

Object: TypeAlias = Mapping[str, object]  # a JSON object that a server sent

MOST_TOKENS = (1 << 53) - 1  # counted for an answer: a server may send any number, and a record's numbers have 64 bits
_NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer of a model.

    Attributes:
        text: "" where there is none (a refusal, a call of a tool).
        usage: tokens; the cost is not known here.
        model: the server's name of it. finish: why it stopped ("stop", "length", …), "" where the server does not tell.
    """

    text: str
    usage: Usage = _NO_USAGE
    model: str = ""
    finish: str = ""


def read(body: bytes, where: str) -> Completion:
    """The completion in the body of an answer. Raises LMUnavailable for another body, and the error that the body holds."""
    try:
        data = orjson.loads(body)
    except ValueError:
        raise LMUnavailable(f"{where} answered with something that is not JSON: {excerpt(body)!r}") from None
    if not isinstance(data, dict):
        raise _no_completion(body, where)
    answer = cast("Object", data)
    choice = _choice(answer, body, where)
    usage = _usage(answer.get("usage"))
    return Completion(_content(choice.get("message")), usage, word(answer.get("model")), word(choice.get("finish_reason")))


def _no_completion(body: bytes, where: str) -> CallError:
    return LMUnavailable(f"{where} answered with JSON that is no completion: {excerpt(body)!r}")


def _choice(data: Object, body: bytes, where: str) -> Object:
    if data.get("error"):
        raise of_body(data["error"], where)
    found = data.get("choices") or [{}]
    if not isinstance(found, list):
        raise _no_completion(body, where)
    choices = cast("list[object]", found)
    if not isinstance(choices[0], dict):
        raise _no_completion(body, where)
    if len(choices) > 1:
        raise LMRefused(f"{where} gave {len(choices)} answers to a request for one")
    return cast("Object", choices[0])


def _content(message: object) -> str:
    """The text of a message, or of a piece of one; "" where there is none."""
    content = cast("Object", message).get("content") if isinstance(message, dict) else None
    if isinstance(content, list):  # some servers send it in parts
        parts = (cast("Object", part) for part in cast("list[object]", content) if isinstance(part, dict))
        return "".join(word(part.get("text")) for part in parts if part.get("type") == "text")
    return content if isinstance(content, str) else ""


def _usage(data: object) -> Usage:
    if not isinstance(data, dict):
        return _NO_USAGE
    counts = cast("Object", data)
    return Usage(_tokens(counts.get("prompt_tokens")), _tokens(counts.get("completion_tokens")))


def _tokens(value: object) -> int:
    """A number of tokens; 0 for any other value: the answer is worth more than its count."""
    return min(value, MOST_TOKENS) if isinstance(value, int) and value >= 0 else 0


class Pieces:
    """Reads an answer that comes in pieces (server-sent events). Feed it bytes as they come; `end` gives the whole."""

    def __init__(self, where: str, limit: int) -> None:
        self._where, self._limit = where, limit
        self._rest: list[bytes] = []  # the parts of a line whose end has not come; joined only once, because there may be many
        self._texts: list[str] = []
        self._size = 0
        self._usage, self._model, self._finish = _NO_USAGE, "", ""
        self.done = False  # whether the server sent [DONE]

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
            found = orjson.loads(data)
        except ValueError:
            raise self._broken(data) from None
        if not isinstance(found, dict):
            raise self._broken(data)
        event = cast("Object", found)
        choice = _choice(event, data, self._where)
        self._model = word(event.get("model")) or self._model
        self._finish = word(choice.get("finish_reason")) or self._finish
        if event.get("usage"):
            self._usage = _usage(event["usage"])
        if text := _content(choice.get("delta")):
            self._texts.append(text)
            yield text

    def _broken(self, data: bytes) -> CallError:
        return LMUnavailable(f"{self._where} sent a part of a stream that cannot be read: {excerpt(data)!r}")

    def end(self) -> Completion:
        """The whole answer. Raises LMUnavailable where the server broke off."""
        if not self.done and not self._finish:
            raise LMUnavailable(f"{self._where} broke off in the middle of its answer")
        return Completion("".join(self._texts), self._usage, self._model, self._finish)


def too_large(where: str, limit: int) -> InvalidOutput:
    """The error for an answer of more than `limit` bytes."""
    return InvalidOutput(f"{where}: the answer is larger than {limit >> 20} MiB")
