"""The work queue: a durable consumer that many processes share, pulled by credit.

Not nats-py's fetch(): it loses the pull under way at a reconnect and waits out its timeout, and leaves pulls behind when it
is cancelled, whose messages then wait in nobody's queue until `ack_wait` passes.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dspex.bus.errors import BusError, DecodeError, NotAllowed, NotStored, Unreachable, Unsettled
from dspex.bus.message import Message
from dspex.bus.nats import protocol
from dspex.bus.nats.connection import Connection
from dspex.bus.nats.consumer import (
    EXPIRES,
    HEARTBEAT,
    NANOSECONDS,
    STATUS,
    Deliveries,
    delivery_of,
    pass_over,
    pull,
    pulls,
    rest,
    waiting,
)

FULL_POLL: Final = 0.1  # seconds between two looks at free(), while it gives 0
QUIET: Final = 0.1  # seconds without a delivery, though one is asked for, after which a queue counts as dry
_LONGEST_PAUSE: Final = 2.0
_TOKEN: Final = re.compile(r"\$JS\.ACK(\.[A-Za-z0-9_-]{1,200}){7,10}")


@dataclass(eq=False)
class NatsDelivery:
    """`dspex.bus.port.Delivery` on JetStream."""

    message: Message
    delivered: int
    _connection: Connection
    _reply: str
    _settled: Callable[[], None]

    @property
    def token(self) -> str:
        return self._reply

    async def ack(self) -> None:
        self._connection.client()
        try:
            _, head = (await self._connection.ask(self._reply, b"+ACK"))[0]
        except (TimeoutError, Unreachable) as e:
            raise Unsettled("no answer to an ack: the work may be delivered again") from e
        finally:
            self._settled()
        if protocol.headers(head).get("Status") == "503":
            raise Unsettled("the consumer of the work is gone: it may be delivered again")

    async def nak(self, delay: float = 0.0) -> None:
        body = b"-NAK " + json.dumps({"delay": int(delay * NANOSECONDS)}).encode() if delay else b"-NAK"
        self._tell(body)
        self._settled()

    def hand_back(self, connection: Connection) -> None:
        """`nak` over another connection than that of the process which took it."""
        connection.put(protocol.message(self._reply, b"-NAK", None, limit=connection.max_payload))

    async def in_progress(self) -> None:
        self._tell(b"+WPI")

    def _tell(self, body: bytes) -> None:
        self._connection.put(protocol.message(self._reply, body, None, limit=self._connection.max_payload))


def held(connection: Connection, stream: str, name: str, token: str, message: Message) -> NatsDelivery:
    """`Bus.held`."""
    if not (_TOKEN.fullmatch(token) and Deliveries(stream, name).has(token.encode())):
        raise DecodeError(f"not a delivery of {name}: {token[:100]!r}")
    try:
        at = delivery_of(token.encode())
    except (ValueError, IndexError):
        raise DecodeError(f"not a delivery of {name}: {token[:100]!r}") from None
    message = message._replace(sequence=at.sequence, time=at.time)
    return NatsDelivery(message, at.delivered, connection, token, lambda: None)


class NatsWorkQueue:
    """`dspex.bus.port.WorkQueue` on JetStream."""

    def __init__(self, connection: Connection, stream: str, name: str, free: Callable[[], int]) -> None:
        self._connection, self._stream, self._name, self._free = connection, stream, name, free
        self._left = 0  # messages that wait in the consumer, as it said last
        self._moved = 0.0  # when something was delivered, or asked for with nothing asked before
        self._waiting: deque[NatsDelivery] = deque()
        self._asked = 0  # requested deliveries that have not arrived
        self._round = 0  # number of the pull; status messages of earlier pulls are ignored
        self._quiet = 0  # heartbeats that should have come since anything came
        self._arrived = asyncio.Event()
        self._wake = asyncio.Event()
        self._missing = False  # the consumer may be gone
        self._failed: BusError | None = None
        self._inbox, self._deliveries = connection.inbox(), Deliveries(stream, name)
        self._tasks = connection.tasks(self._fail)

    # -- the port
    async def start(self) -> NatsWorkQueue | None:
        """None where there is no consumer. Raises Unreachable, NotAllowed, BusError (no such stream)."""
        left = await waiting(self._connection, self._stream, self._name)
        if left is None:
            return None
        self._left = left
        asks = pulls(self._stream, self._name)
        self._interest = self._connection.listen(f"{self._inbox}.*", self._take, refused=self._fail, asks=asks)
        self._connection.on_end.add(self._connection_ended)
        self._tasks.start(self._run(), f"work queue {self._name}")
        return self

    async def next(self) -> NatsDelivery:
        while not self._waiting:
            if self._failed is not None:
                raise type(self._failed)(self._failed.message)
            if not self._asked:
                self.ask_for_more()
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    @property
    def dry(self) -> bool:
        if self._waiting or self._left == 0:
            return not self._waiting
        return self._asked > 0 and asyncio.get_running_loop().time() - self._moved > QUIET

    def ask_for_more(self) -> None:
        """`free()` has grown: pull now instead of at the next look (every 0.1 s)."""
        self._wake.set()

    async def close(self) -> None:
        self._fail(Unreachable("the work queue is closed"))
        self._connection.on_end.discard(self._connection_ended)
        await self._tasks.stop()
        await self._connection.leave(self._interest)
        while self._waiting and self._connection.up.is_set():
            await self._waiting.popleft().nak()  # unused work goes to another process at once instead of after ack_wait

    # -- pulling
    async def _look(self) -> None:
        """Look whether the consumer is still there, and fail where it is not: only who owns the work makes another one."""
        self._missing = False
        left = await waiting(self._connection, self._stream, self._name)
        if left is None:
            self._fail(NotStored(f"the consumer {self._name} of the work is gone"))
        self._left = left or 0

    async def _run(self) -> None:
        pause = 0.02
        while self._failed is None:
            await self._connection.up.wait()
            try:
                if self._missing:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _LONGEST_PAUSE)
                    await self._look()
                    pause = 0.02
                full = self._pull()
            except NotAllowed as e:
                self._fail(e)
                return
            except BusError as e:
                self._missing = True
                self._connection.events.error(f"work queue {self._name} tries again: {e.message}")
                continue
            await self._rest(FULL_POLL if full else HEARTBEAT)

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            self._quiet += self._asked > 0
            if self._quiet * seconds > 2 * HEARTBEAT:
                self._connection_ended()
                self._missing = True
        self._wake.clear()

    def _pull(self) -> bool:
        """Ask for what can be held now; whether that is nothing.

        Not for each call that ends, while more is asked for already than that would add: a pull for each piece of work costs
        the server as much as to deliver it.
        """
        room = self._free() - len(self._waiting) - self._asked
        if room > 0 and room >= self._asked:
            if not self._asked:
                self._moved = asyncio.get_running_loop().time()
            self._asked += room
            self._connection.put(
                pull(
                    pulls(self._stream, self._name),
                    f"{self._inbox}.{self._round}",
                    batch=room,
                    expires=int(EXPIRES * NANOSECONDS),
                    idle_heartbeat=int(HEARTBEAT * NANOSECONDS),
                )
            )
        return self._asked == 0

    def _connection_ended(self) -> None:
        """The pulls under way are gone: ask again."""
        self._round += 1
        self._asked = self._quiet = 0
        self._wake.set()
        if self._connection.closed:
            self._fail(Unreachable("the bus is closed"))

    def _fail(self, error: BusError) -> None:
        self._failed = self._failed or error
        self._arrived.set()
        self._wake.set()

    # -- what comes
    def _take(self, subject: bytes, reply: bytes, data: bytes, head: bytes) -> None:
        self._quiet = 0
        headers = protocol.headers(head)
        if not reply and head.startswith(STATUS):
            self._status(subject, headers)
            return
        if not self._deliveries.has(reply):
            pass_over(self._connection, self._name)
            return
        at = delivery_of(reply)
        message = Message(protocol.text(subject), data, headers, at.sequence, at.time)
        self._asked = max(0, self._asked - 1)
        self._left, self._moved = at.pending, asyncio.get_running_loop().time()
        self._waiting.append(NatsDelivery(message, at.delivered, self._connection, reply.decode(), self.ask_for_more))
        self._arrived.set()

    def _status(self, subject: bytes, headers: protocol.Headers) -> None:
        if headers.get("Status") == "100" or subject.rpartition(b".")[2] != b"%d" % self._round:
            return
        left = rest(headers)
        if left is None:  # consumer deleted, leadership change, nobody serves it
            self._connection_ended()
            self._missing = True
        else:
            self._asked = max(0, self._asked - left)
            self._wake.set()
