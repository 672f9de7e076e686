"""Many calls at a time: their order, how many are open, and what one that fails is to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from pool_bench import Worker
from waiting import until

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, InvalidInput, ProgramError
from dspex.bus.memory.server import MemoryServer
from dspex.bus.message import Message
from dspex.engine.client import background
from dspex.engine.client.call import Result
from dspex.engine.client.client import Client
from dspex.engine.client.sync_client import Client as SyncClient

APP, POOL = "app", "lightweight"
ECHO = "text -> reply"


async def client_of(serve: Callable[[Worker], Awaitable[None]]) -> Client:
    """A client of workers that answer side by side."""
    bus, running = MemoryServer().connect(), set[asyncio.Task[None]]()

    async def asked(message: Message) -> None:
        running.add(asyncio.create_task(serve(Worker(bus, message))))  # type: ignore[arg-type]

    await bus.subscribe(subjects.call_pattern(APP, POOL), asked)
    return Client(bus=bus, app=APP)


async def echo(worker: Worker) -> None:
    worker.accept()
    if (text := worker.request.inputs["text"]) == "bad":
        worker.answer(error=ProgramError("a bug"))
    else:
        worker.answer(reply=text)


def replies(found: list[Any]) -> list[str]:
    return [one.data["reply"] if isinstance(one, Result) else type(one).__name__ for one in found]


@pytest.mark.asyncio
async def test_results_come_in_the_order_of_the_items_and_an_error_ends_no_other() -> None:
    first = asyncio.Event()

    async def serve(worker: Worker) -> None:
        if worker.request.inputs["text"] == "0":
            await first.wait()
        await echo(worker)
        if worker.request.inputs["text"] == "5":
            first.set()

    async with await client_of(serve) as client:
        items: list[Any] = [{"text": "0"}, {"text": "bad"}, "no fields", *({"text": str(n)} for n in range(3, 9))]
        found = [one async for one in client.batch(ECHO, items, concurrency=3)]
        assert replies(found) == ["0", "ProgramError", "InvalidInput", "3", "4", "5", "6", "7", "8"]
        assert isinstance(found[2], InvalidInput)


@pytest.mark.asyncio
async def test_no_more_calls_are_open_and_no_more_items_are_taken_than_were_asked_for() -> None:
    """The first is slow: four times as many as may be open are begun behind it, and then nothing."""
    slow, taken = list[Worker](), list[int]()
    open_, most = 0, 0

    async def serve(worker: Worker) -> None:
        nonlocal open_, most
        open_, most = open_ + 1, max(most, open_ + 1)
        if not slow:
            slow.append(worker)
            return
        await asyncio.sleep(0)
        open_ -= 1
        await echo(worker)

    def items() -> Iterator[dict[str, str]]:
        for n in range(1000):
            taken.append(n)
            yield {"text": str(n)}

    async with await client_of(serve) as client:
        results = client.batch(ECHO, items(), concurrency=2)
        first = asyncio.ensure_future(anext(results))
        await until(lambda: len(taken) == 8)
        assert not first.done()
        await echo(slow[0])
        assert replies([await first]) == ["0"]
        assert (most, len(taken)) == (2, 8)
        await results.aclose()  # type: ignore[attr-defined]


@pytest.mark.asyncio
async def test_closing_the_iterator_ends_the_calls_that_are_open() -> None:
    cancelled: list[Message] = []

    async def serve(worker: Worker) -> None:
        worker.accept()
        if worker.request.inputs["text"] == "0":
            worker.answer(reply="x")

    client = await client_of(serve)

    async def heard(message: Message) -> None:
        cancelled.append(message)

    await client.bus.subscribe(subjects.control(APP, POOL), heard)
    async with client:
        results = client.batch(ECHO, [{"text": str(n)} for n in range(4)], concurrency=4)
        await anext(results)
        await results.aclose()  # type: ignore[attr-defined]
        await until(lambda: len(cancelled) == 3)
        with pytest.raises(ConfigError):
            _ = [one async for one in client.batch(ECHO, [], concurrency=0)]


@pytest.mark.asyncio
async def test_what_was_asked_is_given_before_the_error_of_whoever_makes_the_items() -> None:
    def items() -> Iterator[dict[str, str]]:
        yield from ({"text": text} for text in ("a", "bad", "c"))
        raise OSError("the file ends here")

    async with await client_of(echo) as client:
        found: list[Any] = []

        async def asked() -> None:
            async for one in client.batch(ECHO, items(), concurrency=8):
                found.append(one)

        with pytest.raises(OSError, match="the file ends here"):
            await asked()
        assert replies(found) == ["a", "ProgramError", "c"]


def test_a_script_asks_many_without_await() -> None:
    with SyncClient(background.run(client_of(echo))) as client:
        assert replies(list(client.batch(ECHO, [{"text": "a"}, {"text": "bad"}]))) == ["a", "ProgramError"]
