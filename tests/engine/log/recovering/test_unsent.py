"""Requests that a log entry holds, and that its owner did not send before it died: whoever takes over does, however it goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgpack
import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.errors import BusError
from dspex.bus.memory.server import MemoryBus
from dspex.bus.port import Ack, BusEvents, NewMessage
from dspex.engine.hosting.apply import apply
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
WORK = subjects.work_pattern(APP, "lightweight")
LARGE = "x" * 30_000


class Dies(MemoryBus):
    """A connection that ends between the entry of a commit and the requests that it holds, once it `dies`."""

    dies = False

    async def publish_all(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> list[Ack | BusError]:
        if self.dies and any(subjects.matches(WORK, draft.subject) for draft in drafts):
            await asyncio.Event().wait()
        return await super().publish_all(drafts, timeout=timeout)


def version(*asks: str, drop: tuple[str, ...] = ()) -> Topology:
    topology = Topology("unsent", drop=drop)
    stream = topology.source("in")
    for name in asks:
        stream = stream.predict("text -> answer", name=name, deadline="1h")
    stream.sink("out")
    return topology


@pytest.fixture
def unsent(lab: MakeLab) -> Lab:
    """An application whose engine died so, with one request that was not sent."""
    one = lab(version("ask"))
    bus = Dies(one.server, BusEvents())
    one.start(bus=bus)
    one.publish("in", {"text": "first"})  # the first commit behind a claim holds no requests
    one.advance(1)
    bus.dies = True
    one.publish("in", {"text": LARGE})
    one.advance(1)
    one.kill()
    assert [len(request.inputs["text"]) for request in one.requests()] == [5]
    return one


def ended(one: Lab) -> bool:
    """Whether both calls have been asked for once, and answered."""
    one.work()
    one.advance(5)
    assert not one.differences()
    return sorted(len(r.inputs["text"]) for r in one.asked) == [5, 30_000] and len(one.outputs("out")) == 2


def claims(one: Lab) -> int:
    logs = one.messages(subjects.log(APP, "unsent", "s1", "*"))
    return sum(msgpack.unpackb(m.data, strict_map_key=False)["kind"] == "claim" for m in logs)


def most(one: Lab, room: int) -> int:
    """Bytes of the application's stream that leave room for so many."""
    stream = one.server.streams[STREAM]
    stream.config = replace(stream.config, max_bytes=stream.bytes + room)
    return stream.bytes + room


def test_a_stream_without_room_for_a_request_gets_one_claim_however_long_it_is_full(unsent: Lab) -> None:
    before = claims(unsent)
    host = unsent.start("b", max_bytes=most(unsent, 20_000))
    unsent.advance(300)
    assert (host.failure, claims(unsent)) == (None, before + 1)
    assert "cannot commit" in host.full
    most(unsent, 1 << 20)
    unsent.advance(5)
    assert host.committer.full == ""
    assert ended(unsent)
    assert claims(unsent) == before + 1


def test_an_engine_that_waited_for_room_while_another_claimed_leaves_the_log_to_that(unsent: Lab) -> None:
    limit = most(unsent, 20_000)
    a, b = unsent.start("a", max_bytes=limit), unsent.start("b", max_bytes=limit)
    unsent.advance(30)
    for host in (a, b):
        host.runners[0].own(0)
    unsent.advance(30)
    assert [index for host in (a, b) for index in host.runners[0].partitions if index == 0] == []
    most(unsent, 1 << 20)
    unsent.advance(30)
    assert [index for host in (a, b) for index in host.runners[0].partitions if index == 0] == [0]
    assert ended(unsent)


@pytest.mark.parametrize("limit", [100_000, 8192])
def test_a_request_that_the_server_takes_in_no_message_any_more_is_sent_beside_one(unsent: Lab, limit: int) -> None:
    unsent.server.max_payload = limit
    unsent.client.bus.max_payload = limit  # type: ignore[misc]
    host = unsent.start("b")
    unsent.advance(5)
    assert host.failure is None
    stored = unsent.run(unsent.client.bus.scan(STREAM, [WORK], start=1, stop=10_000))
    assert [subjects.CLAIM_CHECK in message.headers for message in stored] == [False, limit == 8192]
    assert ended(unsent)


def test_a_request_of_an_operator_that_was_dropped_is_not_sent_and_its_event_is_a_dead_letter(unsent: Lab) -> None:
    unsent.start("b", version(drop=("ask",)))
    unsent.work()
    unsent.advance(3601)
    assert [len(request.inputs["text"]) for request in unsent.asked] == [5]
    assert sorted((d.node, d.code, len(d.event.data["text"])) for d in unsent.letters()) == [
        ("ask", "DX232", 5),
        ("ask", "DX232", 30_000),
    ]


def test_a_request_of_an_operator_that_is_reset_is_not_sent(unsent: Lab) -> None:
    """Its call is dropped without a letter, as whoever resets it wants."""
    unsent.run(apply(unsent.client.bus, APP, unsent.graphs, reset=["ask"]))
    unsent.start("b")
    unsent.work()
    unsent.advance(5)
    assert [len(request.inputs["text"]) for request in unsent.asked] == [5]
    assert (unsent.outputs("out"), unsent.letters(), unsent.left()) == ([], [], [])
