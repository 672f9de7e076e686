"""The bus on NATS JetStream: `dspex.bus.port.Bus` on nats-py. The only room that imports `nats`."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from dspex.bus import subjects
from dspex.bus.errors import BusError
from dspex.bus.message import Message
from dspex.bus.nats import consumer, core, protocol, stored, streams, writer
from dspex.bus.nats.client import Options
from dspex.bus.nats.connection import Connection
from dspex.bus.nats.core import NatsInbox, NatsSubscription
from dspex.bus.nats.failures import what_a_server_says
from dspex.bus.nats.reader import NatsReader
from dspex.bus.nats.store import NatsBucket, NatsObjects
from dspex.bus.nats.work import NatsDelivery, NatsWorkQueue, held
from dspex.bus.port import PAGE_MESSAGES, Ack, BusEvents, Kept, NewMessage, Sealing, StreamConfig, StreamInfo

__all__ = ["NatsBus", "connect"]

_KEPT_IN: Final[Mapping[Kept, str]] = {"stream": "", "bucket": "KV_", "objects": "OBJ_"}  # how the names of streams begin


async def connect(
    url: str,
    *,
    name: str = "dspex",
    events: BusEvents | None = None,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    creds: str | None = None,
    nkey: str | None = None,
    tls: ssl.SSLContext | None = None,
    timeout: float = 5.0,
    inbox_prefix: str = subjects.INBOX,
) -> NatsBus:
    """Connect to the servers of `url` (several: separated by commas).

    Args:
        name: of the connection, as `nats server report connections` shows it.
        events: callbacks for changes of the connection, and for errors.
        creds: path of a credentials file (JWT); nkey: path of a seed file. Both need the package nkeys.
        timeout: seconds for one try to connect to one server.
        inbox_prefix: what the subjects begin with on which answers and deliveries come: with one of its own, a user need not
            be allowed to hear those of others.

    Raises: Unreachable, NotAllowed, UnsupportedServer (before 2.12), BusError (no JetStream), ConfigError (bad URL).
    """
    options = Options(url, name, user, password, token, creds, nkey, tls, timeout, inbox_prefix)
    connection = Connection(options, events or BusEvents())
    await connection.start()
    return NatsBus(connection)


class NatsBus:
    """`dspex.bus.port.Bus`; made by `connect`. It reconnects by itself; while it cannot, methods raise Unreachable."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.sealing: Sealing | None = None
        self.passing = False

    @property
    def max_payload(self) -> int:
        return self._connection.max_payload

    @property
    def url(self) -> str:
        return self._connection.options.url

    @property
    def connected(self) -> bool:
        return self._connection.up.is_set()

    @property
    def clogged(self) -> bool:
        return self.connected and self._connection.client().clogged

    @property
    def asking(self) -> bool:
        """Whether an answer of the server is waited for."""
        connection = self._connection
        return bool(connection.pending) or (connection.up.is_set() and connection.client().echoing)

    async def close(self) -> None:
        await self._connection.close()

    # -- streams
    async def ensure_stream(self, config: StreamConfig) -> StreamInfo:
        return await streams.ensure(self._connection, config)

    async def stream(self, name: str) -> StreamInfo | None:
        return await streams.info(self._connection, name)

    async def stream_of(self, subject: str) -> str | None:
        return await writer.surely(self._connection, lambda: writer.stream_of(self._connection, subject))

    # -- write
    async def publish(self, draft: NewMessage, *, timeout: float = 5.0) -> Ack:
        return await writer.publish(self._connection, draft, timeout)

    async def publish_all(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> list[Ack | BusError]:
        return await writer.publish_all(self._connection, drafts, timeout)

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        return await writer.commit(self._connection, drafts, timeout)

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
    ) -> NatsReader:
        reader = NatsReader(self._connection, stream, filters, (after, time), name, window, created, bodies, listed)
        return await reader.start()

    async def get(self, stream: str, sequence: int) -> Message | None:
        return await stored.message(self._connection, stream, {"seq": sequence})

    async def last(self, stream: str, subject: str) -> Message | None:
        return await stored.message(self._connection, stream, {"last_by_subj": subject})

    async def multi_last(self, stream: str, subjects: Sequence[str]) -> dict[str, Message]:
        return await stored.multi_last(self._connection, stream, subjects)

    async def next(self, stream: str, subject: str, sequence: int) -> Message | None:
        return await stored.message(self._connection, stream, {"seq": max(sequence, 1), "next_by_subj": subject})

    async def scan(self, stream: str, filters: Sequence[str], *, start: int, stop: int) -> list[Message]:
        return await stored.scan(self._connection, stream, filters, start, stop)

    async def page(
        self, stream: str, filters: Sequence[str], *, start: int, stop: int, most: int = PAGE_MESSAGES
    ) -> list[Message]:
        return await stored.scan(self._connection, stream, filters, start, stop, most)

    async def count(self, stream: str, filters: Sequence[str], *, after: int = 0) -> int:
        return await stored.count(self._connection, stream, filters, after)

    async def purge(self, stream: str, subject: str, *, below: int) -> None:
        await stored.purge(self._connection, stream, subject, below)

    async def delete(self, stream: str, sequence: int, *, erase: bool = False) -> None:
        await stored.delete(self._connection, stream, sequence, erase)

    # -- work
    async def begin_of_consumer(self, stream: str, name: str) -> int | None:
        info = await consumer.info(self._connection, stream, name)
        with what_a_server_says():
            return max(0, int(info["config"].get("opt_start_seq", 0)) - 1) if info is not None else None

    async def backlog(self, stream: str, name: str) -> int | None:
        return await consumer.waiting(self._connection, stream, name)

    async def add_consumer(self, stream: str, pattern: str, *, name: str, ack_wait: float, after: int = 0) -> None:
        await consumer.share(self._connection, stream, consumer.shared(name, pattern, ack_wait, after))

    async def work(self, stream: str, *, name: str, free: Callable[[], int]) -> NatsWorkQueue | None:
        return await NatsWorkQueue(self._connection, stream, name, free).start()

    def hand_back(self, delivery: NatsDelivery) -> None:
        """Have a piece of work delivered again now that a process took which is gone."""
        delivery.hand_back(self._connection)

    def held(self, stream: str, name: str, token: str, message: Message) -> NatsDelivery:
        return held(self._connection, stream, name, token, message)

    # -- core
    async def request(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, timeout: float = 5.0
    ) -> Message:
        return await core.request(self._connection, subject, data, headers, timeout)

    async def send(self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        await self._connection.send(protocol.message(subject, data, headers, reply=reply, limit=self._connection.max_payload))

    def tell(self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        self._connection.put(protocol.message(subject, data, headers, reply=reply, limit=self._connection.max_payload))

    async def subscribe(
        self, subject: str, handler: Callable[[Message], Awaitable[None]], *, queue: str = ""
    ) -> NatsSubscription:
        return await NatsSubscription(self._connection, subject, handler, queue).start()

    def inbox(self, take: Callable[[Message], None]) -> NatsInbox:
        return NatsInbox(self._connection, take)

    # -- keys and objects
    async def bucket(self, name: str, *, replicas: int = 1, once: bool = False) -> NatsBucket:
        return await NatsBucket(self._connection, name).ensure(replicas, once)

    async def objects(self, name: str, *, replicas: int = 1) -> NatsObjects:
        return await NatsObjects(self._connection, name).ensure(replicas)

    async def has(self, kind: Kept, name: str, *, own: bool = False) -> bool:
        found = await streams.info(self._connection, _KEPT_IN[kind] + name)
        return found is not None and (found.own or not own)

    async def led_for(self, kind: Kept, name: str) -> float:
        return await streams.led_for(self._connection, _KEPT_IN[kind] + name)

    async def remove(self, kind: Kept, name: str) -> bool:
        return await streams.remove(self._connection, _KEPT_IN[kind] + name)
