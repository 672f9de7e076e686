"""Core NATS: subscriptions and requests, at most once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from dspex.bus.errors import BusError, Saturated, Unreachable
from dspex.bus.message import Message
from dspex.bus.nats import protocol
from dspex.bus.nats.connection import Connection
from dspex.bus.tasks import Tasks

TURN: Final = 0.01  # seconds for which messages are handled before everything else gets its turn
MOST_WAITING: Final = 65_536  # messages that a slow handler may leave waiting; more are dropped, and reported


async def request(
    connection: Connection, subject: str, data: bytes, headers: Mapping[str, str] | None, timeout: float
) -> Message:
    """`Bus.request`."""
    try:
        answer, head = (await connection.ask(subject, data, headers=headers, timeout=timeout))[0]
    except TimeoutError as e:
        raise Unreachable(f"no answer to {subject} in {timeout:g} s") from e
    found = protocol.headers(head)
    if found.get("Status") == "503" and not answer:
        raise Saturated(f"no process listens on {subject}")
    return Message(subject, answer, found)


def _dropped(message: Message) -> None:
    """Nobody listens any more."""


class NatsInbox:
    """`dspex.bus.port.Inbox`: what comes with one token on the subject where all answers to a connection come."""

    def __init__(self, connection: Connection, take: Callable[[Message], None]) -> None:
        self._connection, self._take = connection, take
        self._token = connection.fresh()
        self.subject = connection.answered_on(self._token)
        connection.inboxes[self._token.encode()] = self._route

    def close(self) -> None:
        self._connection.inboxes.pop(self._token.encode(), None)
        self._take = _dropped  # who closes it has it, too: of each call a circle would be left

    def _route(self, subject: bytes, reply: bytes, data: bytes, head: bytes) -> None:
        self._take(Message(protocol.text(subject), data, protocol.headers(head), reply=protocol.text(reply)))


class NatsSubscription:
    """`dspex.bus.port.Subscription`: calls the handler for one message at a time, in order."""

    def __init__(self, connection: Connection, subject: str, handler: Callable[[Message], Awaitable[None]], queue: str) -> None:
        self._connection, self._subject, self._handler, self._queue = connection, subject, handler, queue
        self._waiting: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._closed = False
        self._tasks = Tasks("dspex-nats", self._handler_failed)
        self._refused: BusError | None = None

    async def start(self) -> NatsSubscription:
        """Returns once the server knows: what is published afterwards, by anyone, comes. Raises Unreachable, NotAllowed."""
        self._connection.client()
        self._interest = self._connection.listen(self._subject, self._take, queue=self._queue, refused=self._refuse)
        self._connection.on_end.add(self._connection_ended)
        self._begin()
        await self._connection.flush()
        if self._refused is not None:
            await self.close()
            raise self._refused
        return self

    async def close(self) -> None:
        """No new messages; what had come before is still handled."""
        if not self._closed:
            await self._connection.leave(self._interest)
            self._end()

    def _end(self) -> None:
        self._closed = True
        self._connection.on_end.discard(self._connection_ended)
        self._arrived.set()

    def _connection_ended(self) -> None:
        if self._connection.closed:
            self._end()

    def _refuse(self, error: BusError) -> None:
        self._refused = error

    def _begin(self) -> None:
        self._tasks.start(self._handle(), f"subscription {self._subject}")

    def _handler_failed(self, name: str, error: BaseException) -> None:
        """A handler that raised must not end the subscription: report it, and go on with the next message."""
        self._connection.events.error(f"the handler of {self._subject} raised {error!r}")
        self._begin()

    async def _handle(self) -> None:
        clock = asyncio.get_running_loop().time
        end = clock() + TURN
        while not self._closed or self._waiting:
            if self._waiting:
                await self._handler(self._waiting.popleft())
                if clock() > end:  # a handler that waits for nothing would keep the process from its signs of life
                    await asyncio.sleep(0)
                    end = clock() + TURN
            else:
                self._arrived.clear()
                await self._arrived.wait()

    def _take(self, subject: bytes, reply: bytes, data: bytes, head: bytes) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._connection.events.error(f"the handler of {self._subject} is too slow: a message was dropped")
            return
        self._waiting.append(Message(protocol.text(subject), data, protocol.headers(head), reply=protocol.text(reply)))
        self._arrived.set()
