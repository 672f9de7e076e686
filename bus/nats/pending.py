"""What a connection waits for: the answers to its requests, and the messages of its subscriptions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

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
    """A request in flight and its answers so far. Fails at once when the connection ends, or the server forbids it."""

    __slots__ = ("answers", "done", "final", "place", "reply", "subjects")

    def __init__(self, subjects: Collection[str], reply: str, final: Callable[[bytes, bytes], bool]) -> None:
        self.subjects, self.reply, self.final = subjects, reply, final
        self.answers: list[RawReply] = []
        self.place = b""  # which of several messages the last one answers: what stood behind "-" where it came
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, data: bytes, head: bytes, place: bytes = b"") -> None:
        self.answers.append((data, head))
        self.place = place
        if self.final(data, head) and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BusError) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    async def settled(self, timeout: float) -> list[RawReply]:
        """The answers, once the final one is there. Raises TimeoutError, Unreachable (connection lost), NotAllowed."""
        async with asyncio.timeout(timeout):
            await asyncio.shield(self.done)
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
