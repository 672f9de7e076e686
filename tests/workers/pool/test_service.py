"""A pool as a NATS service: what `nats micro` shows of it, read as nats-py reads any service."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats
from pool_bench import APP, POOL, Bench, program, talks, work

from dspex.bus import subjects
from dspex.bus.message import Message
from dspex.bus.records import DEFAULT_POOL
from dspex.bus.serving.sayings import BUSY, RESULT
from dspex.engine.hosting.apply import apply
from dspex.operators.topology import Topology
from dspex.workers.pool.plain import tell_busy
from dspex.workers.pool.service import TYPES

NAME = f"dspex-{APP}-{POOL}"


async def said(bench: Bench, subject: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await bench.bus.request(subject, b"")).data)
    return found


async def call(bench: Bench, name: str) -> None:
    done = asyncio.Event()
    inbox = bench.bus.inbox(lambda m: done.set() if m.headers.get(subjects.KIND) == RESULT else None)
    item = work(spec=program(name), record=None)
    await bench.send(item, inbox.subject)
    async with asyncio.timeout(30):
        await done.wait()
    inbox.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_pool_answers_as_a_service_by_verb_by_name_and_by_id(quick: Bench) -> None:
    id = quick.pool.id
    for where in ("", f".{NAME}", f".{NAME}.{id}"):
        ping = await said(quick, f"$SRV.PING{where}")
        assert ping["type"] == TYPES["PING"] == "io.nats.micro.v1.ping_response"
        assert (found := ServicePing.from_dict(ping)).name == NAME
        assert (found.id, found.version) == (id, "0.1.0")
    (endpoint,) = ServiceInfo.from_dict(await said(quick, f"$SRV.INFO.{NAME}")).endpoints
    assert (endpoint.subject, endpoint.queue_group) == (subjects.call_pattern(APP, POOL), POOL)


@pytest.mark.asyncio(loop_scope="module")
async def test_its_statistics_count_calls_their_time_and_their_errors(quick: Bench) -> None:
    async def stats() -> Any:
        return ServiceStats.from_dict(await said(quick, f"$SRV.STATS.{NAME}")).endpoints[0]

    before, served = await stats(), quick.pool.status.full()["served"]
    await call(quick, "echo")
    await call(quick, "raises")
    after = await stats()
    assert quick.pool.status.full()["served"] == served + 2
    assert (after.num_requests - before.num_requests, after.num_errors - before.num_errors) == (2, 1)
    assert after.processing_time > before.processing_time
    assert after.average_processing_time == after.processing_time // after.num_requests
    assert after.last_error.startswith("ProgramError")


def test_who_asks_on_as_soon_as_it_is_answered_is_heard_though_all_slots_were_taken() -> None:
    topology = Topology("triage")
    topology.source("in").predict("text -> reply", name="classify").sink("out")

    async def asks_on() -> list[str]:
        subject = subjects.call(APP, DEFAULT_POOL, "triage", "classify")
        return [json.loads((await client.request(subject, b'{"text": "a"}', timeout=30)).data)["reply"] for _ in range(3)]

    async def all_slots() -> list[list[str]]:
        await apply(client, APP, [topology.graph])
        return await asyncio.gather(*(asks_on() for _ in range(8)))

    with talks() as one:
        one.answering.seconds = 1.0  # long enough for the pool to leave its queue group
        client = one.server.connect()
        assert one.run(all_slots()) == [["a after 0"] * 3] * 8


@pytest.mark.asyncio(loop_scope="module")
async def test_who_asks_in_json_is_told_that_all_slots_are_busy_and_others_are_to_ask_again(quick: Bench) -> None:
    frames = asyncio.Queue[Message]()
    inbox = quick.bus.inbox(frames.put_nowait)
    for body, kind, code in ((b'{"text": "a"}', RESULT, "429"), (work(record=None).pack(), BUSY, None)):
        tell_busy(quick.bus, Message("call", body, {}, 0, 0.0, reply=inbox.subject), POOL)
        frame = await asyncio.wait_for(frames.get(), 10)
        assert (frame.headers[subjects.KIND], frame.headers.get(subjects.SERVICE_ERROR_CODE)) == (kind, code)
    inbox.close()
