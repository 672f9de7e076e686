"""Claims of many logs: one batch, one winner, and nothing that waits for a partition whose clock is ahead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgpack
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.errors import Unsettled
from dspex.bus.memory.server import MemoryBus
from dspex.bus.message import Message
from dspex.bus.port import PAGE_MESSAGES, BusEvents, NewMessage, StreamInfo
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def many(partitions: int = 64) -> Topology:
    topology = Topology("many")
    topology.source("in", partitions=partitions).map(lambda d: d, name="same").sink("out")
    return topology


def claims(one: Lab) -> list[int]:
    """The epochs of all claims."""
    logs = one.messages(subjects.log(APP, "*", "*", "*"))
    entries = [msgpack.unpackb(m.data, strict_map_key=False) for m in logs]
    return [e["epoch"] for e in entries if e["kind"] == "claim"]


def publish(one: Lab, numbers: range) -> None:
    for n in numbers:
        one.publish("in", {"n": n}, key=f"k{n}")


class Watched(MemoryBus):
    """Counts batches and looks for torn commits, and can answer from a replica that has seen nothing since it was made."""

    def __init__(self, one: Lab, *, stale: bool = False) -> None:
        super().__init__(one.server, BusEvents())
        self.batches: list[int] = []
        self.asked = self.looked = 0
        self.behind = one.server.streams[STREAM].last if stale else None

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        if all(".log." in d.subject for d in drafts):
            self.batches.append(len(drafts))
        return await super().commit(drafts, timeout=timeout)

    async def multi_last(self, stream: str, subjects: Sequence[str]) -> dict[str, Message]:
        self.asked += 1
        found = await super().multi_last(stream, subjects)
        if self.behind is None:
            return found
        return {s: m for s, m in found.items() if m.sequence <= self.behind}

    async def page(
        self, stream: str, filters: Sequence[str], *, start: int, stop: int, most: int = PAGE_MESSAGES
    ) -> list[Message]:
        self.looked += list(filters) == [">"]
        return await super().page(stream, filters, start=start, stop=stop, most=most)


def test_all_partitions_of_a_stage_are_claimed_in_one_batch_behind_one_question_and_one_look(
    lab: MakeLab,
) -> None:
    one = lab(many())
    one.start()
    publish(one, range(20))
    one.kill()
    bus = Watched(one)
    host = one.start(bus=bus)
    assert (bus.asked, bus.batches, bus.looked) == (1, [64], 1)
    assert len(host.runners[0].partitions) == 64
    publish(one, range(20, 40))
    assert sorted(o["n"] for o in one.outputs("out")) == list(range(40))


def test_logs_that_a_replica_has_not_seen_are_claimed_behind_what_the_leader_has(lab: MakeLab) -> None:
    one = lab(many(8))
    one.start()
    bus = Watched(one, stale=True)
    publish(one, range(3))  # at most three logs move on
    one.kill()
    host = one.start("b", bus=bus)
    one.advance(10)
    assert len(host.runners[0].partitions) == 8
    assert len(bus.batches) == 3  # refused; those that have not moved; the others
    assert sum(bus.batches[1:]) == 8
    publish(one, range(3, 20))
    assert sorted(o["n"] for o in one.outputs("out")) == list(range(20))


def test_two_engines_that_claim_the_same_partitions_at_once_lose_and_double_nothing(lab: MakeLab) -> None:
    one = lab(many(16))
    a, b = one.start("a"), one.start("b")
    one.advance(10)
    for host in (a, b):
        for index in range(16):
            host.runners[0].own(index)
    one.advance(30)
    publish(one, range(200))
    one.advance(30)
    assert all(any(index in host.runners[0].partitions for host in (a, b)) for index in range(16))
    assert sorted(o["n"] for o in one.outputs("out")) == list(range(200))


class Leader(MemoryBus):
    """A connection to a server whose leader's clock is `ahead` seconds ahead."""

    ahead = 0.0

    async def stream(self, name: str) -> StreamInfo | None:
        info = await super().stream(name)
        return info and replace(info, now=info.now + self.ahead)


def test_a_partition_waits_while_the_clock_is_over_a_minute_behind_its_own(lab: MakeLab) -> None:  # I11
    one = lab(many(2))
    bus = Leader(one.server, BusEvents())
    bus.ahead = 300.0
    one.start(bus=bus)
    publish(one, range(5))
    one.kill()
    host: Host = one.start("b")  # its leader has the true time
    publish(one, range(5, 10))
    one.advance(200)
    assert host.runners[0].partitions == {}
    assert claims(one) == [1, 1]
    status = one.run(one.client.status())
    (stage,) = status["stages"]
    assert "2026-01-01T00:05" in stage["stopped"]  # what the partitions have come to
    assert "2026-01-01T00:03" in stage["stopped"]  # and what the server says
    one.advance(60)
    assert len(host.runners[0].partitions) == 2
    assert one.run(one.client.status())["stages"][0]["stopped"] is None
    assert sorted(o["n"] for o in one.outputs("out")) == list(range(10))


def test_a_claim_whose_answer_never_came_is_made_again(lab: MakeLab) -> None:
    one = lab(many(4))

    class Deaf(MemoryBus):
        """The answer to its first batch of claims never comes, though it is stored."""

        heard = False

        async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
            last = await super().commit(drafts, timeout=timeout)
            if not self.heard:
                self.heard = True
                await asyncio.sleep(timeout)
                raise Unsettled("no answer")
            return last

    host = one.start(bus=Deaf(one.server, BusEvents()))
    one.advance(10)
    assert len(host.runners[0].partitions) == 4
    assert sorted(claims(one)) == [1, 1, 1, 1, 2, 2, 2, 2]
    publish(one, range(10))
    assert sorted(o["n"] for o in one.outputs("out")) == list(range(10))
