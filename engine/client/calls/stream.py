"""An answer while it is made: `client.stream(…)`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self

import orjson
from typing_extensions import TypeVar

from dspex.bus.errors import Cancelled, ConfigError
from dspex.bus.tasks import Tasks, cancel
from dspex.engine.client.calls.events import Accepted, Chunk, Progress

if TYPE_CHECKING:
    from dspex.bus.serving.sayings import Said
    from dspex.engine.client.call import Result
    from dspex.engine.client.calls.asking import Meanwhile

V = TypeVar("V", default=dict[str, Any])
_JOINED: Final = 4096  # characters: shorter pieces that nobody has read become one with the next
_MOST_SAID: Final = 1000  # times that a program said something and nobody has read it


class Answer(Generic[V]):
    """An answer while it is made: `async with client.stream(…) as answer`. Leaving the block before the end cancels the call in
    the worker.

    Iterating gives its pieces of text, `events` gives everything, and `result` the whole. Each event is given once, whoever
    takes it. The pieces of a field, put together, are its text: what was lost on the way, and what was never told piece by
    piece, is taken from the result and comes last. Memory holds what is not read yet, and no worker waits for who reads.
    """

    def __init__(self, begin: Callable[[Meanwhile], Coroutine[Any, Any, Result[V]]]) -> None:
        """`begin`: makes the call, and tells this object of it."""
        self._begin = begin
        self._tasks = Tasks("answer", lambda name, error: None)  # who reads gets the error
        self._calling: asyncio.Task[Result[V]] | None = None
        self._events: deque[Accepted | Progress | Chunk] = deque()
        self._texts: dict[str, list[str]] = {}  # of each field, as far as it is known without a hole
        self._lengths: dict[str, int] = {}
        self._holes: set[str] = set()  # fields of which something is missing behind that
        self._number = 0
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        if self._calling is not None:
            raise ConfigError("an answer is read once", fix="call client.stream again")
        self._calling = self._tasks.start(self._begin(self), "call")
        self._calling.add_done_callback(lambda _: self._changed.set())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self._calling is not None:
            await cancel([self._calling])

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """The pieces of text. Raises the call's error at the end."""
        async for event in self.events():
            if isinstance(event, Chunk):
                yield event

    async def events(self) -> AsyncIterator[Accepted | Progress | Chunk]:
        """Everything that comes before the result; `Accepted` is the first. Raises the call's error at the end."""
        calling = self._entered()
        while self._events or not calling.done():
            while self._events:
                yield self._events.popleft()
            if not calling.done():
                self._changed.clear()
                await self._changed.wait()
        await self.result()

    async def result(self) -> Result[V]:
        """The whole answer, when it is there; no piece need be read. Raises the call's error; Cancelled where the block was
        left before the end.
        """
        calling = self._entered()
        try:
            return await asyncio.shield(calling)
        except asyncio.CancelledError:
            asks = asyncio.current_task()
            if not calling.cancelled() or (asks is not None and asks.cancelling()):
                raise
            why = "the block of this answer was left before its end, which has cancelled the call"  # who asks was not cancelled
            raise Cancelled(why, fix="read the result within the block: async with client.stream(…) as answer") from None

    def _entered(self) -> asyncio.Task[Result[V]]:
        if self._calling is None:
            raise ConfigError("the answer is not asked for yet", fix="async with client.stream(…) as answer: …")
        return self._calling

    # -- what the call tells
    def accepted(self, call: str, worker: str) -> None:
        """A worker has the call."""
        self._add(Accepted(call, worker))

    def said(self, said: Sequence[Said]) -> None:
        """What the worker says of it; see `bus.serving.sayings.Said`."""
        for field, at, text in said:
            if field:
                self._piece(field, at, text)
            elif len(self._events) < _MOST_SAID:
                self._add(Progress(text))

    def ended(self, outputs: Mapping[str, Any]) -> None:
        """The worker has answered: what is missing of the texts is told now."""
        for field, value in outputs.items():
            have = "".join(self._texts.get(field, ()))
            if isinstance(value, str):
                whole = value
            else:
                whole = "" if field in self._texts else orjson.dumps(value).decode()
            if whole.startswith(have):
                self._next(field, whole[len(have) :])

    def _piece(self, field: str, at: int, text: str) -> None:
        have = self._lengths.get(field, 0)
        if at > have:
            self._holes.add(field)
        elif field not in self._holes:
            self._next(field, text[have - at :])

    def _next(self, field: str, text: str) -> None:
        if not text:
            return
        self._texts.setdefault(field, []).append(text)
        self._lengths[field] = self._lengths.get(field, 0) + len(text)
        last = self._events[-1] if self._events else None
        if isinstance(last, Chunk) and last.field == field and len(last.text) < _JOINED:
            self._events[-1] = Chunk(field, last.text + text, last.sequence)
        else:
            self._number += 1
            self._add(Chunk(field, text, self._number))

    def _add(self, event: Accepted | Progress | Chunk) -> None:
        self._events.append(event)
        self._changed.set()
