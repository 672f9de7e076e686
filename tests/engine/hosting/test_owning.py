"""Several engines: sharing, taking over, fencing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from engine_lab import APP, STREAM, Cut, Lab
from structlog.testing import capture_logs

from dspex.bus import subjects
from dspex.bus.errors import BusError, RetryLater, Unreachable, Unsettled
from dspex.bus.memory.faults import Faults
from dspex.bus.memory.server import MemoryBus
from dspex.bus.message import Message, partition_of
from dspex.bus.port import Ack, BusEvents, NewMessage
from dspex.engine.runtime.inputs import position
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def shared(partitions: int = 4) -> Topology:
    topology = Topology("shared")
    source = topology.source("in", partitions=partitions)
    source.map(lambda d: d, name="same").sink("out")
    return topology


def publish(one: Lab, numbers: range) -> None:
    for n in numbers:
        one.publish("in", {"n": n, "k": n % 8}, key=f"k{n % 8}")


def owned(one: Lab) -> dict[str, list[int]]:
    return {name: sorted(host.runners[0].partitions) for name, (host, _) in one.hosts.items()}


def in_order(one: Lab, count: int) -> None:
    """Every event is there once, in order by key."""
    outputs = one.outputs("out")
    assert sorted(o["n"] for o in outputs) == list(range(count))
    for key in range(8):
        assert [o["n"] for o in outputs if o["k"] == key] == list(range(key, count, 8))


def test_a_second_engine_gets_its_share_and_the_order_of_keys_is_kept(lab: MakeLab) -> None:  # N8
    one = lab(shared())
    one.start("a")
    publish(one, range(16))
    assert owned(one) == {"a": [0, 1, 2, 3]}
    one.start("b")
    publish(one, range(16, 32))
    one.advance(20)
    publish(one, range(32, 48))
    one.advance(1)
    assert [len(p) for p in owned(one).values()] == [2, 2]
    in_order(one, 48)


def test_an_engine_that_leaves_hands_over_at_once(lab: MakeLab) -> None:  # P13
    one = lab(shared())
    one.start("a")
    one.start("b")
    one.advance(20)
    one.drain("a")
    one.advance(4)
    assert owned(one) == {"b": [0, 1, 2, 3]}
    publish(one, range(8))
    one.advance(1)
    in_order(one, 8)


def test_an_engine_that_dies_is_followed_after_five_heartbeats(lab: MakeLab) -> None:
    one = lab(shared())
    one.start("a")
    one.start("b")
    one.advance(20)
    publish(one, range(8))
    one.kill("a")
    publish(one, range(8, 24))
    one.advance(12)
    assert owned(one) == {"b": [0, 1, 2, 3]}
    in_order(one, 24)


def test_a_fenced_engine_commits_nothing_more_and_says_why(lab: MakeLab) -> None:  # P12
    one = lab(shared(1))
    frozen = Cut(one.server, 10**9, landed=False)
    one.start("a", bus=frozen)
    publish(one, range(4))
    frozen.left = 1  # as if the process were frozen in its next commit
    publish(one, range(4, 8))
    one.advance(1)
    stale = one.hosts["a"][0].runners[0].partitions[0]
    for task in [t for t in asyncio.all_tasks(one.loop) if t.get_name() == "dspex.membership"]:
        task.cancel()  # it gives no sign of life
    one.start("b")
    one.advance(12)
    assert owned(one)["b"] == [0]
    publish(one, range(8, 12))
    one.advance(1)
    in_order(one, 12)
    before = len(one.messages(">"))
    with capture_logs() as logs:
        thaw(one, stale)
    assert any("fenced" in entry["event"] and entry["partition"] == 0 for entry in logs)
    assert owned(one) == {"a": [], "b": [0]}
    assert len(one.messages(">")) == before
    in_order(one, 12)


def thaw(one: Lab, stale: Any) -> None:
    """The frozen engine goes on with the commit that it was about to send."""
    host, bus = one.hosts["a"]
    assert isinstance(bus, Cut)

    async def go() -> None:
        try:
            await super(Cut, bus).commit(bus.unsent)
        except BusError as e:
            host.runners[0].failed(stale, e)

    one.run(go())
    one.advance(0.1)


def test_two_engines_that_claim_again_and_again_lose_nothing(lab: MakeLab) -> None:
    one = lab(shared(1))
    hosts = [one.start("a"), one.start("b")]
    for n in range(40):
        one.publish("in", {"n": n, "k": n % 8}, key=f"k{n % 8}")
        hosts[n % 2].runners[0].own(0)
        one.advance(0.01)
    one.advance(1)
    in_order(one, 40)


class Slow(MemoryBus):
    """Commits of events take a second; claims do not."""

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        if len(drafts) > 1:
            await asyncio.sleep(1.0)
        return await super().commit(drafts, timeout=timeout)


def test_a_partition_that_is_claimed_while_its_commit_flies_is_not_lost_with_the_old_claim(lab: MakeLab) -> None:
    one = lab(shared(1))
    host = one.start(bus=Slow(one.server, BusEvents()))
    publish(one, range(8))
    host.runners[0].own(0)
    one.advance(0.5)
    (new,) = host.runners[0].partitions.values()
    one.advance(3)  # the old one's commit is fenced by the new claim
    assert host.runners[0].partitions[0] is new
    publish(one, range(8, 16))
    one.advance(5)
    in_order(one, 16)


def test_partitions_of_one_engine_commit_together(lab: MakeLab) -> None:
    one = lab(shared(8))
    host = one.start()
    before = host.committer.commits
    one.kill()
    publish(one, range(64))
    host = one.start()
    assert len(one.outputs("out")) == 64
    entries = one.messages(subjects.log("lab", "shared", "s1", "*"))
    assert before + host.committer.commits < len(entries) - 16  # less commits than entries: 8 and 8 are claims


def test_idle_partitions_move_on_so_that_a_restart_reads_little_again(lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position, "LAG", 100)
    one = lab(shared(2))
    one.start()
    for n in range(300):
        one.publish("in", {"n": n}, key="same")
    one.advance(10)
    one.drain()
    host = one.start()
    assert min(p.tables.position("source").sequence for p in host.runners[0].partitions.values()) > 200


def roll_back(one: Lab, stream: str, to: int) -> None:
    """The server has an older copy of a stream: of when `to` was the last sequence."""
    held = one.server.streams[stream]
    for sequence in [sequence for sequence in held.messages if sequence > to]:
        one.run(one.client.bus.delete(stream, sequence))
    held.last = to


def test_a_live_engine_reports_that_the_applications_stream_was_rolled_back_and_does_again_what_is_gone(lab: MakeLab) -> None:
    one = lab(shared(1))
    host = one.start()
    publish(one, range(4))
    before = one.server.streams[STREAM].last
    publish(one, range(4, 8))
    first = {m.data: m.headers[subjects.EVENT_ID] for m in one.messages("out")}
    roll_back(one, STREAM, before)
    with capture_logs() as logs:
        publish(one, range(8, 10))
        one.advance(10)
    assert any("was rolled back to an older copy" in line["event"] and line["landed"] > before for line in logs)
    assert host.runners[0].counters["rolled_back"] == 1
    in_order(one, 10)
    again = {m.data: m.headers[subjects.EVENT_ID] for m in one.messages("out")}
    assert again.items() >= first.items()


class Unanswered(MemoryBus):
    """A connection on which one commit gets no answer, once `armed`."""

    armed = False

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        if self.armed:
            self.armed = False
            raise Unsettled("no answer came")
        return await super().commit(drafts, timeout=timeout)

    async def publish_all(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> list[Ack | BusError]:
        if self.armed:
            self.armed = False
            return [Unsettled("no answer came") for _ in drafts]
        return await super().publish_all(drafts, timeout=timeout)


def test_an_engine_that_claims_a_partition_anew_while_its_timers_are_due_still_takes_turns(lab: MakeLab) -> None:  # P9
    """Timers that nobody takes would be found again at once, for ever, and nothing else of the process would run."""

    def later(data: Any) -> Any:
        raise RetryLater(after=5)

    topology = Topology("due")
    topology.source("in").map(later, name="later").sink("out")
    one = lab(topology, faults=Faults(delay=0.05))
    bus = Unanswered(one.server, BusEvents())
    host = one.start(bus=bus)
    for n in range(20):
        one.publish("in", {"n": n})
    one.advance(2)
    (p,) = host.runners[0].partitions.values()
    assert p.tables.timers.put_off == 20
    bus.armed = True  # the commit of the first that is due
    one.advance(30)  # without its turn, nothing ends this but the time limit of the test
    assert p.revoked
    assert host.runners[0].partitions[0].tables.timers.put_off == 20


class HalfRead(MemoryBus):
    """A server whose leader does not have the log of partition 1 yet."""

    behind = True

    async def scan(self, stream: str, filters: Sequence[str], *, start: int, stop: int) -> list[Message]:
        if self.behind and subjects.log(APP, "two", "s1", 1) in filters:
            raise Unreachable("not there yet")
        return await super().scan(stream, filters, start=start, stop=stop)


def test_a_partition_that_cannot_be_read_yet_holds_up_no_other_one(lab: MakeLab) -> None:
    topology = Topology("two")
    topology.source("in", partitions=2).sink("out")
    one = lab(topology)
    one.start()
    keys = ["a", "b", "c", "d", "e", "f"]
    mine = {key: partition_of(key, 2) for key in keys}
    for key in keys:
        one.publish("in", {"key": key, "round": 1}, key=key)
    one.kill()
    bus = HalfRead(one.server, BusEvents())
    one.start(bus=bus)
    for key in keys:
        one.publish("in", {"key": key, "round": 2}, key=key)
    one.advance(5)
    second = {o["key"] for o in one.outputs("out") if o["round"] == 2}
    assert second == {key for key in keys if mine[key] == 0}
    bus.behind = False
    one.advance(5)
    assert {o["key"] for o in one.outputs("out") if o["round"] == 2} == set(keys)
