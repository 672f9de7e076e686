"""What the tests of the buses' contract share: streams made, messages stored and taken, each in one line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from dspex.bus.message import Message
from dspex.bus.port import Bus, NewMessage, Reader, StreamConfig, StreamInfo

T = TypeVar("T")
Buses = tuple[Bus, Bus]
Connect = Callable[[], Awaitable[Bus]]
PATIENCE = 30.0  # seconds; what is promised to come comes at once, unless the machine is busy


async def soon(promise: Awaitable[T]) -> T:
    """The result, which must come."""
    return await asyncio.wait_for(promise, PATIENCE)


async def stream(bus: Bus, name: str, subjects: Sequence[str] = (), **options: Any) -> StreamInfo:
    """Make a stream; of all subjects below its name unless others are given."""
    return await bus.ensure_stream(StreamConfig(name, subjects or [f"{name}.>"], **options))


async def put(bus: Bus, subject: str, *texts: object) -> list[int]:
    """Store these, one by one; their sequence numbers."""
    return [(await bus.publish(NewMessage(subject, str(t).encode()))).sequence for t in texts]


async def stored(bus: Bus, name: str, *filters: str) -> list[str]:
    """The data of all messages in the stream, in order."""
    return texts(await bus.scan(name, filters or [f"{name}.>"], start=1, stop=1 << 40))


async def between(bus: Bus, name: str, start: int, stop: int) -> list[Message]:
    """The messages of a stream from one sequence number to another, both included."""
    return await bus.scan(name, [f"{name}.>"], start=start, stop=stop)


async def take(reader: Reader, count: int, limit: int = 100) -> list[Message]:
    """Exactly `count` messages from the reader."""
    got: list[Message] = []
    while len(got) < count:
        got += await soon(reader.read(min(limit, count - len(got))))
    return got


def texts(messages: Sequence[Message]) -> list[str]:
    """The data of messages."""
    return [m.data.decode() for m in messages]
