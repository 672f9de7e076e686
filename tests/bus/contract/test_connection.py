"""A connection that is closed. On both buses."""

from __future__ import annotations

import asyncio

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
    for attempt in (
        waiting,
        bus.publish(NewMessage(f"{unique}.a", b"")),
        bus.commit([NewMessage(f"{unique}.a", b""), NewMessage(f"{unique}.a", b"")]),
        bus.stream(unique),
        bus.get(unique, 1),
        bus.request(unique, b""),
        bus.send(unique, b""),
        bucket.put("k", b""),
        bucket.get("k"),
    ):
        with pytest.raises(Unreachable):
            await soon(attempt)
    other = await connect()
    assert await stored(other, unique) == []
