"""What a connection waits for: the answers to its requests, and the messages of its subscriptions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Self

from dspex.bus.errors import BusError, NotAllowed
from dspex.bus.nats.protocol import WireRoute

RawReply = tuple[bytes, bytes]
"""Data and header block."""


def any_answer(data: bytes, head: bytes) -> bool:
    return True


@dataclass
class WireSubscription:
    """One subscription; it outlives the TCP connection.

    `refused` is called when the server does not permit it, or does not permit to publish to `asks` (where its pulls go).
    """

    sid: bytes
    subject: str
    queue: str
    route: WireRoute
    refused: Callable[[BusError], None]
    asks: str

    def command(self) -> bytes:
        return b"SUB %b %b %b\r\n" % (self.subject.encode(), self.queue.encode(), self.sid)

    def end(self) -> bytes:
        return b"UNSUB %b\r\n" % self.sid


class PendingRequest:
    """A request in flight and its answers so far. Fails at once when the connection ends, or the server forbids it.

    As a context manager: it waits in `pending`, where answers are given to it, until the block ends. Each write, and each ack
    of work, is one, so it has no task and no future but the one that is waited for.
    """

    __slots__ = ("_error", "_over", "_pending", "_token", "_waiter", "answers", "final", "place", "reply", "subjects")

    def __init__(
        self,
        pending: dict[bytes, PendingRequest],
        token: bytes,
        subjects: Collection[str],
        reply: str,
        final: Callable[[bytes, bytes], bool],
    ) -> None:
        self._pending, self._token = pending, token
        self.subjects, self.reply, self.final = subjects, reply, final
        self.answers: list[RawReply] = []
        self.place = b""  # which of several messages the last one answers: what stood behind "-" where it came
        self._over = False
        self._error: BusError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        self._pending[self._token] = self
        return self

    def __exit__(self, *_: object) -> None:
        del self._pending[self._token]

    def take(self, data: bytes, head: bytes, place: bytes = b"") -> None:
        self.answers.append((data, head))
        self.place = place
        if self.final(data, head) and not self._over:
            self._end()

    def fail(self, error: BusError) -> None:
        if not self._over:
            self._error = error
            self._end()

    def _end(self) -> None:
        self._over = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def settled(self, timeout: float) -> list[RawReply]:
        """The answers, once the final one is there. Raises TimeoutError, Unreachable (connection lost), NotAllowed."""
        if not self._over:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(timeout, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
        if self._error is not None:
            raise self._error
        if not self._over:
            raise TimeoutError
        return self.answers


def refuse(text: str, pending: Iterable[PendingRequest], subscriptions: Iterable[WireSubscription]) -> None:
    """-ERR of the server: a missing permission fails at once what needs it, which would wait for its timeout otherwise."""
    error, parts = NotAllowed(f"the server says: {text}"), text.split('"')
    subject, kind = (parts[1], parts[0].lower()) if len(parts) > 2 else ("", "")
    if "for publish" in kind:
        for request in [q for q in pending if subject in q.subjects]:
            request.fail(error)
    for interest in list(subscriptions):
        if subject == (interest.asks if "for publish" in kind else interest.subject):
            interest.refused(error)
