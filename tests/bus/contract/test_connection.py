"""A connection that is closed. On both buses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from bus_bench import Connect, soon, stored, stream

from dspex.bus.errors import Unreachable
from dspex.bus.port import NewMessage


@pytest.mark.asyncio
async def test_a_closed_connection_does_nothing_more(connect: Connect, unique: str) -> None:
    bus = await connect()
    await stream(bus, unique)
    bucket = await bus.bucket(unique)
    reader = await bus.reader(unique, [f"{unique}.>"], after=0, name=unique)
    waiting = asyncio.create_task(reader.read(1))
    await bus.stream(unique)
    assert bus.connected
    await bus.close()
    await bus.close()
    assert not bus.connected
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: waiting,
        lambda: bus.publish(NewMessage(f"{unique}.a", b"")),
        lambda: bus.publish_all([NewMessage(f"{unique}.a", b"")]),
        lambda: bus.commit([NewMessage(f"{unique}.a", b""), NewMessage(f"{unique}.a", b"")]),
        lambda: bus.stream(unique),
        lambda: bus.get(unique, 1),
        lambda: bus.request(unique, b""),
        lambda: bus.send(unique, b""),
        lambda: bucket.put("k", b""),
        lambda: bucket.get("k"),
    ]
    for attempt in attempts:
        with pytest.raises(Unreachable):
            await soon(attempt())
    other = await connect()
    assert await stored(other, unique) == []
