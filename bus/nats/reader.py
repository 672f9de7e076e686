"""The reader: messages of a stream in order, each exactly once, through a pull-ordered consumer.

The consumer is a throw-away: no acks, in memory, one replica. What counts is the sequence of the last message that came.
Whenever something is odd (the connection ended, a delivery is missing, the consumer is gone, two heartbeats are missed)
it is deleted and made again right behind that message.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Final

from dspex.bus import subjects
from dspex.bus.errors import BusError, NotAllowed, Unreachable
from dspex.bus.message import Message
from dspex.bus.nats import protocol, stored, streams
from dspex.bus.nats.connection import Connection
from dspex.bus.nats.consumer import (
    EXPIRES,
    HEARTBEAT,
    NANOSECONDS,
    STATUS,
    Deliveries,
    create,
    create_listed,
    delivery_of,
    drop,
    ordered,
    pass_over,
    pull,
    pulls,
    rest,
)
from dspex.bus.nats.pending import WireSubscription

IDLE: Final = 300.0  # seconds until the server forgets the consumer of a dead process
PULL_BYTES: Final = 16 << 20  # of one pull; with three under way and as much unread: 64 MiB
_LONGEST_PAUSE: Final = 2.0
_new = tuple.__new__  # the class itself as constructor takes twice as long


class NatsReader:
    """`dspex.bus.port.Reader` on JetStream."""

    def __init__(
        self,
        connection: Connection,
        stream: str,
        filters: Sequence[str],
        after: tuple[int, float],
        name: str,
        window: int,
        created: float,
        bodies: bool = True,
        listed: bool = False,
    ) -> None:
        self._connection, self._stream, self._filters, self._name = connection, stream, list(filters), name
        self._consumer = ""  # the name of the one that is read now: another one each time
        self._deliveries = Deliveries(stream, "")
        self._window = max(window, 2)
        self._last, self._time = after  # sequence of the last message that came, and when it was stored; 0: not known
        self._sure = after  # the same, as of the last one that is known to be of the right stream
        self._created = created  # when the stream was made
        self._verified = False  # whether the consumer reads that stream: until that is known, what comes is held back
        self._held: list[Message] = []
        self._bodies = bodies
        self._listed = listed and connection.options.inbox_prefix != subjects.INBOX
        self._next = 1  # consumer's number of the delivery that must come next
        self._unread: list[Message] = []
        self._bytes = 0  # of the unread and the held
        self._made = False  # whether the consumer is there: a pull before that would get no answer worth having
        self._asked = 0  # messages asked for that have not come
        self._quiet = 0  # heartbeats that should have come since anything came
        self._arrived = asyncio.Event()
        self._trouble = asyncio.Event()
        self._failed: BusError | None = None
        self._interest: WireSubscription | None = None
        self._tasks = connection.tasks(self._fail)

    # -- the port
    async def start(self) -> NatsReader:
        """Make the consumer. Raises Unreachable, NotAllowed, BusError (no such stream)."""
        self._connection.on_end.add(self._suspect)
        try:
            await self._begin()
        except BaseException:
            self._stop()
            drop(self._connection, self._stream, self._consumer)
            raise
        self._tasks.start(self._supervise(), f"reader {self._name}")
        return self

    async def read(self, limit: int) -> list[Message]:
        while not self._unread:
            if self._failed is not None:
                raise type(self._failed)(self._failed.message)
            self._arrived.clear()
            await self._arrived.wait()
        if limit >= len(self._unread):
            batch, self._unread = self._unread, []
        else:
            batch, self._unread = self._unread[:limit], self._unread[limit:]
        self._bytes -= sum([len(m.data) for m in batch])
        self._pull()
        return batch

    async def close(self) -> None:
        if self._failed is None:
            self._fail(Unreachable("the reader is closed"))
        await self._tasks.stop()
        self._stop()
        drop(self._connection, self._stream, self._consumer)

    # -- the consumer
    async def _begin(self) -> None:
        self._trouble.clear()
        if self._verified:
            self._sure = self._last, self._time
        self._last, self._time = self._sure
        self._bytes -= sum([len(m.data) for m in self._held])
        self._held, self._verified, self._made = [], False, False
        self._asked, self._next, self._quiet = 0, 1, 0
        if self._interest is not None:
            self._connection.forget(self._interest)
            self._interest = None
        drop(self._connection, self._stream, self._consumer)
        # A new name and subscription each time: what the old consumer had sent must not be taken for the new one's, and
        # nobody need wait until the old one is gone. It is drawn: who could guess it could take messages out of it.
        config = ordered(f"{self._name}-{secrets.token_hex(8)}", self._filters, self._last, IDLE, bodies=self._bodies)
        if self._listed:
            self._consumer, _ = await create_listed(self._connection, self._stream, config)
        else:
            self._consumer = str(config["name"])
            await create(self._connection, self._stream, config)
        self._deliveries = Deliveries(self._stream, self._consumer)
        self._inbox, asks = self._connection.inbox(), pulls(self._stream, self._consumer)
        self._interest = self._connection.listen(f"{self._inbox}.*", self._take, refused=self._fail, asks=asks)
        self._made = True
        if self._created:
            self._pull()  # at once: over a slow wire it would take long to wait until it is known to be the right stream
        await self._verify()
        self._pull()

    async def _verify(self) -> None:
        """Look whether the consumer, which is made by now, reads the stream that was read before; the reader fails if not.

        A stream that was made anew, or rolled back to an older copy and filled again, would be read on in the middle, as if
        nothing were missing.
        """
        sequence, time = self._sure
        now, last = await asyncio.gather(
            streams.info(self._connection, self._stream), self._message(sequence) if time else _nothing()
        )
        created = now.created if now else 0.0
        self._created = self._created or created
        same = created == self._created and (last is None or last.time == time)
        if not same or (time and now is not None and now.last < sequence):
            self._fail(Unreachable(f"stream {self._stream} was made anew, or rolled back to an older copy"))
            return
        self._verified = True
        self._unread += self._held
        self._held = []
        if self._unread:
            self._arrived.set()

    async def _message(self, sequence: int) -> Message | None:
        return await stored.message(self._connection, self._stream, {"seq": sequence})

    async def _supervise(self) -> None:
        pause = 0.0
        while self._failed is None:
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await self._trouble.wait()
            except TimeoutError:
                pause = 0.0
                self._quiet += self._asked > 0
                if self._quiet <= 2:
                    continue
            # A pause before the next try, unless all went well for a while: two readers under one name would otherwise
            # delete each other's consumer as fast as they can.
            await asyncio.sleep(pause)
            pause = min(pause * 2 or 0.02, _LONGEST_PAUSE)
            await self._connection.up.wait()
            try:
                await self._begin()
            except NotAllowed as e:
                self._fail(e)
            except BusError as e:
                self._trouble.set()
                self._connection.events.error(f"reader {self._name} tries again: {e.message}")

    def _stop(self) -> None:
        self._connection.on_end.discard(self._suspect)
        if self._interest is not None:
            self._connection.forget(self._interest)
            self._interest = None

    def _fail(self, error: BusError) -> None:
        self._failed = error
        self._arrived.set()

    def _suspect(self) -> None:
        self._trouble.set()
        if self._connection.closed:
            self._fail(Unreachable("the bus is closed"))

    def _pull(self) -> None:
        """Ask for more, early enough that the server never waits for us, and never for more than the window."""
        room = self._window - len(self._unread) - len(self._held) - self._asked
        if room * 2 < self._window or self._bytes > PULL_BYTES:
            return
        if self._trouble.is_set() or not self._made or not self._connection.up.is_set():
            return
        self._asked += room
        largest = max(PULL_BYTES, 2 * self._connection.max_payload)
        self._connection.put(
            pull(
                pulls(self._stream, self._consumer),
                f"{self._inbox}.{room}",
                batch=room,
                max_bytes=largest,
                expires=int(EXPIRES * NANOSECONDS),
                idle_heartbeat=int(HEARTBEAT * NANOSECONDS),
            )
        )

    # -- what comes
    def _take(self, subject: bytes, reply: bytes, data: bytes, head: bytes) -> None:
        self._quiet = 0
        if not reply and head.startswith(STATUS):
            self._status(protocol.headers(head))
            return
        if not reply.startswith(self._deliveries.begin) and not self._deliveries.has(reply):
            pass_over(self._connection, self._name)
            return
        _, sequence, number, time, _ = delivery_of(reply)
        if number != self._next:
            self._trouble.set()
            return
        self._next = number + 1
        self._last, self._time = sequence, time
        self._asked -= 1
        self._bytes += len(data)
        message = _new(Message, (protocol.text(subject), data, protocol.headers(head), sequence, time, "", False))
        if not self._verified:
            self._held.append(message)
            return
        self._unread.append(message)
        if not self._arrived.is_set():
            self._arrived.set()

    def _status(self, headers: protocol.Headers) -> None:
        if headers.get("Status") == "100":
            return  # heartbeat
        left = rest(headers)
        if left is None:
            self._trouble.set()
        else:  # expired, or its bytes are used up
            self._asked = max(0, self._asked - left)
            self._pull()


async def _nothing() -> None:
    return None
