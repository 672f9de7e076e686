"""What a pool promises who calls it and waits: taken only where there is room, answered, and recorded after that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import standin
from pool_bench import APP, CHOICES, POOL, Bench, light, native, running, work
from waiting import until

from dspex.bus import codecs, subjects
from dspex.bus.errors import Saturated
from dspex.bus.message import Message
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.sayings import ACCEPTED, BUSY, RESULT


async def call(bench: Bench, item: CallRequest, frames: asyncio.Queue[Message], subject: str = "") -> list[tuple[str, Message]]:
    """Ask as the engine's client does; the frames up to the last, by kind."""
    inbox = bench.bus.inbox(frames.put_nowait)
    await bench.send(item, inbox.subject, subject)
    found: list[tuple[str, Message]] = []
    async with asyncio.timeout(30):
        while not found or found[-1][0] == ACCEPTED:
            message = await frames.get()
            found.append((message.headers.get(subjects.KIND, message.headers.get("Status", "")), message))
    inbox.close()
    return found


@pytest.mark.asyncio(loop_scope="module")
async def test_an_interactive_call_is_accepted_answered_and_then_recorded(quick: Bench) -> None:
    await until(lambda: quick.joined)
    item = work("standin:slow=0.05 quick", record=None)
    frames = await call(quick, item, asyncio.Queue())
    assert [kind for kind, _ in frames] == [ACCEPTED, RESULT]
    accepted = codecs.decode(frames[0][1].data, codecs.MSGPACK)
    assert [accepted[k] for k in ("call", "free", "waiting")] == [item.call, quick.pool.children.slots.total - 1, 0]
    record = CallRecord.unpack(frames[1][1].data)
    assert record.outputs is not None
    assert record.outputs["intent"] == standin.intent("standin:slow=0.05 quick", CHOICES)
    reader = await quick.bus.reader(subjects.stream(APP), [subjects.interactive_record(APP, POOL)], after=0, name="records")
    async with asyncio.timeout(30):
        (stored,) = await reader.read(10)
    assert CallRecord.unpack(stored.data).outputs == record.outputs
    assert stored.headers[subjects.MESSAGE_ID] == f"{item.call}.1"


@pytest.mark.asyncio
async def test_a_pool_that_has_started_hears_calls(model: Any) -> None:
    async with running(light(model.url)) as bench:
        item = native("at once", record=None)
        answer = await bench.bus.request(item.called_on(APP, POOL), item.pack(), timeout=60)
        assert answer.headers[subjects.KIND] in (ACCEPTED, RESULT)


@pytest.mark.asyncio
async def test_a_full_pool_leaves_the_queue_group_and_comes_back(model: Any) -> None:
    async with running(light(model.url, slots=1)) as bench:
        await until(lambda: bench.joined)
        await bench.put(native("standin:gate"))
        await until(lambda: not bench.joined)
        with pytest.raises(Saturated):
            await bench.bus.request(native("x").called_on(APP, POOL), native("x").pack(), timeout=60)
        model.gate.set()
        await bench.records(1)
        await until(lambda: bench.joined)
        frames = await call(bench, native("again", record=None), asyncio.Queue())
        assert frames[-1][0] == RESULT


@pytest.mark.asyncio
async def test_a_request_that_comes_when_the_last_slot_is_taken_is_answered_busy(model: Any) -> None:
    async with running(light(model.url, slots=1)) as bench:
        await until(lambda: bench.joined)
        asked = [asyncio.create_task(call(bench, native("standin:gate", record=None), asyncio.Queue())) for _ in range(2)]
        (refused,), (taken,) = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert refused.result()[-1][0] == BUSY
        model.gate.set()
        assert (await taken)[-1][0] == RESULT


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_that_comes_on_the_subject_of_another_node_is_refused(quick: Bench) -> None:
    await until(lambda: quick.joined)
    item, other = native("x", record=None), subjects.call(APP, POOL, "other", "node")
    frames = await call(quick, item, asyncio.Queue(), other)
    assert [kind for kind, _ in frames] == [RESULT]
    error = CallRecord.unpack(frames[0][1].data).error
    assert error is not None
    assert error["type"] == "NotAllowed"


@pytest.mark.asyncio
async def test_a_caller_gets_worker_lost_when_the_pool_stops_during_its_call(model: Any) -> None:
    async with running(light(model.url)) as bench:
        await until(lambda: bench.joined)
        asked = asyncio.create_task(call(bench, native("standin:hang", record=None), asyncio.Queue()))
        await until(lambda: model.running == 1)
        await bench.pool.drain(0.1)
        frames = await asked
        error = CallRecord.unpack(frames[-1][1].data).error
        assert error is not None
        assert (error["type"], error["retryable"]) == ("WorkerLost", True)
