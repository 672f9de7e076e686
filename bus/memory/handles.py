"""What an in-memory connection opens: readers, work queues, subscriptions, buckets, object stores."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from dspex.bus.errors import DataError, DecodeError, Fenced, NotStored, PayloadTooLarge, Saturated, StreamFull, Unreachable
from dspex.bus.memory.store import MemoryConsumer, MemoryStream, Pull
from dspex.bus.message import Message
from dspex.bus.subjects import matches
from dspex.bus.tasks import Tasks

if TYPE_CHECKING:
    from dspex.bus.memory.connection import MemoryBus

_KEY = re.compile(r"[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*")


class MemoryReader:
    """Reads a stream from a position on."""

    def __init__(
        self, bus: MemoryBus, stream: MemoryStream, filters: Sequence[str], after: int, other: bool, bodies: bool
    ) -> None:
        self._bus, self._stream, self._filters, self._bodies = bus, stream, tuple(filters), bodies
        self._next = max(after, 0) + 1
        self._waiting: asyncio.Future[None] | None = None
        self._closed = False
        self._other = other  # the stream is not the one that was meant

    def _find(self) -> int:
        # A position beyond the end stays where it is: it is the one from which on the caller wants to read.
        if self._next <= self._stream.last:
            self._next = self._stream.find(self._filters, self._next, self._stream.last)
        return self._next

    async def read(self, limit: int) -> list[Message]:
        while True:
            await self._bus.trip()
            if self._closed:
                raise Unreachable("the reader is closed")
            if self._other or self._bus.server.streams.get(self._stream.config.name, self._stream) is not self._stream:
                raise Unreachable(f"stream {self._stream.config.name} was made anew")
            got: list[Message] = []
            while len(got) < limit and self._find() <= self._stream.last:
                got.append(self._stream.messages[self._next])
                self._next += 1
            if got:
                return got if self._bodies else [m._replace(data=b"") for m in got]
            self._waiting = self._stream.more()
            await self._bus.wait(self._waiting)

    async def close(self) -> None:
        self._closed = True
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(Unreachable("the reader is closed"))


class MemoryDelivery:
    """One piece of work."""

    def __init__(self, bus: MemoryBus, consumer: MemoryConsumer, message: Message, delivered: int) -> None:
        self.message, self.delivered = message, delivered
        self.token = f"{message.sequence}.{delivered}"
        self._bus, self._consumer = bus, consumer

    async def ack(self) -> None:
        await self._bus.trip()
        self._consumer.ack(self.message.sequence)

    async def nak(self, delay: float = 0.0) -> None:
        await self._bus.trip()
        self._consumer.nak(self.message.sequence, delay)

    async def in_progress(self) -> None:
        await self._bus.trip()
        self._consumer.in_progress(self.message.sequence)


def held(bus: MemoryBus, stream: MemoryStream, name: str, token: str, message: Message) -> MemoryDelivery:
    """`Bus.held`."""
    sequence, _, delivered = token.partition(".")
    known = sequence.isdecimal() and delivered.isdecimal() and int(sequence) in stream.messages
    if not known or name not in stream.consumers:
        raise DecodeError(f"not a delivery of {name}: {token[:100]!r}")
    stored = stream.messages[int(sequence)]
    message = message._replace(sequence=stored.sequence, time=stored.time)
    return MemoryDelivery(bus, stream.consumers[name], message, int(delivered))


class MemoryWorkQueue:
    """One process's share of a durable consumer. Nothing is taken before somebody waits for it in `next`."""

    def __init__(self, bus: MemoryBus, consumer: MemoryConsumer, free: Callable[[], int]) -> None:
        self._bus, self._consumer, self._free = bus, consumer, free
        self._pulls: list[Pull] = []
        self._closed = False

    @property
    def dry(self) -> bool:
        return not self._consumer.ready()

    async def next(self) -> MemoryDelivery:
        await self._bus.trip()
        if self._closed:
            raise Unreachable("the work queue is closed")
        pull = Pull(asyncio.get_running_loop().create_future(), self._has_room)
        self._pulls.append(pull)
        self._consumer.pulls.append(pull)
        self._consumer.pump()
        try:
            message, delivered = await self._bus.wait(pull.future)
        finally:
            self._pulls.remove(pull)
            if pull in self._consumer.pulls:
                self._consumer.pulls.remove(pull)
        return MemoryDelivery(self._bus, self._consumer, message, delivered)

    def ask_for_more(self) -> None:
        self._consumer.pump()

    def _has_room(self) -> bool:
        # What was handed out to a `next` that has not run on yet is not counted by `free`.
        return self._free() > sum(pull.future.done() for pull in self._pulls)

    async def close(self) -> None:
        self._closed = True
        for pull in self._pulls:
            if not pull.future.done():
                pull.future.set_exception(Unreachable("the work queue is closed"))
                self._consumer.pulls.remove(pull)


class MemoryInbox:
    """Gives each message that comes to a subject of its own to `take`."""

    def __init__(self, bus: MemoryBus, take: Callable[[Message], None]) -> None:
        self.subject = f"_INBOX.memory.{bus.server.number()}"
        self._takers = bus.server.inboxes
        self._takers[self.subject] = take

    def close(self) -> None:
        self._takers.pop(self.subject, None)


