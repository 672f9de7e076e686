"""Conversations as front ends send them, and answers as they read them: OpenAI's chat completions, AG-UI, and the AI SDK's UI
messages. Each goes to one call: the last message of the user is its text, and those before it its history, if it has one.

Sources: platform.openai.com "Chat completions"; docs.ag-ui.com "Events"; ai-sdk.dev "Stream protocols" (UI message stream, v1).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from sse_starlette.event import ServerSentEvent

from dspex.bus.errors import DspexError, InvalidInput
from dspex.bus.message import new_id
from dspex.engine.client.call import Result
from dspex.engine.client.calls.events import Accepted, Chunk, Progress
from dspex.engine.gateway.formats.events import data
from dspex.engine.gateway.problems import problem_of, status_of
from dspex.engine.gateway.shapes import CallShape

DONE: Final = "[DONE]"


class Conversation(NamedTuple):
    """What a front end asks. `turns`: see `CallShape.asked`. `more`: other inputs. `thread`, `run`: as it names them."""

    turns: Sequence[tuple[str, str]]
    more: Mapping[str, Any] = {}
    thread: str = ""
    run: str = ""


def conversation(body: Mapping[str, Any]) -> Conversation:
    """What a request of any of them says. Messages of other roles, and parts that are no text, are left out.

    Other inputs of the call are in `inputs`, or with AG-UI in `forwardedProps`. Raises InvalidInput.
    """
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise InvalidInput("there are no messages", fix='{"messages": [{"role": "user", "content": "…"}]}')
    turns = [turn for message in cast("list[object]", messages) if (turn := _turn(message)) is not None]
    more = body.get("inputs") or body.get("forwardedProps") or {}
    if not isinstance(more, dict):
        raise InvalidInput("inputs is no object", fix='"inputs": {"language": "en"}')
    thread, run = (body.get(name) for name in ("threadId", "runId"))
    return Conversation(turns, cast("dict[str, Any]", more), str(thread or body.get("id") or new_id()), str(run or new_id()))


def _turn(message: object) -> tuple[str, str] | None:
    if not isinstance(message, dict):
        raise InvalidInput("a message is no object", fix='{"role": "user", "content": "…"}')
    said = cast("dict[str, Any]", message)
    content = said.get("content", said.get("parts", ""))
    if isinstance(content, list):
        parts = [cast("dict[str, Any]", part) for part in cast("list[object]", content) if isinstance(part, dict)]
        content = "".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")
    return (said["role"], content) if said.get("role") in ("user", "assistant") and isinstance(content, str) else None


class Completions:
    """OpenAI's chat completions, streamed: pieces, then a reason why it ended, then `[DONE]`."""

    headers: Mapping[str, str] = {}

    def __init__(self, shape: CallShape, model: str, usage: bool) -> None:
        """`usage`: whether a last piece tells the tokens, as `stream_options.include_usage` asks for."""
        self._shape, self._model, self._usage = shape, model, usage
        self._id, self._made = f"chatcmpl-{new_id()}", int(time.time())

    def begin(self) -> Iterator[ServerSentEvent]:
        """Who speaks."""
        yield self._piece({"role": "assistant", "content": ""})

    def said(self, what: Accepted | Progress | Chunk) -> Iterator[ServerSentEvent]:
        """The text of the answer."""
        if isinstance(what, Chunk) and what.field == self._shape.said:
            yield self._piece({"content": what.text})

    def end(self, what: Result[Any] | DspexError) -> Iterator[ServerSentEvent]:
        """Why it ended."""
        if isinstance(what, DspexError):
            yield data(openai_error(what))
        else:
            yield self._piece({}, "stop")
            if self._usage:
                yield data({**self._head(), "choices": [], "usage": _usage(what)})
        yield ServerSentEvent(DONE)

    def whole(self, result: Result[Any]) -> dict[str, Any]:
        """The answer that is not streamed."""
        message = {"role": "assistant", "content": self._shape.answer(result.data), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return {**self._head("chat.completion"), "choices": [choice], "usage": _usage(result)}

    def _head(self, kind: str = "chat.completion.chunk") -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._made, "model": self._model}

    def _piece(self, delta: Mapping[str, Any], why: str | None = None) -> ServerSentEvent:
        return data({**self._head(), "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": why}]})


def openai_error(error: DspexError) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status_of(error) in (400, 404, 422) else "server_error"
    return {"error": {"message": f"{error.message} ({error.fix})", "type": kind, "code": error.code, "param": None}}


def _usage(result: Result[Any]) -> dict[str, int]:
    asked, answered = result.usage.input_tokens, result.usage.output_tokens
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


class AgUi:
    """AG-UI: a run that has one message."""

    headers: Mapping[str, str] = {}

    def __init__(self, shape: CallShape, asked: Conversation) -> None:
        self._shape, self._message, self._begun = shape, new_id(), False
        self._of = {"threadId": asked.thread, "runId": asked.run}

    def begin(self) -> Iterator[ServerSentEvent]:
        """The run."""
        yield data({"type": "RUN_STARTED", **self._of})

    def said(self, what: Accepted | Progress | Chunk) -> Iterator[ServerSentEvent]:
        """The text of the answer; what the program says of itself is a step's name."""
        if isinstance(what, Progress):
            yield data({"type": "CUSTOM", "name": "progress", "value": what.text})
        elif isinstance(what, Chunk) and what.field == self._shape.said:
            if not self._begun:
                self._begun = True
                yield data({"type": "TEXT_MESSAGE_START", "messageId": self._message, "role": "assistant"})
            yield data({"type": "TEXT_MESSAGE_CONTENT", "messageId": self._message, "delta": what.text})

    def end(self, what: Result[Any] | DspexError) -> Iterator[ServerSentEvent]:
        """The end of the message and of the run; or the error."""
        if self._begun:
            yield data({"type": "TEXT_MESSAGE_END", "messageId": self._message})
        if isinstance(what, DspexError):
            yield data({"type": "RUN_ERROR", "message": f"{what.message} ({what.fix})", "code": what.code})
        else:
            yield data({"type": "RUN_FINISHED", **self._of, "result": what.data})


class UiMessages:
    """The AI SDK's UI message stream."""

    headers: Mapping[str, str] = {"x-vercel-ai-ui-message-stream": "v1"}

    def __init__(self, shape: CallShape) -> None:
        self._shape, self._part, self._begun = shape, "text-1", False

    def begin(self) -> Iterator[ServerSentEvent]:
        """The message."""
        yield data({"type": "start", "messageId": new_id()})

    def said(self, what: Accepted | Progress | Chunk) -> Iterator[ServerSentEvent]:
        """The text of the answer; what the program says of itself is data that is shown and not kept."""
        if isinstance(what, Progress):
            yield data({"type": "data-progress", "data": {"text": what.text}, "transient": True})
        elif isinstance(what, Chunk) and what.field == self._shape.said:
            if not self._begun:
                self._begun = True
                yield data({"type": "text-start", "id": self._part})
            yield data({"type": "text-delta", "id": self._part, "delta": what.text})

    def end(self, what: Result[Any] | DspexError) -> Iterator[ServerSentEvent]:
        """The end of the text and of the message."""
        if self._begun:
            yield data({"type": "text-end", "id": self._part})
        if isinstance(what, DspexError):
            yield data({"type": "error", "errorText": str(problem_of(what)["detail"])})
        else:
            yield data({"type": "finish"})
        yield ServerSentEvent(DONE)
