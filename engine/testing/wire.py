"""Connections of a testing driver to a real server: the faults on them, the time that they tell, and what is on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from dspex.bus import nats
from dspex.bus.errors import BusError, Unreachable, Unsettled
from dspex.bus.memory.connection import LATE
from dspex.bus.memory.faults import Luck
from dspex.bus.message import Message
from dspex.bus.nats import NatsBus
from dspex.bus.nats.work import NatsDelivery
from dspex.bus.port import Bus, Delivery, Objects, Reader, StreamConfig, StreamInfo, WorkQueue
from dspex.bus.tasks import Tasks
from dspex.engine.testing.clock import Clock
from dspex.engine.testing.door import BehindDoor

T = TypeVar("T")
PATIENCE = 30.0  # seconds of the machine's time without an answer, after which the server is given up
SOON = (
    1.0  # the same where it is not sure that the server has to say something: for deliveries, and in the middle of operations
)
READS = ("get", "last", "multi_last", "next", "scan", "page")
WRITES = ("publish", "commit")
STIRRING = (*WRITES, "publish_all")  # after these something may be on its way that nobody waits for


@dataclass(eq=False)
class ReadMark:
    """How far a reader or a queue has got. `waits`: for more, now. `empty`: up to here, nothing else is for it."""

    stream: str
    filters: Sequence[str]
    last: int
    empty: int = 0
    waits: bool = False
    moved: asyncio.Event = field(default_factory=asyncio.Event)


class ServerWire:
    """What the connections of a driver have in common.

    Attributes:
        clock: the time of the driver.
        stirred: something may be on its way that nobody waits for: `arrives` looks.
        marks: of the readers and queues that are open.
    """

    def __init__(self, url: str, luck: Luck) -> None:
        self.luck, self.clock, self.stirred = luck, Clock(), False
        self._url, self._dialing, self._operations, self._expected = url, 0, 0, False
        self._tasks = Tasks("driver")
        self._buses: list[NatsBus] = []
        self.marks: dict[ReadMark, None] = {}
        self.created: dict[str, float] = {}  # stream → when it was made, on the machine's clock
        self.patterns: dict[str, str] = {}  # consumer of work → its subjects
        self.last_of: dict[str, int] = {}  # and the last message that anybody took

    # -- connections ---------------------------------------------------------------------------------------------------
    async def connect(self) -> Bus:
        self._dialing += 1
        try:
            inner = await nats.connect(self._url, name="dspex/driver")
        finally:
            self._dialing -= 1
        self._buses.append(inner)
        return cast("Bus", _WiredBus(self, inner))

    async def disconnect(self, bus: NatsBus) -> None:
        """Close a connection; nothing where it was closed before."""
        if bus in self._buses:
            await bus.close()
            self._buses.remove(bus)

    async def close(self) -> None:
        """Close all."""
        await self._tasks.stop()
        for bus in list(self._buses):
            await self.disconnect(bus)

    def deliver_again(self, delivery: Delivery) -> None:
        """Hand back a piece of work for a process that is dead or has forgotten it."""
        self._buses[0].hand_back(cast("NatsDelivery", delivery))
        self.stirred = True

    def later(self, seconds: float, do: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something after so many seconds."""

        async def wait() -> None:
            await asyncio.sleep(seconds)
            await do()

        self._tasks.start(wait(), "later")

    # -- what is on its way --------------------------------------------------------------------------------------------
    def on_its_way(self) -> float:
        """Seconds of the machine's time to wait for the wire; 0 where nothing is to come."""
        if self._dialing or any(bus.asking for bus in self._buses):
            return PATIENCE
        return SOON if self._expected or self._operations else 0.0

    async def arrives(self) -> bool:
        """Whether something came for a reader or a queue that waits; waits for it, where the server has it."""
        bus = self._buses[0]
        for mark in [m for m in self.marks if m.waits]:
            info = await bus.stream(mark.stream)
            if info is None or info.last <= max(mark.last, mark.empty):
                continue
            begin = max(mark.last, mark.empty) + 1
            if any([await bus.next(mark.stream, f, begin) for f in mark.filters]):
                self._expected = True
                try:
                    while mark.waits and mark.last < begin:
                        await mark.moved.wait()
                finally:
                    self._expected = False
                return True
            mark.empty = info.last
        return False

    # -- faults ----------------------------------------------------------------------------------------------------
    async def trip(self) -> None:
        """What may happen to any operation, as on the in-memory bus."""
        if pause := self.luck.pause():
            await asyncio.sleep(pause)
        if self.luck.hits(self.luck.faults.disconnect):
            raise Unreachable("the connection was cut (a fault of the test)")

    async def _do(self, operation: Callable[[], Awaitable[T]]) -> T:
        self._operations += 1
        try:
            return await operation()
        finally:
            self._operations -= 1

    async def through(self, name: str, operation: Callable[[], Awaitable[T]]) -> T:
        """See `Passage`."""
        self.stirred |= name in STIRRING
        await self.trip()
        if name not in WRITES or not self.luck.hits(self.luck.faults.unsettled):
            result = await self._do(operation)
            self.stirred |= name in STIRRING
            return cast("T", self.clock.read(result)) if name in READS else result

        async def unseen() -> None:
            with suppress(BusError):  # nobody hears what becomes of it: that is the fault
                await self._do(operation)

        fate = self.luck.random.choice(("landed", "late", "lost"))
        if fate == "landed":
            await unseen()
        elif fate == "late":
            self.later(self.luck.random.uniform(0, LATE), unseen)
        raise Unsettled("no answer to a write (a fault of the test)")