async def request(bus: MemoryBus, message: Message, timeout: float) -> Message:
    """`Bus.request`, once the message is on the server."""
    answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    def answered(message: Message) -> None:
        if not answer.done():
            answer.set_result(message)

    inbox = bus.inbox(answered)
    try:
        if not bus.server.route(message._replace(reply=inbox.subject)):
            raise Saturated(f"no process listens on {message.subject}")
        async with asyncio.timeout(timeout):
            return await bus.wait(answer)
    except TimeoutError:
        raise Unreachable(f"no answer from {message.subject} within {timeout:g} s") from None
    finally:
        inbox.close()


class MemorySubscription:
    """Hands messages to a handler, one after the other."""

    def __init__(self, bus: MemoryBus, pattern: str, queue: str, handler: Callable[[Message], Awaitable[None]]) -> None:
        self.pattern, self.queue = pattern, queue
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.bus, self._handler = bus, handler
        self._closed = False
        self._tasks = Tasks("dspex-memory", self._handler_failed)
        self._start()

    def _start(self) -> None:
        self._tasks.start(self._run(), f"subscription {self.pattern}")

    async def _run(self) -> None:
        while not self._closed:
            await self._handler(await self.inbox.get())

    def _handler_failed(self, name: str, error: BaseException) -> None:
        """A handler that fails is reported, and the next message is handled all the same."""
        self.bus.events.error(f"handler of {self.pattern}: {type(error).__name__}: {error}")
        if not self._closed:
            self._start()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.bus.server.subscriptions.remove(self)
        await self._tasks.stop()  # a handler may close its own subscription, and finish


class MemoryBucket:
    """Small values under keys."""

    def __init__(self, bus: MemoryBus, name: str, once: bool) -> None:
        self._bus, self._name = bus, name
        bus.server.buckets.setdefault(name, {})
        if once:
            bus.server.once.add(name)

    @property
    def _values(self) -> dict[str, tuple[bytes, int]]:
        if self._name not in self._bus.server.buckets:  # it was removed since
            raise NotStored(f"there is no bucket {self._name}")
        return self._bus.server.buckets[self._name]

    async def get(self, key: str) -> tuple[bytes, int] | None:
        await self._bus.trip()
        return self._values.get(key)

    async def put(self, key: str, value: bytes, *, revision: int | None = None) -> int:
        if not _KEY.fullmatch(key):
            raise DataError(f"{key!r} is not a key", fix="use letters, digits and -/_=. only")
        if len(value) > self._bus.max_payload:
            raise PayloadTooLarge(f"{len(value)} bytes for key {key}: at most {self._bus.max_payload}")
        return await self._bus.write(lambda: self._put(key, value, revision))

    def _put(self, key: str, value: bytes, revision: int | None) -> int:
        latest = self._values.get(key, (b"", 0))[1]
        if revision is not None and revision != latest:
            raise Fenced(f"the revision of {key} is {latest}, not {revision}")
        if latest and self._name in self._bus.server.once:
            raise StreamFull(f"bucket {self._name} holds one value of each key")
        new = self._bus.server.number()
        self._values[key] = (value, new)
        self._bus.server.last_put[self._name] = new
        self._bus.server.put_at[self._name, key] = self._bus.server.now
        return new

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        await self._bus.trip()
        if revision is None or self._values.get(key, (b"", 0))[1] <= revision:
            self._values.pop(key, None)

    async def items(self, prefix: str = "", *, after: int = 0) -> dict[str, tuple[bytes, int]]:
        await self._bus.trip()
        return {k: v for k, v in self._values.items() if v[1] > after and f"{k}.".startswith(f"{prefix}." if prefix else "")}

    async def revision(self) -> int:
        await self._bus.trip()
        return self._bus.server.last_put.get(self._name, 0)

    async def expire(self, prefix: str, before: float) -> None:
        await self._bus.trip()
        put_at = self._bus.server.put_at
        for key in [k for k in self._values if k.startswith(f"{prefix}.") and put_at.get((self._name, k), before) < before]:
            del self._values[key]

    async def latest(self, prefix: str) -> bytes | None:
        await self._bus.trip()
        found = [v for k, v in self._values.items() if matches(f"{prefix}.*", k)]
        return max(found, key=lambda v: v[1])[0] if found else None

    async def time(self) -> float:
        await self._bus.trip()
        return self._bus.server.now

    async def keys(self) -> list[str]:
        await self._bus.trip()
        return sorted(self._values)


class MemoryObjects:
    """Payloads by their SHA-256."""

    def __init__(self, bus: MemoryBus, objects: dict[str, tuple[bytes, float]]) -> None:
        self._bus, self._objects = bus, objects

    async def put(self, data: bytes) -> str:
        await self._bus.trip()
        name = hashlib.sha256(data).hexdigest()
        self._objects[name] = data, self._bus.server.now
        return name

    async def get(self, name: str) -> bytes | None:
        await self._bus.trip()
        data = self._objects.get(name, (None, 0.0))[0]
        if data is not None and hashlib.sha256(data).hexdigest() != name:
            raise DataError(f"object {name} is damaged: its bytes have another hash")
        return data

    async def listing(self) -> dict[str, float]:
        await self._bus.trip()
        return {name: put for name, (_, put) in self._objects.items()}

    async def remove(self, name: str, put: float) -> bool:
        await self._bus.trip()
        if there := self._objects.get(name, (b"", -1.0))[1] == put:
            del self._objects[name]
        return there
