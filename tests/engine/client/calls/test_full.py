"""Calls that find their pool full: they wait in one line of their client, and go on as soon as there is room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pool_bench import APP, ECHO, Talks, talks

import dspex
from dspex.bus import codecs, subjects
from dspex.bus.errors import CallTimeout, Saturated
from dspex.bus.memory.connection import MemoryBus
from dspex.bus.memory.server import MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.message import Message
from dspex.bus.port import BusEvents
from dspex.bus.records import DEFAULT_POOL
from dspex.bus.serving.sayings import BUSY
from dspex.engine.client.calls.full import FullPool
from dspex.engine.client.client import Client

SLOTS = 8  # of the pool of `talks`


@pytest.fixture
def t() -> Iterator[Talks]:
    with talks() as one:
        one.answering.seconds = 1.0
        yield one


class Counted(MemoryBus):
    """What a client sends, and asks. Who listens beside the pool would keep it from hearing that nobody else does."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, BusEvents())
        self.sent, self.asked = 0, 0

    async def send(self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        self.sent += subjects.matches(subjects.call_pattern(APP, DEFAULT_POOL), subject)
        await super().send(subject, data, headers=headers, reply=reply)

    async def request(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, timeout: float = 5.0
    ) -> Message:
        self.asked += subject == subjects.control(APP, DEFAULT_POOL)
        return await super().request(subject, data, headers=headers, timeout=timeout)


def now(t: Talks) -> float:
    return t.loop.time()


async def call(client: Client, text: object, **options: Any) -> str:
    return str((await client.call(ECHO, {"text": str(text)}, **options)).data["reply"]).split()[0]


async def burst(client: Client, number: int) -> list[str]:
    return await asyncio.gather(*(call(client, n) for n in range(number)))


def test_a_burst_keeps_all_slots_busy_and_is_answered_in_its_order(t: Talks) -> None:
    began = now(t)
    assert t.run(burst(t.client, 10 * SLOTS)) == [str(n) for n in range(10 * SLOTS)]
    assert now(t) - began < 10.5, "ten rounds of one second each"
    assert [int(work.inputs["text"]) for work in t.answering.asked] == [*range(10 * SLOTS)]


def test_a_call_of_a_burst_is_refused_once_and_then_sent_when_there_is_room(t: Talks) -> None:
    bus, number = Counted(t.server), 20 * SLOTS
    t.run(burst(Client(bus=bus, app=APP), number))
    refused = number - SLOTS  # all but the first, when they came
    assert number + refused <= bus.sent <= number + refused + 8 * 20, (
        "for 20 s the first of the line asks, at most eight times a second"
    )
    assert bus.asked <= 9 * 20, "and there is not one question for each call"


def test_a_call_that_comes_later_waits_behind_those_that_wait(t: Talks) -> None:
    async def go() -> None:
        first = asyncio.gather(*(call(t.client, n) for n in range(3 * SLOTS)))
        await asyncio.sleep(0.5)
        await call(t.client, "last")
        await first

    t.run(go())
    assert t.answering.asked[-1].inputs["text"] == "last"


def test_calls_find_the_room_that_calls_of_others_leave(t: Talks) -> None:
    """None of this client's own calls runs, so none of them can tell it that there is room."""
    other = t.another()

    async def go() -> float:
        theirs = asyncio.gather(*(call(other, n) for n in range(SLOTS)))
        await asyncio.sleep(0.1)
        ours = asyncio.gather(*(call(t.client, f"ours {n}") for n in range(SLOTS)))
        await theirs
        free = asyncio.get_running_loop().time()
        await ours
        return asyncio.get_running_loop().time() - free

    assert t.run(go()) < 1.0 + 1.0 + 0.5, "a second until the line asks, then the next ones soon, and a second of work"


def test_of_two_clients_with_long_lines_each_gets_slots_and_none_is_idle_for_it(t: Talks) -> None:
    other, rounds = t.another(), 20
    took: dict[str, list[float]] = {"first": [], "second": []}

    async def one(client: Client, name: str) -> None:
        await call(client, name, timeout="600s")
        took[name].append(asyncio.get_running_loop().time())

    async def go() -> None:
        first = asyncio.gather(*(one(t.client, "first") for _ in range(rounds * SLOTS)))
        await asyncio.sleep(0.1)
        await asyncio.gather(first, *(one(other, "second") for _ in range(rounds * SLOTS)))

    began = now(t)
    t.run(go())
    assert took["second"][0] - began < 5, "it had to wait until the first one's line was over"
    meanwhile = [when for when in took["second"] if when <= took["first"][-1]]
    assert len(meanwhile) > len(took["second"]) / 5
    assert now(t) - began < 2 * rounds * 1.1


def test_a_pool_that_grows_is_used_by_a_line_that_waits(t: Talks) -> None:
    async def go() -> float:
        all_ = asyncio.gather(*(call(t.client, n) for n in range(20 * SLOTS)))
        await asyncio.sleep(0.5)
        for _ in range(3):
            await t.start()
        await all_
        return asyncio.get_running_loop().time()

    began = now(t)
    assert t.run(go()) - began < 10, "20 s of one process, 5 of four"


def test_calls_that_give_up_while_they_wait_hold_up_nobody(t: Talks) -> None:
    async def go() -> list[str | BaseException]:
        running = asyncio.gather(*(call(t.client, n) for n in range(SLOTS)))
        await asyncio.sleep(0.1)
        hasty = [asyncio.ensure_future(call(t.client, "hasty", timeout=0.3)) for _ in range(5 * SLOTS)]
        patient = asyncio.gather(*(call(t.client, f"patient{n}") for n in range(SLOTS)))
        found = await asyncio.gather(*hasty, return_exceptions=True)
        await running
        await patient
        return found

    began = now(t)
    found = t.run(go())
    assert {type(one) for one in found} == {Saturated}
    assert "8 of 8 slots busy" in str(found[-1]) or "is saturated" in str(found[-1])
    assert now(t) - began < 2.5


def test_a_call_that_is_cancelled_as_its_turn_comes_gives_its_turn_to_the_next(t: Talks) -> None:
    async def go() -> float:
        line = FullPool(t.client.bus, APP, DEFAULT_POOL)
        first, second = [asyncio.ensure_future(line.refused(place)) for place in (0, 1)]
        await asyncio.sleep(0.01)
        line.freed()
        first.cancel()
        await second
        return asyncio.get_running_loop().time()

    began = now(t)
    assert t.run(go()) - began == pytest.approx(0.01, abs=0.001), "and not when the line asks by itself"


def test_all_calls_of_a_line_end_at_once_where_the_pool_is_gone() -> None:
    """A pool that said that it was full, and ended then."""

    async def go() -> list[BaseException]:
        server = MemoryServer()
        pool, there = server.connect(), True

        async def full(message: Message) -> None:
            await pool.send(message.reply, b"", headers={subjects.KIND: BUSY})

        async def status(message: Message) -> None:
            row = {"pool": DEFAULT_POOL, "id": "a", "host": "h", "pid": 1, "size": 1, "slots": 4, "busy": 4, "ready": 1}
            row |= {"restarts": 0, "draining": not there}
            await pool.send(message.reply, codecs.encode(row)[0])

        await pool.subscribe(subjects.call_pattern(APP, DEFAULT_POOL), full)
        await pool.subscribe(subjects.control(APP, DEFAULT_POOL), status)
        async with Client(bus=server.connect(), app=APP) as client:
            spec = dspex.predict("text -> lang")
            calls = [asyncio.ensure_future(client.call(spec, {"text": "hi"}, timeout="600s")) for _ in range(50)]
            await asyncio.sleep(5)
            there = False
            began = asyncio.get_running_loop().time()
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert asyncio.get_running_loop().time() - began < 5, "at the next question, and some for those that asked then"
            return [one for one in found if isinstance(one, BaseException)]

    loop = VirtualLoop()
    found = loop.run(go(), advance=True)
    loop.close()
    assert len(found) == 50
    assert all(isinstance(one, Saturated) and "has no worker that takes calls" in str(one) for one in found)


def test_a_call_that_was_sent_and_not_heard_is_no_saturated_pool_whatever_others_found(t: Talks) -> None:
    async def go() -> None:
        await asyncio.gather(*(call(t.client, n) for n in range(2 * SLOTS)))
        t.answering.seconds = 60.0
        with pytest.raises(CallTimeout, match="no answer"):
            await call(t.client, "slow", timeout=3.0)

    t.run(go())
