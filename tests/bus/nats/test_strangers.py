"""What another client of the same account can do to a connection of ours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from dspex.bus.errors import BusError, NotAllowed
from dspex.bus.message import Message
from dspex.bus.nats import NatsBus
from dspex.bus.port import BusEvents, NewMessage, StreamConfig

Open = Callable[..., Awaitable[NatsBus]]
FORGED = (b"", b"{}", b"[]", b"\xff", b'{"seq": 99999999, "stream": 5}', b'{"error": 7}', b'{"stream": "S", "seq": 99999999}')
NESTED = b'{"error": ' + b"[" * 5000
ERRORS = (NESTED, b'{"error": {"err_code": "x"}}', b'{"error": {"err_code": [1]}}', b'{"error": {"err_code": Infinity}}')
STATUS = b"NATS/1.0 409 MaxBytes\r\nNats-Pending-Messages: many\r\n\r\n"
PERMISSIONS = """
accounts {
  $SYS { users: [ { user: sys, password: sys } ] }
  A { jetstream: enabled, users: [
    { user: all, password: p },
    { user: apart, password: p, permissions: { publish: ">", subscribe: "_INBOX_apart.>" } }
  ] }
}
"""


async def heard(bus: NatsBus) -> asyncio.Queue[Message]:
    """All that anybody on the server publishes from now on."""
    messages = asyncio.Queue[Message]()
    await bus.subscribe(">", messages.put)
    return messages


def inbox_of(messages: asyncio.Queue[Message], kind: str) -> str:
    """The inbox of the last request of this kind."""
    found = ""
    while not messages.empty():
        message = messages.get_nowait()
        found = message.reply if kind in message.subject else found
    assert found
    return found


async def say(bus: NatsBus, to: str) -> None:
    """Publish all kinds of garbage there, and what looks like a delivery but for its reply."""
    for data in FORGED:
        await bus.send(to, data)
    bus._connection.put(b"HPUB %b  %d %d\r\n%b\r\n" % (to.encode(), len(STATUS), len(STATUS), STATUS))
    for reply in ("a", "$JS", "forged.ACK.S.r.1.99999999.1.1.0", "$KV.ACK.S.r.1.9.1.1.0", "a.b.c.d.e.f.g.h.i.j.k.l"):
        await bus.send(to, b"forged", reply=reply)
    await bus._connection.flush()


@pytest.mark.asyncio
async def test_nothing_that_others_publish_to_its_inbox_comes_out_of_a_reader(server: Any, opened: Open) -> None:
    told: list[str] = []
    bus, stranger = await opened(server.start().url, events=BusEvents(error=told.append)), await opened(server.url)
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    messages = await heard(stranger)
    reader = await bus.reader("S", ["s.a"], after=0, name="r")
    await bus._connection.flush()
    await stranger._connection.flush()
    inbox = inbox_of(messages, "MSG.NEXT")
    await say(stranger, inbox)
    await say(stranger, inbox.rpartition(".")[0] + ".x")
    await bus.publish(NewMessage("s.a", b"good"))
    (message,) = await asyncio.wait_for(reader.read(10), 30)
    assert (message.data, message.sequence) == (b"good", 1)
    assert any("inbox" in line for line in told)


@pytest.mark.asyncio
async def test_nothing_that_others_publish_to_its_inbox_comes_out_of_a_work_queue(server: Any, opened: Open) -> None:
    told: list[str] = []
    bus, stranger = await opened(server.start().url, events=BusEvents(error=told.append)), await opened(server.url)
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    await bus.add_consumer("S", "s.a", name="w", ack_wait=30)
    messages = await heard(stranger)
    queue = await bus.work("S", name="w", free=lambda: 1)
    assert queue is not None
    waiting = asyncio.create_task(queue.next())
    async with asyncio.timeout(30):
        while (await bus._connection.api("CONSUMER.INFO.S.w", None))["num_waiting"] == 0:
            await asyncio.sleep(0)
    await stranger._connection.flush()
    inbox = inbox_of(messages, "MSG.NEXT")
    await say(stranger, inbox)
    await say(stranger, inbox.rpartition(".")[0] + ".x")
    await bus.publish(NewMessage("s.a", b"good"))
    assert (await asyncio.wait_for(waiting, 30)).message.data == b"good"
    assert any("inbox" in line for line in told)


@pytest.mark.asyncio
@pytest.mark.parametrize("data", FORGED[:-1] + ERRORS)
async def test_a_forged_answer_is_an_error_of_the_bus(server: Any, opened: Open, data: bytes) -> None:
    bus, stranger = await opened(server.start().url), await opened(server.url)

    async def answer(message: Message) -> None:
        await stranger.send(message.reply, data)

    await stranger.subscribe("nobody.>", answer)
    await stranger.subscribe("$JS.API.STREAM.INFO.none", answer)
    with pytest.raises(BusError):
        await bus.publish(NewMessage("nobody.stores", b""), timeout=0.5)
    with suppress(BusError):  # where the forged answer was quicker
        assert await bus.stream("none") is None


@pytest.mark.asyncio
async def test_with_an_inbox_prefix_of_its_own_a_user_may_hear_nothing_of_others(server: Any, opened: Open) -> None:
    server.more = PERMISSIONS
    url = server.start().url
    bus = await opened(url, user="apart", password="p", inbox_prefix="_INBOX_apart")
    other = await opened(url, user="all", password="p")
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    await bus.publish(NewMessage("s.a", b"good"))
    reader = await bus.reader("S", ["s.a"], after=0, name="r")
    (message,) = await asyncio.wait_for(reader.read(10), 30)
    assert message.data == b"good"
    assert [m.data for m in await bus.scan("S", ["s.a"], start=1, stop=1)] == [b"good"]
    assert bus.inbox(print).subject.startswith("_INBOX_apart.")
    for subject in ("_INBOX.>", f"_INBOX.{other._connection.id}.>", "s.>"):
        with pytest.raises(NotAllowed):
            await bus.subscribe(subject, asyncio.Queue[Message]().put)


@pytest.mark.asyncio
async def test_a_flood_of_messages_lets_everything_else_have_its_turn(opened: Open, nats_url: str, unique: str) -> None:
    """Where a handler waits for nothing, a process that answers would give no sign of life until it has answered all."""
    bus, stranger = await opened(nats_url), await opened(nats_url)
    done, handled, turns = asyncio.Event(), 0, 0

    async def handle(message: Message) -> None:
        nonlocal handled
        end, handled = time.perf_counter() + 0.001, handled + 1
        while time.perf_counter() < end:
            pass
        if handled == 1000:
            done.set()

    async def live() -> None:
        nonlocal turns
        while not done.is_set():
            await asyncio.sleep(0)
            turns += handled > 0

    await bus.subscribe(unique, handle)
    for _ in range(1000):
        await stranger.send(unique, b"")
    async with asyncio.timeout(60):
        await live()
    assert turns > 20
