"""Streamed calls as their caller sees them, of a worker that says what a test wants: on the wire, over the memory bus."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from pool_bench import Worker
from waiting import until

import dspex
from dspex.bus import codecs, subjects
from dspex.bus.errors import CallTimeout, Cancelled, ConfigError, ProgramError
from dspex.bus.memory.server import MemoryServer
from dspex.bus.message import Message
from dspex.bus.serving.sayings import SAID
from dspex.engine.client import background
from dspex.engine.client.calls import asking
from dspex.engine.client.calls.events import Accepted, Chunk, Progress
from dspex.engine.client.calls.stream import Answer
from dspex.engine.client.client import Client
from dspex.engine.client.sync_client import Client as SyncClient

APP, POOL = "app", "lightweight"
SPEC = dspex.predict("text -> reply, urgency: int, note")


async def client_of(serve: Callable[[Worker], Awaitable[None]]) -> Client:
    bus = MemoryServer().connect()

    async def asked(message: Message) -> None:
        await serve(Worker(bus, message))

    await bus.subscribe(subjects.call_pattern(APP, POOL), asked)
    return Client(bus=bus, app=APP)


async def texts(answer: Answer[Any]) -> dict[str, str]:
    found: dict[str, str] = defaultdict(str)
    async for chunk in answer:
        found[chunk.field] += chunk.text
    return dict(found)


@pytest.mark.asyncio
async def test_pieces_that_are_lost_come_twice_or_are_no_pieces_leave_the_text_whole() -> None:
    async def serve(worker: Worker) -> None:
        assert worker.request.stream
        worker.accept()
        worker.say(("reply", 0, "ab"))
        worker.say(("reply", 1, "bc"), ("", 0, "how it goes"))
        worker.tell(SAID, b"no frame")
        worker.tell(SAID, codecs.msgpack_bytes({"number": 2, "said": [["reply", 0, 5]]}))
        worker.say(("reply", 5, "fg"), ("urgency", 0, "4"), ("reply", 3, "de"))
        worker.answer(reply="abcdefg", urgency=4, note="never told")

    async with await client_of(serve) as client, client.stream(SPEC, {"text": "x"}) as answer:
        events = [event async for event in answer.events()]
        assert events == [
            Accepted((await answer.result()).id, "w1"),
            Chunk("reply", "abc", 1),
            Progress("how it goes"),
            Chunk("urgency", "4", 2),
            Chunk("reply", "defg", 3),
            Chunk("note", "never told", 4),
        ]
        assert (await answer.result()).data == {"text": "x", "reply": "abcdefg", "urgency": 4, "note": "never told"}


@pytest.mark.asyncio
async def test_a_reader_that_reads_nothing_costs_no_more_than_the_text() -> None:
    ended = asyncio.Event()

    async def serve(worker: Worker) -> None:
        worker.accept()
        for n in range(4_000):
            worker.say(("reply", n * 10, "0123456789"), ("", 0, "on and on"))
            if n % 500 == 0:
                await asyncio.sleep(0)
        worker.answer(reply="0123456789" * 4_000, urgency=1, note="")
        ended.set()

    async with await client_of(serve) as client, client.stream(SPEC, {"text": "x"}) as answer:
        await ended.wait()
        events = [event async for event in answer.events()]
        assert len(events) < 1_100
        assert "".join(e.text for e in events if isinstance(e, Chunk) and e.field == "reply") == "0123456789" * 4_000
        numbers = [e.sequence for e in events if isinstance(e, Chunk)]
        assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.asyncio
async def test_of_two_workers_that_take_a_call_one_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first was frozen, and thaws when the second has the call."""
    monkeypatch.setattr(asking, "ACCEPT_WITHIN", 0.02)
    workers: list[Worker] = []

    async def serve(worker: Worker) -> None:
        workers.append(worker)
        if len(workers) == 2:
            worker.accept("w2")
            worker.say(("reply", 0, "second "))
            workers[0].accept("w1")
            workers[0].say(("reply", 0, "first"))
            workers[0].answer(reply="first", urgency=1, note="")
            worker.say(("reply", 7, "answer"))
            worker.answer(reply="second answer", urgency=1, note="")

    client = await client_of(serve)

    async def status(message: Message) -> None:
        if message.reply:
            await client.bus.send(message.reply, orjson.dumps({"pool": POOL, "id": "w2"}))

    await client.bus.subscribe(subjects.control(APP, POOL), status)
    async with client, client.stream(SPEC, {"text": "x"}) as answer:
        events = [event async for event in answer.events()]
        assert (await answer.result()).data["reply"] == "second answer"
    assert isinstance(events[0], Accepted)
    assert [events[0].worker, *(e.text for e in events if isinstance(e, Chunk))] == ["w2", "second answer", "1"]


