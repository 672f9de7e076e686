"""Who makes the consumers of work, and what becomes of open calls when somebody deletes one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from engine_lab import STREAM, Lab, LateRecords
from waiting import until

from dspex.bus import nats, subjects
from dspex.bus.errors import BusError
from dspex.bus.memory.server import MemoryBus
from dspex.bus.port import Ack, BusEvents, Delivery, NewMessage
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving import work_consumers
from dspex.bus.serving.work_loop import Job, WorkLoop
from dspex.engine.client.client import Client
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
NAME = subjects.work_consumer("lightweight", 1)
SOON = 3 * work_consumers.LOOK


def asking(**options: Any) -> Topology:
    topology = Topology("asking")
    topology.source("in").predict("text -> answer", name="ask", **options).sink("out")
    return topology


def test_workers_make_no_consumer_and_wait_for_an_engine_to_do_so(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    one.server.streams[STREAM].forget(NAME)
    one.kill()
    one.work()
    one.advance(60)
    assert NAME not in one.server.streams[STREAM].consumers
    one.start()
    one.publish("in", {"text": "a"})
    one.advance(SOON)
    assert len(one.outputs("out")) == 1


def test_after_a_consumer_of_work_is_deleted_every_open_call_is_paid_once(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    one.work()
    for n in range(20):
        one.publish("in", {"text": f"done {n}"})
    one.advance(1)
    one.stop_workers()
    for n in range(30):
        one.publish("in", {"text": f"open {n}"})
    one.server.streams[STREAM].forget(NAME)
    one.advance(SOON)
    for n in range(5):
        one.publish("in", {"text": f"later {n}"})
    one.work()
    one.advance(SOON)
    assert len(one.outputs("out")) == 55
    assert one.letters() == []
    paid = Counter((request.call, request.try_number) for request in one.asked)
    assert len(paid) == 55
    assert set(paid.values()) == {1}


def test_an_owner_that_starts_after_the_consumer_was_made_anew_asks_again_too(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    for n in range(5):
        one.publish("in", {"text": str(n)})
    one.kill()
    one.server.streams[STREAM].forget(NAME)
    one.start()
    one.advance(SOON)
    one.work()
    one.advance(SOON)
    assert sorted(o["text"] for o in one.outputs("out")) == list("01234")
    assert len(one.asked) == 5


def test_a_call_whose_record_is_stored_is_not_paid_again_though_the_consumer_of_its_request_is_gone(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    for n in range(5):
        one.publish("in", {"text": str(n)})
    one.kill()
    one.work()
    one.server.streams[STREAM].forget(NAME)
    one.start(bus=LateRecords(one.server, 2 * work_consumers.LOOK))
    one.advance(2 * SOON)
    assert sorted(o["text"] for o in one.outputs("out")) == list("01234")
    assert len(one.asked) == 5


def test_a_call_that_waits_for_its_next_attempt_is_not_asked_early(lab: MakeLab) -> None:
    from dspex.bus.errors import LMUnavailable

    one = lab(asking(retry={"attempts": 3, "backoff": "60s"}))

    def answer(inputs: Any, work: Any) -> Any:
        if work.try_number == 1:
            raise LMUnavailable("down", retry_after=60.0)
        return {"answer": "yes"}

    one.answers["ask"] = answer
    one.start()
    one.work()
    one.publish("in", {"text": "a"})
    one.advance(1)
    one.server.streams[STREAM].forget(NAME)
    one.advance(SOON)
    assert [request.try_number for request in one.asked] == [1]
    one.advance(120)
    assert [request.try_number for request in one.asked] == [1, 2]
    assert len(one.outputs("out")) == 1


@pytest.mark.parametrize("change", [{"priority": 9}, {"pool": "gpu"}])
def test_open_calls_are_asked_again_where_they_were_asked_before_their_operator_got_another_priority_or_pool(
    lab: MakeLab, change: dict[str, Any]
) -> None:
    """Only the consumer that they wait for was deleted, and no operator uses it now."""
    one = lab(asking())
    one.start()
    for n in range(5):
        one.publish("in", {"text": str(n)})
    one.drain()
    one.start("b", asking(**change))
    one.publish("in", {"text": "5"})
    one.advance(SOON)
    one.server.streams[STREAM].forget(NAME)
    one.advance(SOON)
    one.work("lightweight", "gpu")
    one.advance(SOON)
    assert sorted(o["text"] for o in one.outputs("out")) == list("012345")
    assert len(one.asked) == 6


def test_a_pool_takes_the_work_of_the_most_urgent_band_first(lab: MakeLab) -> None:
    topologies = []
    for name, options in (("slow", {"priority": 9}), ("usual", {}), ("fast", {"priority": 0})):
        topology = Topology(name)
        topology.source(f"in.{name}").predict("text -> answer", name="ask", **options).sink(f"out.{name}")
        topologies.append(topology)
    one = lab(*topologies)
    one.start()
    for name in ("slow", "usual", "fast"):
        for n in range(5):
            one.publish(f"in.{name}", {"text": str(n)})
    one.advance(1)
    one.work(slots=1)
    one.advance(60)
    order = [request.topology for request in one.asked]
    assert order == ["fast"] * 5 + ["usual"] * 5 + ["slow"] * 5


@pytest.mark.asyncio
async def test_on_the_real_server_open_calls_are_paid_once_after_their_consumer_was_deleted(
    nats_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_consumers, "LOOK", 0.2)
    topology, paid, stream = Topology("asking"), Counter[str](), subjects.stream(unique)
    topology.source(f"{unique}.in").predict("text -> answer", name="ask").sink(f"{unique}.out")
    bus = await nats.connect(nats_url)
    host, client = Host(bus, unique, [topology.graph], engine="a"), Client(bus=bus, app=unique)

    async def answer(request: CallRequest) -> CallRecord:
        paid[request.call] += 1
        return CallRecord(
            call=request.call, try_number=request.try_number, attempt=request.attempt, topology=request.topology,
            node=request.node, outputs={"answer": "yes"}, error=None, worker="test",
        )  # fmt: skip

    def worker() -> WorkLoop:
        def accept(request: CallRequest, delivery: Delivery) -> Job:
            return partial(answer, request)

        loop = WorkLoop(bus, unique, "lightweight", accept, free=lambda: 100, failed=lambda error: None)
        loop.start()
        return loop

    async def outputs(count: int) -> bool:
        return await bus.count(stream, [f"{unique}.out"], after=0) == count

    await host.start()
    try:
        for text in "abc":
            await client.publish(f"{unique}.in", {"text": text})
        first = worker()
        await until(lambda: outputs(3))
        await first.drain(1.0)
        for text in "defgh":
            await client.publish(f"{unique}.in", {"text": text})
        await until(lambda: len(host.runners[0].partitions[0].tables.calls.rows) == 5)
        await bus.request(f"$JS.API.CONSUMER.DELETE.{stream}.{NAME}", b"")

        async def made_anew() -> bool:
            return await bus.begin_of_consumer(stream, NAME) is not None

        await until(made_anew)
        second = worker()
        await until(lambda: outputs(8))
        await second.drain(1.0)
        assert (len(paid), set(paid.values())) == (8, {1})
    finally:
        await host.kill()
        await bus.close()


class Mute(MemoryBus):
    """A connection whose process dies between an entry and the requests that it holds."""

    async def publish_all(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> list[Ack | BusError]:
        if any(draft.of for draft in drafts):
            await asyncio.Event().wait()
        return await super().publish_all(drafts, timeout=timeout)


def test_a_request_that_is_sent_behind_the_new_consumer_is_not_asked_again_for_its_entry_that_lies_before(lab: MakeLab) -> None:
    one = lab(asking())
    one.start(bus=Mute(one.server, BusEvents()))
    one.publish("in", {"text": "first"})
    one.publish("in", {"text": "in its entry"})
    assert len(one.requests()) == 1
    one.kill()
    one.server.streams[STREAM].forget(NAME)
    one.start()
    one.advance(SOON)
    one.work()
    one.advance(SOON)
    assert len(one.outputs("out")) == 2
    assert len(one.asked) == 2
