"""What only a real server can do to a reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from broken.keeps_back import KeepsBack

from dspex.bus.errors import BusError, NotAllowed, Unreachable, Unsettled
from dspex.bus.message import Message
from dspex.bus.nats import NatsBus
from dspex.bus.port import BusEvents, NewMessage, Reader, StreamConfig

Open = Callable[..., Awaitable[NatsBus]]


async def take(reader: Reader, count: int) -> list[int]:
    """The sequences of the next `count` messages."""
    got: list[int] = []
    async with asyncio.timeout(30):
        while len(got) < count:
            got += [m.sequence for m in await reader.read(count - len(got))]
    return got


async def fill(bus: NatsBus, subject: str, count: int, size: int = 10) -> None:
    for start in range(0, count, 50):
        await bus.commit([NewMessage(subject, b"x" * size)] * min(50, count - start))


async def consumer(bus: NatsBus) -> str:
    """The name of the only consumer."""
    (name,) = (await bus._connection.api("CONSUMER.NAMES.S", {}))["consumers"]
    return str(name)


async def landed(bus: NatsBus, subject: str) -> None:
    """Publish one message, however often that takes."""
    while True:
        await asyncio.wait_for(bus._connection.up.wait(), 30)
        try:
            await bus.publish(NewMessage(subject, b"", {"Nats-Msg-Id": subject}), timeout=1)
            return
        except (Unreachable, Unsettled):
            continue


@pytest_asyncio.fixture
async def proxied() -> AsyncIterator[Callable[[str], Awaitable[KeepsBack]]]:
    made: list[KeepsBack] = []

    async def start(url: str) -> KeepsBack:
        made.append(KeepsBack(url))
        await made[-1].start()
        return made[-1]

    yield start
    for wire in made:
        await wire.stop()


@pytest.mark.asyncio
async def test_a_reader_loses_and_doubles_nothing_when_the_server_is_killed(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    reader = await bus.reader("S", ["s.a"], after=0, name="r", window=100)
    got: list[int] = []
    for _ in range(3):
        await fill(bus, "s.a", 500)
        got += await take(reader, 250)
        server.kill()
        server.start()
        await landed(bus, "s.other")
        got += await take(reader, 250)
    want = [m.sequence for m in await bus.scan("S", ["s.a"], start=1, stop=1 << 40)]
    assert got == want


@pytest.mark.asyncio
async def test_a_reader_goes_on_when_its_consumer_is_deleted(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    await fill(bus, "s.a", 300)
    reader = await bus.reader("S", ["s.a"], after=0, name="r", window=20)
    got = await take(reader, 90)
    await bus._connection.api(f"CONSUMER.DELETE.S.{await consumer(bus)}", None)
    got += await take(reader, 210)
    waiting, name = asyncio.create_task(reader.read(1)), await consumer(bus)
    async with asyncio.timeout(30):  # a pull that meets the deletion on its way gets no answer at all
        while (await bus._connection.api(f"CONSUMER.INFO.S.{name}", None))["num_waiting"] == 0:
            await asyncio.sleep(0)
    await bus._connection.api(f"CONSUMER.DELETE.S.{name}", None)  # while it waits for something new
    await fill(bus, "s.a", 1)
    got += [m.sequence for m in await asyncio.wait_for(waiting, 30)]
    assert got == list(range(1, 302))


@pytest.mark.asyncio
async def test_a_reader_goes_on_when_another_takes_its_name(server: Any, opened: Open) -> None:  # N12
    bus = await opened(server.start().url)
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    await fill(bus, "s.a", 200)
    one = await bus.reader("S", ["s.a"], after=0, name="r", window=20)
    got = await take(one, 50)
    two = await bus.reader("S", ["s.a"], after=0, name="r", window=20)
    assert await take(two, 200) == list(range(1, 201))
    await two.close()
    assert got + await take(one, 150) == list(range(1, 201))


@pytest.mark.asyncio
async def test_a_reader_misses_nothing_when_a_delivery_is_lost(server: Any, opened: Open) -> None:
    bus, thief = await opened(server.start().url), await opened(server.url)
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    reader = await bus.reader("S", ["s.a"], after=0, name="r")
    stolen: list[Message] = []

    inbox = thief.inbox(stolen.append).subject
    pull = b'{"batch": 30, "expires": 5000000000}'  # shares the consumer's messages with the reader
    await thief.send(f"$JS.API.CONSUMER.MSG.NEXT.S.{await consumer(bus)}", pull, reply=inbox)
    await thief._connection.flush()
    for _ in range(100):
        await bus.publish(NewMessage("s.a", b""))
    assert await take(reader, 100) == list(range(1, 101))
    assert stolen


@pytest.mark.asyncio
async def test_an_idle_reader_is_back_without_a_missed_heartbeat_after_the_server_was_killed(
    server: Any, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:  # N1
    monkeypatch.setattr("dspex.bus.nats.reader.HEARTBEAT", 14.0)  # two missed ones would be too late
    bus = await opened(server.start().url)
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    reader = await bus.reader("S", ["s.a"], after=0, name="r")
    waiting = asyncio.create_task(reader.read(1))
    await bus._connection.flush()
    server.kill()
    server.start()
    await landed(bus, "s.a")
    assert len(await asyncio.wait_for(waiting, 25)) == 1


@pytest.mark.asyncio
async def test_a_reader_holds_no_more_than_its_window(server: Any, opened: Open) -> None:  # N3
    bus = await opened(server.start().url)
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    await fill(bus, "s.a", 200)
    reader = await bus.reader("S", ["s.a"], after=0, name="r", window=50)
    await take(reader, 10)
    await bus._connection.flush()
    assert 50 <= await sent(bus) <= 60
    assert await take(reader, 190) == list(range(11, 201))


@pytest.mark.asyncio
async def test_a_reader_holds_no_more_than_64_mib(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    await fill(bus, "s.a", 100, size=bus.max_payload)
    reader = await bus.reader("S", ["s.a"], after=0, name="r")
    await take(reader, 1)
    await bus._connection.flush()
    assert await sent(bus) <= 64
    assert await take(reader, 99) == list(range(2, 101))


async def sent(bus: NatsBus) -> int:
    """How many messages the server has sent to the reader."""
    info = await bus._connection.api(f"CONSUMER.INFO.S.{await consumer(bus)}", None)
    return int(info["delivered"]["consumer_seq"])


@pytest.mark.asyncio
async def test_a_position_beyond_the_end_waits_for_what_comes_after_it(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    reader = await bus.reader("S", ["s.a"], after=5, name="r")
    await fill(bus, "s.a", 7)
    assert await take(reader, 2) == [6, 7]


@pytest.mark.asyncio
async def test_a_reader_without_permission_raises_not_allowed(server: Any, opened: Open) -> None:
    server.more = """
    accounts { A { jetstream: enabled, users: [
      { user: all, password: p },
      { user: few, password: p, permissions: { publish: { deny: ["$JS.API.CONSUMER.MSG.NEXT.>"] } } }
    ] } }
    """
    every = await opened(server.start().url, user="all", password="p")
    await every.ensure_stream(StreamConfig("S", ["s.>"]))
    few = await opened(server.url, user="few", password="p")
    reader = await few.reader("S", ["s.a"], after=0, name="r")
    with pytest.raises(NotAllowed):
        await asyncio.wait_for(reader.read(1), 30)


@pytest.mark.asyncio
async def test_a_reader_of_a_missing_stream_is_refused(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)
    with pytest.raises(BusError, match="stream not found"):
        await bus.reader("S", ["s.a"], after=0, name="r")


@pytest.mark.asyncio
async def test_what_came_before_the_stream_was_known_to_be_the_right_one_comes_once(
    server: Any, opened: Open, proxied: Callable[[str], Awaitable[KeepsBack]]
) -> None:
    """The connection is cut while messages are held back: they are read again, and none of them twice."""
    wire = await proxied(server.start().url)
    direct, bus = await opened(server.url), await opened(wire.url)
    await direct.ensure_stream(StreamConfig("S", ["s.>"]))
    await fill(direct, "s.a", 30)
    reader = await bus.reader("S", ["s.a"], after=0, name="r", window=20)
    got = await take(reader, 5)
    await direct._connection.api(f"CONSUMER.DELETE.S.{await consumer(direct)}", None)
    wire.keep_back(b"STREAM.INFO.S ")  # the reader makes another consumer, and hears nothing of its stream
    got += await take(reader, 15)
    await wire.kept.wait()
    async with asyncio.timeout(30):
        while await sent(direct) < 10:  # to the new consumer, behind the 20 that were read
            await asyncio.sleep(0)
    await wire.cut()
    got += await take(reader, 10)
    await fill(direct, "s.a", 1)
    assert got + await take(reader, 1) == list(range(1, 32))


@pytest.mark.asyncio
async def test_of_a_stream_that_is_replaced_while_a_reader_begins_nothing_is_left_out(
    server: Any, opened: Open, proxied: Callable[[str], Awaitable[KeepsBack]]
) -> None:
    wire = await proxied(server.start().url)
    direct, bus = await opened(server.url), await opened(wire.url)
    await direct.ensure_stream(StreamConfig("S", ["s.>"]))
    await fill(direct, "s.a", 30)
    wire.keep_back(b"STREAM.INFO.S ")
    begins = asyncio.create_task(bus.reader("S", ["s.a"], after=0, name="r"))
    await wire.kept.wait()
    await direct._connection.flush()
    await direct.remove("stream", "S")
    await direct.ensure_stream(StreamConfig("S", ["s.>"]))
    await fill(direct, "s.a", 40)
    await direct.delete("S", 30)
    wire.let_go()
    assert await take(await begins, 39) == [n for n in range(1, 41) if n != 30]


@pytest.mark.asyncio
async def test_reading_leaves_no_consumer_behind(server: Any, opened: Open) -> None:
    errors: list[str] = []
    bus = await opened(server.start().url, events=BusEvents(error=errors.append))
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    await fill(bus, "s.a", 100)
    bucket = await bus.bucket("B")
    for n in range(20):
        await bucket.put(f"k.{n}", b"")
        assert len(await bucket.items("k")) == n + 1
        assert len(await bus.scan("S", ["s.a", "s.b"], start=1, stop=100)) == 100
    reader = await bus.reader("S", ["s.a"], after=0, name="r")
    await reader.close()
    async with asyncio.timeout(10):  # nobody waits until they are gone
        for stream in ("S", "KV_B"):
            while (await bus._connection.api(f"CONSUMER.NAMES.{stream}", {}))["total"] > 0:
                await asyncio.sleep(0)
    assert errors == []


@pytest.mark.asyncio
async def test_a_scan_over_many_pages_and_filters_misses_nothing(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    for n in range(12):
        await bus.commit([NewMessage(f"s.{i % 7}", b"%d" % (n * 1000 + i)) for i in range(1000)])
    filters = [f"s.{i}" for i in (0, 2, 3, 5)]
    found = await bus.scan("S", filters, start=100, stop=11_900)
    want = [s for s in range(100, 11_901) if (s - 1) % 1000 % 7 in (0, 2, 3, 5)]
    assert [m.sequence for m in found] == want
    assert all(m.data == b"%d" % (m.sequence - 1) for m in found)


@pytest.mark.asyncio
async def test_a_bucket_lists_more_keys_than_one_answer_takes(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)
    bucket = await bus.bucket("B")
    await asyncio.gather(*[bucket.put(f"k.{n}", b"%d" % n) for n in range(1100)])
    items = await bucket.items("k")
    assert {k: v for k, (v, _) in items.items()} == {f"k.{n}": b"%d" % n for n in range(1100)}
