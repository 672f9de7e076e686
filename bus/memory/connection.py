"""One connection to an in-memory server: the methods of `dspex.bus.port.Bus`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from dspex.bus.errors import BusError, DataError, DspexError, NotStored, PayloadTooLarge, Unreachable, Unsettled
from dspex.bus.memory import handles
from dspex.bus.memory.handles import MemoryBucket, MemoryInbox, MemoryObjects, MemoryReader, MemorySubscription, MemoryWorkQueue
from dspex.bus.memory.store import MemoryConsumer, MemoryStream, size
from dspex.bus.message import Message
from dspex.bus.port import (
    COMMIT_LIMIT,
    PAGE_BYTES,
    PAGE_MESSAGES,
    Ack,
    BusEvents,
    Kept,
    NewMessage,
    Sealing,
    StreamConfig,
    StreamInfo,
)

if TYPE_CHECKING:
    from dspex.bus.memory.server import MemoryServer

T = TypeVar("T")

LATE = 5.0  # a write whose answer was lost lands within so many seconds
_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")
_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class MemoryBus:
    """One connection. Keeps the promises of `dspex.bus.port.Bus`, where its methods are described."""

    url = "memory://"

    def __init__(self, server: MemoryServer, events: BusEvents) -> None:
        self.server, self.events = server, events
        self.max_payload, self.passing = server.max_payload, server.passing
        self.connected, self.clogged = True, False
        self.sealing: Sealing | None = None
        self._waiting: dict[asyncio.Future[Any], None] = {}  # a set would let them go in another order in every run
        events.state("connected", "")

    async def close(self) -> None:
        if not self.connected:
            return
        self.connected = False
        for future in self._waiting:
            if not future.done():
                future.set_exception(Unreachable("the connection is closed"))
        for subscription in [s for s in self.server.subscriptions if s.bus is self]:
            await subscription.close()
        self.events.state("closed", "")

    # -- what its parts need
    async def trip(self) -> None:
        """To the server and back: takes a turn of the loop at least, and may go wrong."""
        luck = self.server.luck
        if self.connected:
            await asyncio.sleep(luck.pause())
        if not self.connected:
            raise Unreachable("the connection is closed")
        if luck.hits(luck.faults.disconnect):
            raise Unreachable("the connection was cut (a fault of the test)")

    async def wait(self, future: asyncio.Future[T]) -> T:
        """Wait for what the server does, or for the end of the connection."""
        self._waiting[future] = None
        try:
            return await future
        finally:
            del self._waiting[future]

    def check(self, draft: NewMessage) -> None:
        if not _SUBJECT.fullmatch(draft.subject):
            raise DataError(f"{draft.subject!r} is not a subject to publish to", fix="no spaces, wildcards or empty tokens")
        for name, value in (draft.headers or {}).items():
            if not _HEADER.fullmatch(name) or "\r" in value or "\n" in value:
                raise DataError(f"header {name!r} has a line break, or its name is none", fix="put it in the data")
        if (bytes := size(draft)) > self.max_payload:
            raise PayloadTooLarge(f"{bytes} bytes for {draft.subject}: at most {self.max_payload} in one message")

    def _stream(self, name: str) -> MemoryStream:
        if name not in self.server.streams:
            raise NotStored(f"there is no stream {name}")
        return self.server.streams[name]

    # -- streams
    async def ensure_stream(self, config: StreamConfig) -> StreamInfo:
        await self.trip()
        return self.server.ensure_stream(config).info(self.server.now)

    async def stream(self, name: str) -> StreamInfo | None:
        await self.trip()
        stream = self.server.streams.get(name)
        return stream.info(self.server.now) if stream else None

    async def stream_of(self, subject: str) -> str | None:
        await self.trip()
        stream = self.server.stream_of(subject)
        return stream.config.name if stream else None

    # -- write
    async def publish(self, draft: NewMessage, *, timeout: float = 5.0) -> Ack:
        self.check(draft)
        return await self.write(lambda: self.server.publish(draft))

    async def publish_all(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> list[Ack | BusError]:
        for draft in drafts:
            self.check(draft)
        await self.trip()
        outcomes: list[Ack | BusError] = []
        for draft in drafts:
            try:
                outcomes.append(await self.publish(draft))
            except BusError as e:
                outcomes.append(e)
        return outcomes

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        if not 0 < len(drafts) <= COMMIT_LIMIT:
            raise BusError(f"a commit of {len(drafts)} messages: it takes 1 to {COMMIT_LIMIT}")
        for draft in drafts:
            self.check(draft)
        batch = tuple(drafts)
        return await self.write(lambda: self.server.commit(batch))

    async def write(self, write: Callable[[], T]) -> T:
        """What `write` gives, unless it is in doubt whether it has happened: a fault of the test."""
        await self.trip()
        if not (luck := self.server.luck).hits(luck.faults.unsettled):
            return write()

        def unseen() -> None:
            with suppress(DspexError):
                write()

        fate = luck.random.choice(("landed", "late", "lost"))
        if fate == "landed":
            unseen()
        elif fate == "late":
            asyncio.get_running_loop().call_later(luck.random.uniform(0, LATE), unseen)
        raise Unsettled("no answer to a write (a fault of the test)")

    # -- read
    async def reader(
        self,
        stream: str,
        filters: Sequence[str],
        *,
        after: int,
        name: str,
        window: int = 2000,
        created: float = 0.0,
        time: float = 0.0,
        bodies: bool = True,
        listed: bool = False,
    ) -> MemoryReader:
        await self.trip()
        found = self._stream(stream)
        there = found.messages.get(after)
        other = created not in (0.0, found.created) or (
            time > 0 and (found.last < after or (there is not None and there.time != time))
        )
        return MemoryReader(self, found, filters, after, other, bodies)

    async def get(self, stream: str, sequence: int) -> Message | None:
        await self.trip()
        return self._stream(stream).messages.get(sequence)

    async def last(self, stream: str, subject: str) -> Message | None:
        await self.trip()
        found = self._stream(stream)
        return found.messages.get(found.last_of(subject))

    async def multi_last(self, stream: str, subjects: Sequence[str]) -> dict[str, Message]:
        await self.trip()
        found = self._stream(stream)
        messages = [found.messages.get(found.last_of(subject)) for subject in subjects]
        return {m.subject: m for m in messages if m is not None}

    async def next(self, stream: str, subject: str, sequence: int) -> Message | None:
        await self.trip()
        found = self._stream(stream)
        return found.messages.get(found.find([subject], sequence, found.last))

    async def scan(self, stream: str, filters: Sequence[str], *, start: int, stop: int) -> list[Message]:
        await self.trip()
        return list(self._stream(stream).matching(filters, start, stop))

    async def page(
        self, stream: str, filters: Sequence[str], *, start: int, stop: int, most: int = PAGE_MESSAGES
    ) -> list[Message]:
        await self.trip()
        got, room = list[Message](), PAGE_BYTES
        for message in self._stream(stream).matching(filters, start, stop):
            room -= len(message.data)
            if got and room < 0:
                break
            got.append(message)
            if len(got) == most:
                break
        return got

    async def count(self, stream: str, filters: Sequence[str], *, after: int = 0) -> int:
        await self.trip()
        return self._stream(stream).count(filters, after)

    async def purge(self, stream: str, subject: str, *, below: int) -> None:
        await self.trip()
        self._stream(stream).purge(subject, below)

    async def delete(self, stream: str, sequence: int, *, erase: bool = False) -> None:
        await self.trip()
        self._stream(stream).remove(sequence)

    # -- work
    async def begin_of_consumer(self, stream: str, name: str) -> int | None:
        await self.trip()
        return found.after if (found := self._stream(stream).consumers.get(name)) is not None else None

    async def backlog(self, stream: str, name: str) -> int | None:
        await self.trip()
        return found.waiting if (found := self._stream(stream).consumers.get(name)) is not None else None

    async def add_consumer(self, stream: str, pattern: str, *, name: str, ack_wait: float, after: int = 0) -> None:
        await self.trip()
        found = self._stream(stream)
        found.consumers.setdefault(name, MemoryConsumer(found, pattern, ack_wait, self.server.luck, after))

    async def work(self, stream: str, *, name: str, free: Callable[[], int]) -> MemoryWorkQueue | None:
        await self.trip()
        shared = self._stream(stream).consumers.get(name)
        return MemoryWorkQueue(self, shared, free) if shared is not None else None

    def held(self, stream: str, name: str, token: str, message: Message) -> handles.MemoryDelivery:
        return handles.held(self, self._stream(stream), name, token, message)

    # -- core
    async def request(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, timeout: float = 5.0
    ) -> Message:
        self.check(NewMessage(subject, data, headers))
        await self.trip()
        return await handles.request(self, Message(subject, data, headers or {}), timeout)

    async def send(self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        self.check(NewMessage(subject, data, headers))
        await self.trip()
        self._routed(Message(subject, data, headers or {}, reply=reply))

    def tell(self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        self.check(NewMessage(subject, data, headers))
        if not self.connected:
            raise Unreachable("the connection is closed")
        asyncio.get_running_loop().call_soon(self._routed, Message(subject, data, headers or {}, reply=reply))

    def _routed(self, message: Message) -> None:
        if not self.server.route(message) and message.reply:
            self.server.route(Message(message.reply, b"", {"Status": "503"}))

    async def subscribe(
        self, subject: str, handler: Callable[[Message], Awaitable[None]], *, queue: str = ""
    ) -> MemorySubscription:
        await self.trip()
        subscription = MemorySubscription(self, subject, queue, handler)
        self.server.subscriptions.append(subscription)
        return subscription

    def inbox(self, take: Callable[[Message], None]) -> MemoryInbox:
        return MemoryInbox(self, take)

    # -- keys and objects
    async def bucket(self, name: str, *, replicas: int = 1, once: bool = False) -> MemoryBucket:
        await self.trip()
        return MemoryBucket(self, name, once)

    async def objects(self, name: str, *, replicas: int = 1) -> MemoryObjects:
        await self.trip()
        return MemoryObjects(self, self.server.objects.setdefault(name, {}))

    async def has(self, kind: Kept, name: str, *, own: bool = False) -> bool:
        await self.trip()
        return name in self.server.kept(kind)  # nobody else makes anything here

    async def led_for(self, kind: Kept, name: str) -> float:
        await self.trip()
        return self.server.now - self.server.led_since

    async def remove(self, kind: Kept, name: str) -> bool:
        await self.trip()
        return self.server.remove(kind, name)