class _WiredBus(BehindDoor):
    """A connection that tells the time of the driver, and knows how far what it opened has got."""

    _inner: NatsBus

    def __init__(self, wire: ServerWire, inner: NatsBus) -> None:
        super().__init__(wire, inner)
        self._wire = wire

    async def close(self) -> None:
        await self._wire.disconnect(self._inner)

    async def stream(self, name: str) -> StreamInfo | None:
        info = await self._wire.through("stream", lambda: self._inner.stream(name))
        return self._told(info) if info is not None else None

    async def ensure_stream(self, config: StreamConfig) -> StreamInfo:
        return self._told(await self._wire.through("ensure_stream", lambda: self._inner.ensure_stream(config)))

    def _told(self, info: StreamInfo) -> StreamInfo:
        self._wire.created[info.name] = info.created
        return replace(info, now=self._wire.clock.now, created=self._wire.clock.at(info.created))

    async def reader(self, stream: str, filters: Sequence[str], *, after: int, **options: Any) -> Reader:
        options["created"] = self._wire.created.get(stream, 0.0) if options.get("created") else 0.0
        options["time"] = 0.0  # that of the message at `after`, of the driver's clock: nobody rolls this stream back
        inner = await self._wire.through("reader", lambda: self._inner.reader(stream, filters, after=after, **options))
        return _WiredReader(self._wire, inner, ReadMark(stream, tuple(filters), after))

    async def work(self, stream: str, *, name: str, free: Callable[[], int]) -> WorkQueue | None:
        queue = await self._wire.through("work", lambda: self._inner.work(stream, name=name, free=free))
        if queue is None:
            return None
        pattern = self._wire.patterns[name]
        return _WiredQueue(self._wire, queue, ReadMark(stream, (pattern,), self._wire.last_of[name]), name)

    async def add_consumer(self, stream: str, pattern: str, *, name: str, ack_wait: float, after: int = 0) -> None:
        add = self._inner.add_consumer
        await self._wire.through("add_consumer", lambda: add(stream, pattern, name=name, ack_wait=ack_wait, after=after))
        self._wire.patterns[name] = pattern
        self._wire.last_of.setdefault(name, after)

    async def objects(self, name: str, *, replicas: int = 1) -> Objects:
        inner = await self._wire.through("objects", lambda: self._inner.objects(name, replicas=replicas))
        return cast("Objects", _WiredObjects(self._wire, inner))


class _WiredObjects(BehindDoor):
    """An object store that tells the times of the driver."""

    _inner: Objects

    def __init__(self, wire: ServerWire, inner: Objects) -> None:
        super().__init__(wire, inner)
        self._wire, self._put = wire, dict[str, float]()  # when each was put, on the machine's clock

    async def listing(self) -> dict[str, float]:
        self._put = await self._wire.through("listing", self._inner.listing)
        return {name: self._wire.clock.at(put) for name, put in self._put.items()}

    async def remove(self, name: str, put: float) -> bool:
        return await self._wire.through("remove", lambda: self._inner.remove(name, self._put[name]))


class _Waiting:
    """Something that waits for messages, and notes how far it has got."""

    def __init__(self, wire: ServerWire, at: ReadMark) -> None:
        self._wire, self._at = wire, at
        wire.marks[at] = None

    async def _wait(self, operation: Callable[[], Awaitable[T]]) -> T:
        self._at.waits = self._wire.stirred = True
        self._at.moved.clear()
        try:
            return await operation()
        finally:
            self._at.waits = False
            self._at.moved.set()

    def _closed(self) -> None:
        self._wire.marks.pop(self._at, None)


class _WiredReader(_Waiting):
    def __init__(self, wire: ServerWire, inner: Reader, at: ReadMark) -> None:
        super().__init__(wire, at)
        self._inner = inner

    async def read(self, limit: int) -> list[Message]:
        await self._wire.trip()
        got = await self._wait(lambda: self._inner.read(limit))
        self._at.last = max(self._at.last, got[-1].sequence)
        return [self._wire.clock.read(message) for message in got]

    async def close(self) -> None:
        self._closed()
        await self._inner.close()


class _WiredQueue(_Waiting):
    def __init__(self, wire: ServerWire, inner: WorkQueue, at: ReadMark, name: str) -> None:
        super().__init__(wire, at)
        self._inner, self._name = inner, name

    @property
    def dry(self) -> bool:
        return self._inner.dry

    async def next(self) -> Delivery:
        await self._wire.trip()
        found = await self._wait(self._inner.next)
        self._at.last = max(self._at.last, found.message.sequence)
        self._wire.last_of[self._name] = max(self._wire.last_of[self._name], self._at.last)
        if self._wire.luck.hits(self._wire.luck.faults.duplicate):
            self._wire.deliver_again(found)
        found.message = self._wire.clock.read(found.message)
        return found

    def ask_for_more(self) -> None:
        self._inner.ask_for_more()

    async def close(self) -> None:
        self._closed()
        await self._inner.close()
