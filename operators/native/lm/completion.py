"""An answer of a chat-completions server, whole or in pieces: the text of the model, and the tokens that it used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

import orjson

from dspex.bus.errors import CallError, InvalidOutput, LMRefused, LMUnavailable
from dspex.bus.records import Usage
from dspex.operators.native.lm.finish import incomplete
from dspex.operators.native.lm.provider_errors import excerpt, of_body, word

Object: TypeAlias = Mapping[str, object]  # a JSON object that a server sent

MOST_TOKENS = (1 << 53) - 1  # counted for an answer: a server may send any number, and a record's numbers have 64 bits
_LONGEST_FINISH = 40  # characters of a finish reason: a word, and every record has it
_NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer of a model.

    Attributes:
        text: "" where there is none (a refusal, a call of a tool).
        usage: tokens, and why the model stopped ("stop", "length", …); the cost is not known here.
        model: the server's name of it. refusal: what it said in place of an answer; "" for nothing.
    """

    text: str
    usage: Usage = _NO_USAGE
    model: str = ""
    refusal: str = ""

    def incomplete(self) -> CallError | None:
        """The error where this is not a whole answer."""
        return incomplete(self.usage.finish, self.text, self.refusal, self.usage.output_tokens)


def read(body: bytes, where: str) -> Completion:
    """The completion in the body of an answer. Raises LMUnavailable for another body, and the error that the body holds."""
    try:
        data = _json(body)
    except (ValueError, RecursionError):
        raise LMUnavailable(f"{where} answered with something that is not JSON: {excerpt(body)!r}") from None
    if not isinstance(data, dict):
        raise _no_completion(body, where)
    answer = cast("Object", data)
    choice = _choice(answer, body, where)
    message = choice.get("message")
    usage = _usage(answer.get("usage"), _finish(choice))
    return Completion(_content(message), usage, word(answer.get("model")), _refusal(message))


def _json(body: bytes) -> object:
    """What a server sent. Raises ValueError, RecursionError.

    What orjson refuses is read as DSPy's client reads it, by Python: a byte order mark, half of a surrogate pair.
    """
    try:
        return orjson.loads(body)
    except ValueError:
        return json.loads(body)


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


def _refusal(message: object) -> str:
    return word(cast("Object", message).get("refusal")) if isinstance(message, dict) else ""


def _finish(choice: Object) -> str:
    return word(choice.get("finish_reason"))[:_LONGEST_FINISH]


def _usage(data: object, finish: str) -> Usage:
    counts = cast("Object", data) if isinstance(data, dict) else {}
    details = counts.get("prompt_tokens_details")
    cached = _tokens(cast("Object", details).get("cached_tokens")) if isinstance(details, dict) else 0
    read, written = _tokens(counts.get("prompt_tokens")), _tokens(counts.get("completion_tokens"))
    return Usage(read, written, cached_tokens=cached, finish=finish)


def _tokens(value: object) -> int:
    """A number of tokens; 0 for any other value: the answer is worth more than its count."""
    return min(value, MOST_TOKENS) if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


class Pieces:
    """Reads an answer that comes in pieces (server-sent events). Feed it bytes as they come; `end` gives the whole."""

    def __init__(self, where: str, limit: int) -> None:
        self._where, self._limit = where, limit
        self._rest: list[bytes] = []  # the parts of a line whose end has not come; joined only once, because there may be many
        self._texts: list[str] = []
        self._size = 0
        self._usage: object = None
        self._model, self._finish = "", ""
        self._refusals: list[str] = []
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
            found = _json(data)
        except (ValueError, RecursionError):
            raise self._broken(data) from None
        if not isinstance(found, dict):
            raise self._broken(data)
        event = cast("Object", found)
        choice = _choice(event, data, self._where)
        self._model = word(event.get("model")) or self._model
        self._finish = _finish(choice) or self._finish
        self._usage = event.get("usage") or self._usage
        if said := _refusal(choice.get("delta")):
            self._refusals.append(said)
        if text := _content(choice.get("delta")):
            self._texts.append(text)
            yield text

    def _broken(self, data: bytes) -> CallError:
        return LMUnavailable(f"{self._where} sent a part of a stream that cannot be read: {excerpt(data)!r}")

    def end(self) -> Completion:
        """The whole answer. Raises LMUnavailable where the server broke off."""
        if not self.done and not self._finish:
            raise LMUnavailable(f"{self._where} broke off in the middle of its answer")
        usage = _usage(self._usage, self._finish)
        return Completion("".join(self._texts), usage, self._model, "".join(self._refusals))


def too_large(where: str, limit: int) -> InvalidOutput:
    """The error for an answer of more than `limit` bytes."""
    return InvalidOutput(f"{where}: the answer is larger than {limit >> 20} MiB")
