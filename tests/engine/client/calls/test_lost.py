"""Calls whose pool dies, or whose answer is lost on its way: nobody says so, and their callers find out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

import orjson
import pytest
from pool_bench import APP, ECHO, Talks, talks

from dspex.bus import subjects
from dspex.bus.errors import CallTimeout, Unreachable, WorkerLost
from dspex.bus.memory.connection import MemoryBus
from dspex.bus.memory.handles import MemoryObjects
from dspex.bus.memory.server import MemoryServer
from dspex.bus.message import Message
from dspex.bus.port import BusEvents
from dspex.bus.records import DEFAULT_POOL
from dspex.bus.serving.sayings import RESULT
from dspex.engine.client.client import Client

SOON = 15.0  # seconds


class Cut(MemoryBus):
    """A connection over which nothing is said from the moment that a test says."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, BusEvents())
        self.cut = self.loses_results = False
        self.storing = 0.0  # seconds that an object takes

    def tell(self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        if self.cut:
            raise Unreachable("cut")
        if not (self.loses_results and (headers or {}).get(subjects.KIND) == RESULT):
            super().tell(subject, data, headers=headers, reply=reply)

    async def objects(self, name: str, *, replicas: int = 1) -> MemoryObjects:
        await asyncio.sleep(self.storing)
        return await super().objects(name, replicas=replicas)


@pytest.fixture
def t() -> Iterator[Talks]:
    with talks() as one:
        yield one


async def lost(t: Talks, client: Client, after: float) -> float:
    """Seconds from then on until a call is told that its pool has it no more."""
    asking = asyncio.ensure_future(client.call(ECHO, {"text": "hi"}, timeout="10m"))
    await asyncio.sleep(after)
    await t.pools[0].bus.close()
    began = t.loop.time()
    with pytest.raises(WorkerLost, match="has the call no more") as caught:
        await asking
    assert "call again" in caught.value.fix
    return t.loop.time() - began


@pytest.mark.parametrize("after", [0.2, 30.0], ids=["just taken", "half a minute old"])
def test_a_call_whose_pool_dies_is_told_soon_and_not_at_the_end_of_its_time(t: Talks, after: float) -> None:
    t.answering.seconds = 300.0
    assert t.run(lost(t, t.client, after)) < SOON


def test_a_stream_whose_pool_dies_is_told_soon(t: Talks) -> None:
    t.answering.seconds = 300.0

    async def go() -> float:
        async with t.client.stream(ECHO, {"text": "hi"}) as answer:
            events = answer.events()
            await anext(events)  # a worker has it
            await t.pools[0].bus.close()
            began = t.loop.time()
            with pytest.raises(WorkerLost):
                await anext(events)
            return t.loop.time() - began

    assert t.run(go()) < SOON


def test_a_turn_whose_pool_dies_leaves_the_session_to_the_next_one(t: Talks) -> None:
    t.answering.seconds = 300.0

    async def go() -> str:
        session = t.client.session("s")
        asking = asyncio.ensure_future(session.call(ECHO, {"text": "hi"}))
        await asyncio.sleep(1)
        await t.pools[0].bus.close()
        t.answering.seconds = 0.0
        await t.start()
        with pytest.raises(WorkerLost):
            await asking
        return str((await session.call(ECHO, {"text": "again"}, timeout="5s")).data["reply"])

    assert t.run(go()).startswith("again")


def test_a_call_that_takes_long_is_left_to_its_worker_whichever_process_has_it(t: Talks) -> None:
    t.answering.seconds = 300.0

    async def go() -> list[str]:
        for _ in range(2):
            await t.start()
        found = await asyncio.gather(*(t.client.call(ECHO, {"text": str(n)}, timeout="10m") for n in range(16)))
        return [one.data["reply"].split()[0] for one in found]

    assert t.run(go()) == [str(n) for n in range(16)]
    assert len(t.answering.asked) == 16


def test_a_call_whose_answer_was_lost_on_its_way_is_told_soon(t: Talks) -> None:
    """As where the server ends just when the worker answers."""
    t.answering.seconds = 5.0

    async def go() -> float:
        bus = Cut(t.server)
        await t.pools[0].bus.close()
        await t.start(bus)
        bus.loses_results = True
        with pytest.raises(WorkerLost, match="lost on its way"):
            await t.client.call(ECHO, {"text": "hi"}, timeout="10m")
        return t.loop.time()

    assert t.run(go()) < 5 + SOON


def test_an_answer_that_cannot_be_sent_is_given_to_its_caller_when_it_can(t: Talks) -> None:
    """Pool and client are cut off, as where the server starts anew: the answer is there, and no model is asked twice."""
    with talks() as t:
        t.answering.seconds = 5.0
        pool, client = Cut(t.server), Cut(t.server)

        async def go() -> str:
            await t.pools[0].bus.close()
            await t.start(pool)
            asking = asyncio.ensure_future(Client(bus=client, app=APP).call(ECHO, {"text": "hi"}, timeout="10m"))
            await asyncio.sleep(1)
            pool.cut = client.cut = True
            await asyncio.sleep(30)
            pool.cut = client.cut = False
            return str((await asking).data["reply"])

        assert t.run(go()).startswith("hi")
        assert len(t.answering.asked) == 1


def test_an_answer_that_could_not_be_sent_is_given_to_no_other_connection() -> None:
    with talks() as t:
        t.answering.seconds = 5.0
        pool, client, other = Cut(t.server), Cut(t.server), t.server.connect()
        heard: list[Message] = []

        async def hear(message: Message) -> None:
            heard.append(message)

        async def go() -> None:
            await t.pools[0].bus.close()
            await t.start(pool)
            asking = asyncio.ensure_future(Client(bus=client, app=APP).call(ECHO, {"text": "hi"}, timeout="20s"))
            await asyncio.sleep(1)
            pool.cut = client.cut = True
            await asyncio.sleep(10)
            pool.cut = False
            said = orjson.dumps({"kind": "still", "call": t.answering.asked[0].call})
            await other.subscribe("_INBOX.other.1", hear)
            await other.send(subjects.control(APP, DEFAULT_POOL), said, reply="_INBOX.other.1")
            with pytest.raises(CallTimeout):
                await asking

        t.run(go())
        assert heard == []


def test_a_large_answer_that_takes_long_to_be_stored_is_waited_for(t: Talks) -> None:
    t.answering.seconds = 5.0

    async def go() -> int:
        bus = Cut(t.server)
        await t.pools[0].bus.close()
        await t.start(bus)
        bus.storing = 60.0
        return len((await t.client.call(ECHO, {"text": "x" * 2_000_000}, timeout="10m")).data["reply"])

    assert t.run(go()) >= 2_000_000


def test_who_cannot_ask_gives_no_call_up_for_that(t: Talks) -> None:
    """The server is away for a minute, and back before the worker answers."""
    t.answering.seconds = 100.0
    bus = Cut(t.server)

    async def go() -> str:
        async with Client(bus=bus, app=APP) as client:
            asking = asyncio.ensure_future(client.call(ECHO, {"text": "hi"}, timeout="10m"))
            await asyncio.sleep(1)
            bus.cut = True
            await asyncio.sleep(60)
            bus.cut = False
            return str((await asking).data["reply"])

    assert t.run(go()).startswith("hi")