@pytest.mark.asyncio
async def test_leaving_cancels_the_call_and_leaving_after_the_end_does_not() -> None:
    said: list[dict[str, Any]] = []
    begun: list[Worker] = []

    async def serve(worker: Worker) -> None:
        begun.append(worker)
        worker.accept()
        worker.say(("reply", 0, "a"))
        if len(begun) == 1:
            worker.answer(reply="a", urgency=1, note="")

    client = await client_of(serve)

    async def heard(message: Message) -> None:
        said.append(orjson.loads(message.data))

    await client.bus.subscribe(subjects.control(APP, POOL), heard)
    async with client:
        async with client.stream(SPEC, {"text": "x"}) as answer:
            assert await texts(answer) == {"reply": "a", "urgency": "1"}
        async with client.stream(SPEC, {"text": "x"}) as answer:
            async for _ in answer:
                break
        await until(lambda: said)
        assert said == [{"kind": "cancel", "call": begun[1].request.call}]


@pytest.mark.asyncio
async def test_a_call_whose_caller_leaves_before_a_worker_has_said_a_word_is_cancelled_too() -> None:
    begun: list[Worker] = []
    said: list[dict[str, Any]] = []

    async def serve(worker: Worker) -> None:
        begun.append(worker)

    async def heard(message: Message) -> None:
        said.append(orjson.loads(message.data))

    async with await client_of(serve) as client:
        await client.bus.subscribe(subjects.control(APP, POOL), heard)
        call = asyncio.create_task(client.call(SPEC, {"text": "x"}))
        await until(lambda: begun)
        call.cancel()
        await until(lambda: said)
    assert said == [{"kind": "cancel", "call": begun[0].request.call}]


@pytest.mark.asyncio
async def test_the_error_of_a_call_comes_behind_its_pieces_and_its_time_is_bounded() -> None:
    async def serve(worker: Worker) -> None:
        worker.accept()
        worker.say(("reply", 0, "a"))
        if worker.request.timeout > 1:
            worker.answer(error=ProgramError("a bug"))

    async with await client_of(serve) as client:
        for options, raised in (({}, ProgramError), ({"timeout": 0.05}, CallTimeout)):
            async with client.stream(dspex.predict("text -> reply", **options), {"text": "x"}) as answer:
                pieces = aiter(answer)
                assert await anext(pieces) == Chunk("reply", "a", 1)
                with pytest.raises(raised):
                    await anext(pieces)
                with pytest.raises(raised):
                    await answer.result()


@pytest.mark.asyncio
async def test_who_asks_for_the_result_of_a_block_that_was_left_is_told_and_not_cancelled() -> None:
    """A bare CancelledError would end the task of who asks, as if somebody had cancelled that."""

    async def serve(worker: Worker) -> None:
        worker.accept()

    async with await client_of(serve) as client:
        async with client.stream(SPEC, {"text": "x"}) as answer:
            waiting = asyncio.create_task(answer.result())
            assert isinstance(await anext(aiter(answer.events())), Accepted)
        for asked in (waiting, answer.result(), texts(answer)):
            with pytest.raises(Cancelled, match="was left before its end"):
                await asked
        async with client.stream(SPEC, {"text": "x"}) as answer:
            waiting = asyncio.create_task(answer.result())
            assert isinstance(await anext(aiter(answer.events())), Accepted)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting


@pytest.mark.asyncio
async def test_an_answer_that_is_not_entered_says_how() -> None:
    async with Client(bus=MemoryServer().connect(), app=APP) as client:
        answer = client.stream("text -> reply", {"text": "x"})
        with pytest.raises(ConfigError, match="not asked for yet"):
            await answer.result()


def test_a_script_streams_without_await() -> None:
    async def serve(worker: Worker) -> None:
        worker.accept()
        worker.say(("reply", 0, "ab"))
        worker.answer(reply="abc", urgency=2, note="")

    with SyncClient(background.run(client_of(serve))) as client, client.stream(SPEC, {"text": "x"}) as answer:
        first, *rest = answer.events()
        assert isinstance(first, Accepted)
        assert "".join(e.text for e in rest if isinstance(e, Chunk)) == "abc2"
        assert answer.result().data["reply"] == "abc"
        assert list(answer) == []
