"""What happens in a streamed call, and dspex's own form of it as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Protocol, TypeAlias

import orjson
from sse_starlette.event import ServerSentEvent

from dspex.bus.errors import DspexError
from dspex.engine.client.call import Result
from dspex.engine.client.calls.events import Accepted, Chunk, Progress
from dspex.engine.gateway.problems import problem_of

Happened: TypeAlias = Accepted | Progress | Chunk | Result[Any] | DspexError
"""The last one is a result or an error."""


class Format(Protocol):
    """How a front end reads an answer. One object for each answer. `headers`: of the response."""

    headers: Mapping[str, str]

    def begin(self) -> Iterator[ServerSentEvent]: ...

    def said(self, what: Accepted | Progress | Chunk) -> Iterator[ServerSentEvent]: ...

    def end(self, what: Result[Any] | DspexError) -> Iterator[ServerSentEvent]: ...


async def written(form: Format, happens: AsyncIterator[Happened]) -> AsyncIterator[ServerSentEvent]:
    """The events of an answer."""
    for event in form.begin():
        yield event
    async for what in happens:
        for event in form.end(what) if isinstance(what, (Result, DspexError)) else form.said(what):
            yield event


def data(value: Mapping[str, Any]) -> ServerSentEvent:
    """An event that has nothing but data, as JSON."""
    return ServerSentEvent(orjson.dumps(value, default=str).decode())


def as_object(what: Happened) -> dict[str, Any]:
    """As `dspex call --stream --json` prints it: {"kind": "chunk", …}."""
    if isinstance(what, Accepted):
        return {"kind": "accepted", "id": what.call, "worker": what.worker}
    if isinstance(what, Result):
        return {"kind": "result", **what.as_dict()}
    if isinstance(what, DspexError):
        return {"kind": "error", **problem_of(what)}
    return {"kind": "chunk" if isinstance(what, Chunk) else "progress", **asdict(what)}


class OwnEvents:
    """dspex's own: an event for each, named by its kind."""

    headers: Mapping[str, str] = {}

    def begin(self) -> Iterator[ServerSentEvent]:
        """Nothing: the first one is that a worker has the call."""
        return iter(())

    def said(self, what: Accepted | Progress | Chunk) -> Iterator[ServerSentEvent]:
        """One event for each."""
        yield self._event(what)

    def end(self, what: Result[Any] | DspexError) -> Iterator[ServerSentEvent]:
        """The result, or the problem."""
        yield self._event(what)

    def _event(self, what: Happened) -> ServerSentEvent:
        found = as_object(what)
        return ServerSentEvent(orjson.dumps(found, default=str).decode(), event=found.pop("kind"))
