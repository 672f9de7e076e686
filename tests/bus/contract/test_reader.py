"""`reader`: every message once, in order, from a position on. On both buses."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from bus_bench import Buses, put, soon, stream, take, texts

from dspex.bus.errors import Unreachable
from dspex.bus.memory.server import MemoryBus
from dspex.bus.port import Bus, NewMessage


@pytest.mark.asyncio
async def test_a_reader_gives_every_message_once_in_order(buses: Buses, unique: str) -> None:
    a, b = buses
    await stream(a, unique)
    reader = await b.reader(unique, [f"{unique}.>"], after=0, name=unique, window=50)

    async def write() -> None:
        for n in range(0, 1000, 100):
            await a.commit([NewMessage(f"{unique}.{i % 7}", b"%d" % i) for i in range(n, n + 100)])

    writing = asyncio.create_task(write())
    messages = await take(reader, 1000, limit=33)
    await writing
    assert texts(messages) == [str(n) for n in range(1000)]
    assert [m.sequence for m in messages] == list(range(1, 1001))
    assert all(x.time <= y.time for x, y in pairwise(messages))


@pytest.mark.asyncio
async def test_a_reader_gives_no_more_than_asked_and_waits_for_the_first(buses: Buses, unique: str) -> None:
    a, b = buses
    await stream(a, unique)
    reader = await b.reader(unique, [f"{unique}.>"], after=0, name=unique)
    waiting = asyncio.create_task(reader.read(2))
    await put(a, f"{unique}.a", 1, 2, 3)
    got = await soon(waiting)
    assert 1 <= len(got) <= 2
    assert texts(got + await take(reader, 3 - len(got), limit=1)) == ["1", "2", "3"]


@pytest.mark.asyncio
async def test_a_reader_keeps_to_its_filters(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    reader = await bus.reader(unique, [f"{unique}.a.*", f"{unique}.b"], after=0, name=unique)
    for n, end in enumerate(("a.x", "c", "b", "a", "a.y", "b.z", "a.x.y", "b")):
        await put(bus, f"{unique}.{end}", n)
    messages = await take(reader, 4)
    assert texts(messages) == ["0", "2", "4", "7"]
    assert [m.sequence for m in messages] == [1, 3, 5, 8]


@pytest.mark.asyncio
async def test_a_reader_starts_behind_its_position(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.a", *range(1, 6))
    past = await bus.reader(unique, [f"{unique}.>"], after=3, name=unique)
    future = await bus.reader(unique, [f"{unique}.>"], after=7, name=unique + "f")
    waiting = asyncio.create_task(take(future, 2))
    await put(bus, f"{unique}.a", *range(6, 10))
    assert texts(await take(past, 6)) == ["4", "5", "6", "7", "8", "9"]
    assert texts(await soon(waiting)) == ["8", "9"]


@pytest.mark.asyncio
async def test_a_reader_skips_messages_that_were_removed(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.a", *range(1, 7))
    await bus.purge(unique, f"{unique}.a", below=3)
    await bus.delete(unique, 5)
    reader = await bus.reader(unique, [f"{unique}.>"], after=0, name=unique)
    assert texts(await take(reader, 3)) == ["3", "4", "6"]


@pytest.mark.asyncio
async def test_reading_from_a_closed_reader_raises(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    reader = await bus.reader(unique, [f"{unique}.>"], after=0, name=unique)
    waiting = asyncio.create_task(reader.read(1))
    await put(bus, f"{unique}.a", 1)
    await soon(waiting)
    waiting = asyncio.create_task(reader.read(1))
    await bus.stream(unique)  # the read has begun by now
    await reader.close()
    with pytest.raises(Unreachable):
        await soon(waiting)
    with pytest.raises(Unreachable):
        await soon(reader.read(1))
    again = await bus.reader(unique, [f"{unique}.>"], after=0, name=unique)
    assert texts(await take(again, 1)) == ["1"]


async def remove(bus: Bus, name: str) -> None:
    if isinstance(bus, MemoryBus):
        del bus.server.streams[name]
    else:
        await bus.request(f"$JS.API.STREAM.DELETE.{name}", b"")


@pytest.mark.asyncio
async def test_a_reader_never_goes_on_in_a_stream_that_was_made_anew(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await put(bus, f"{unique}.a", 1, 2)
    first = await bus.stream(unique)
    assert first is not None
    reader = await bus.reader(unique, [f"{unique}.>"], after=0, name=unique)
    assert texts(await take(reader, 2)) == ["1", "2"]
    waiting = asyncio.create_task(reader.read(1))
    await remove(bus, unique)
    await stream(bus, unique)
    await put(bus, f"{unique}.a", 3, 4, 5, 6)
    with pytest.raises(Unreachable, match="made anew"):
        await soon(waiting)
    await reader.close()
    late = await bus.reader(unique, [f"{unique}.>"], after=2, name=f"{unique}-late", created=first.created)
    with pytest.raises(Unreachable, match="made anew"):
        await soon(asyncio.create_task(late.read(1)))
    await late.close()


@pytest.mark.asyncio
async def test_a_reader_does_not_begin_behind_another_message_than_the_one_that_was_read(bus: Bus, unique: str) -> None:
    """In a stream that was rolled back and filled again it would leave out what lies before."""
    await stream(bus, unique)
    await put(bus, f"{unique}.a", 1, 2, 3)
    second = await bus.get(unique, 2)
    assert second is not None
    good = await bus.reader(unique, [f"{unique}.>"], after=2, name=unique, time=second.time)
    assert texts(await take(good, 1)) == ["3"]
    await good.close()
    for after, time in ((2, second.time + 1), (4, second.time)):  # another one lies there, and none yet
        late = await bus.reader(unique, [f"{unique}.>"], after=after, name=f"{unique}-{after}", time=time)
        with pytest.raises(Unreachable):
            await soon(asyncio.create_task(late.read(1)))
        await late.close()


@pytest.mark.asyncio
async def test_a_reader_without_bodies_gives_headers_and_empty_messages(bus: Bus, unique: str) -> None:
    await stream(bus, unique)
    await bus.publish(NewMessage(f"{unique}.a", b"large", {"Of": "one"}))
    await bus.publish(NewMessage(f"{unique}.a", b"large"))
    reader = await bus.reader(unique, [f"{unique}.>"], after=0, name=unique, bodies=False)
    one, two = await take(reader, 2)
    assert (one.data, one.headers["Of"], two.data) == (b"", "one", b"")
