"""`request`, `subscribe` and `send`: messages that are not stored. On both buses."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from bus_bench import PATIENCE, Buses, put, soon, stream

from dspex.bus import subjects
from dspex.bus.errors import Saturated, Unreachable
from dspex.bus.message import Message
from dspex.bus.port import Bus, NewMessage


@pytest.mark.asyncio
async def test_a_request_is_answered(buses: Buses, unique: str) -> None:
    asker, answerer = buses

    async def answer(message: Message) -> None:
        assert message.reply
        await answerer.send(message.reply, message.data + b"!", headers={"Echo": message.headers["X"]})

    await answerer.subscribe(f"{unique}.*", answer)
    replies = await soon(asyncio.gather(*[asker.request(f"{unique}.a", b"%d" % n, headers={"X": str(n)}) for n in range(20)]))
    assert [(r.data, r.headers["Echo"]) for r in replies] == [(b"%d!" % n, str(n)) for n in range(20)]


@pytest.mark.asyncio
async def test_a_request_to_nobody_is_saturated_at_once(bus: Bus, unique: str) -> None:
    with pytest.raises(Saturated):
        await soon(bus.request(unique, b"", timeout=2 * PATIENCE))


@pytest.mark.asyncio
async def test_a_request_without_an_answer_is_unreachable(buses: Buses, unique: str) -> None:
    async def silent(message: Message) -> None:
        return

    await buses[0].subscribe(unique, silent)
    with pytest.raises(Unreachable):
        await soon(buses[1].request(unique, b"", timeout=0.3))


@pytest.mark.asyncio
async def test_a_closed_subscription_gets_nothing(buses: Buses, unique: str) -> None:
    a, b = buses

    async def answer(message: Message) -> None:
        await a.send(message.reply, b"")

    member = await a.subscribe(unique, answer, queue="q")
    await soon(b.request(unique, b""))
    await member.close()
    with pytest.raises(Saturated):
        await soon(b.request(unique, b"", timeout=2 * PATIENCE))


@pytest.mark.asyncio
async def test_messages_are_handled_one_by_one_in_order(buses: Buses, unique: str) -> None:
    a, b = buses
    got: list[str] = []
    busy, all_here = False, asyncio.Event()

    async def handle(message: Message) -> None:
        nonlocal busy
        assert not busy
        busy = True
        await asyncio.sleep(0)
        got.append(f"{message.subject.removeprefix(unique)}{message.data.decode()}")
        busy = False
        if len(got) == 200:
            all_here.set()

    await b.subscribe(f"{unique}.>", handle)
    for n in range(200):
        await a.send(f"{unique}.{n % 3}", b":%d" % n)
    await soon(all_here.wait())
    assert got == [f".{n % 3}:{n}" for n in range(200)]


@pytest.mark.asyncio
async def test_in_a_queue_group_one_member_gets_each(buses: Buses, unique: str) -> None:
    got: dict[str, list[bytes]] = {"one": [], "two": [], "alone": [], "other": []}
    all_here = asyncio.Event()

    def collect(who: str) -> Callable[[Message], Awaitable[None]]:
        async def handle(message: Message) -> None:
            got[who].append(message.data)
            if sum(map(len, got.values())) == 300:
                all_here.set()

        return handle

    await buses[0].subscribe(unique, collect("one"), queue="q")
    await buses[1].subscribe(unique, collect("two"), queue="q")
    await buses[0].subscribe(unique, collect("alone"))
    await buses[1].subscribe(unique, collect("other"), queue="another")
    sent = [b"%d" % n for n in range(100)]
    for data in sent:
        await buses[0].send(unique, data)
    await soon(all_here.wait())
    assert Counter(got["one"] + got["two"]) == Counter(sent)
    assert len(got["one"]) > 10
    assert len(got["two"]) > 10
    assert got["alone"] == got["other"] == sent


@pytest.mark.asyncio
async def test_a_core_subscriber_sees_what_is_stored_as_it_comes(buses: Buses, unique: str) -> None:
    a, b = buses
    got: list[bytes] = []
    all_here = asyncio.Event()

    async def handle(message: Message) -> None:
        got.append(message.data)
        if len(got) == 3:
            all_here.set()

    await stream(a, unique)
    await b.subscribe(f"{unique}.a", handle)
    await put(a, f"{unique}.a", 0)
    await a.commit([NewMessage(f"{unique}.b", b"x"), NewMessage(f"{unique}.a", b"1"), NewMessage(f"{unique}.a", b"2")])
    await soon(all_here.wait())
    assert got == [b"0", b"1", b"2"]


@pytest.mark.asyncio
async def test_every_inbox_is_unique_and_takes_what_is_sent_to_it_until_it_is_closed(buses: Buses) -> None:
    a, b = buses
    got: asyncio.Queue[Message] = asyncio.Queue()
    first, second = a.inbox(got.put_nowait), a.inbox(got.put_nowait)
    assert len({first.subject, second.subject, b.inbox(got.put_nowait).subject}) == 3
    assert all(subjects.is_inbox(inbox.subject) for inbox in (first, second))
    for n in (b"1", b"2"):
        await b.send(first.subject, n, headers={"N": "1"}, reply="back")
    frames = [await soon(got.get()), await soon(got.get())]
    assert [(f.subject, f.data, f.headers["N"], f.reply) for f in frames] == [
        (first.subject, n, "1", "back") for n in (b"1", b"2")
    ]
    first.close()
    await b.send(first.subject, b"dropped")
    await b.send(second.subject, b"taken")
    assert (await soon(got.get())).data == b"taken"


@pytest.mark.asyncio
async def test_who_asks_and_reaches_nobody_hears_it(buses: Buses, unique: str) -> None:
    got: asyncio.Queue[Message] = asyncio.Queue()
    inbox = buses[0].inbox(got.put_nowait)
    await buses[0].send(unique, b"question", reply=inbox.subject)
    frame = await soon(got.get())
    assert (frame.data, frame.headers["Status"]) == (b"", "503")
