"""Whoever may write into an application's bucket can write the keys of work consumers: no call is paid twice for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson
import pytest
from engine_lab import APP, STREAM, Lab
from structlog.testing import capture_logs

from dspex.bus import subjects
from dspex.bus.nats import NatsBus
from dspex.bus.port import StreamConfig
from dspex.bus.serving import work_consumers
from dspex.bus.serving.work_consumers import WorkConsumers
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
POOL = ("lightweight", 1)
KEY, NAME = subjects.work_key(*POOL), subjects.work_consumer(*POOL)
SOON = 3 * work_consumers.LOOK
FORGED = [
    b'{"generation":7,"after":1e12}',
    b'{"generation":7,"after":1000000000000}',
    b'{"generation":-1,"after":-5}',
    b'{"generation":1e300,"after":"x"}',
    b"\xffgarbage",
    b"[]",
    b"",
]


def asking() -> Topology:
    topology = Topology("asking")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    return topology


def put(one: Lab, value: bytes) -> None:
    async def go() -> None:
        await (await one.client.bus.bucket(subjects.bucket(APP))).put(KEY, value)

    one.run(go())


@pytest.mark.parametrize("value", FORGED, ids=str)
def test_a_forged_key_of_a_work_consumer_makes_no_call_be_asked_again(lab: MakeLab, value: bytes) -> None:
    one = lab(asking())
    one.start()
    one.publish("in", {"text": "a"})
    one.advance(1)
    put(one, value)
    one.advance(4 * SOON)
    assert len(one.requests()) == 1
    one.work()
    one.advance(SOON)
    assert (len(one.outputs("out")), len(one.asked)) == (1, 1)


@pytest.mark.parametrize("value", FORGED, ids=str)
def test_an_engine_starts_whatever_lies_under_the_key_of_a_work_consumer(lab: MakeLab, value: bytes) -> None:
    one = lab(asking())
    one.start()
    one.publish("in", {"text": "a"})
    one.kill()
    put(one, value)
    one.start()
    one.work()
    one.advance(SOON)
    assert (len(one.outputs("out")), len(one.asked)) == (1, 1)


def test_calls_are_asked_once_more_where_the_consumer_is_gone_and_its_key_is_garbage(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    one.publish("in", {"text": "a"})
    put(one, b"\xffgarbage")
    one.server.streams[STREAM].forget(NAME)
    one.advance(4 * SOON)
    assert len(one.requests()) == 2
    one.work()
    one.advance(SOON)
    assert (len(one.outputs("out")), len(one.asked)) == (1, 1)


def test_a_consumer_that_somebody_made_beyond_the_end_of_the_stream_makes_no_call_be_asked_again(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    one.publish("in", {"text": "a"})
    one.server.streams[STREAM].forget(NAME)

    async def made() -> None:
        pattern = subjects.work_pattern(APP, *POOL)
        await one.client.bus.add_consumer(STREAM, pattern, name=NAME, ack_wait=30.0, after=10**12)

    one.run(made())
    with capture_logs() as logs:
        one.advance(4 * SOON)
    assert len(one.requests()) == 1
    assert any("delivers nothing" in e["event"] for e in logs)


@pytest.mark.asyncio
async def test_on_the_real_server_the_consumer_says_where_it_begins_and_not_its_key(bus: NatsBus, unique: str) -> None:
    stream = subjects.stream(unique)
    await bus.ensure_stream(StreamConfig(stream, subjects.own_subjects(unique)))
    keeper = WorkConsumers(bus, unique, [POOL])
    await keeper.look()
    bucket = await bus.bucket(subjects.bucket(unique))
    for value in FORGED:
        await bucket.put(KEY, value)
        await keeper.look()
        assert keeper.behind == {POOL: 0}
    await bus.request(f"$JS.API.CONSUMER.DELETE.{stream}.{NAME}", b"")
    await asyncio.gather(keeper.look(), WorkConsumers(bus, unique, [POOL]).look())
    assert await bus.begin_of_consumer(stream, NAME) == 0
    found = await bucket.get(KEY)
    assert found is not None
    assert orjson.loads(found[0])["generation"] >= 1
