"""A server that has just become the leader may not have everything yet: what it does not show is not gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.errors import Unreachable
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.message import Message
from dspex.bus.port import BusEvents, StreamInfo
from dspex.engine.log.reading import scanned, stored
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
LOG = subjects.log(APP, "behind", "s1", 0)


class Behind(MemoryBus):
    """A connection to a leader that lacks the last `lacks` messages of each stream, for the next `looks` looks at it."""

    def __init__(self, server: MemoryServer, events: BusEvents) -> None:
        super().__init__(server, events)
        self.lacks = self.looks = 0

    def _reach(self, stream: str) -> int:
        behind, self.looks = self.looks > 0, self.looks - 1
        return self.server.streams[stream].last - (self.lacks if behind else 0)

    async def stream(self, name: str) -> StreamInfo | None:
        info = await super().stream(name)
        if info is None or self.looks <= 0:
            return info
        return StreamInfo(**{**vars(info), "last": self._reach(name)})

    async def get(self, stream: str, sequence: int) -> Message | None:
        return await super().get(stream, sequence) if sequence <= self._reach(stream) else None

    async def scan(self, stream: str, filters: Sequence[str], *, start: int, stop: int) -> list[Message]:
        return await super().scan(stream, filters, start=start, stop=min(stop, self._reach(stream)))


def behind() -> Topology:
    topology = Topology("behind")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    return topology


def connected(one: Lab, lacks: int, looks: int) -> Behind:
    bus = Behind(one.server, BusEvents())
    bus.lacks, bus.looks = lacks, looks
    return bus


def test_a_log_is_read_again_until_the_claim_itself_is_seen(lab: MakeLab) -> None:
    one = lab(behind())
    one.start()
    for n in range(5):
        one.publish("in", {"text": str(n)})
    one.kill()
    host = one.start(bus=connected(one, lacks=7, looks=8))
    one.advance(15)
    p = host.runners[0].partitions[0]
    assert len(p.tables.calls.rows) == 5
    one.work()
    one.advance(5)
    assert [o["text"] for o in one.outputs("out")] == [str(n) for n in range(5)]


def test_a_log_that_never_shows_the_claim_is_an_error_that_may_pass(lab: MakeLab) -> None:
    one = lab(behind())
    one.start()
    last = one.messages(LOG)[-1].sequence
    with pytest.raises(Unreachable, match="behind"):
        one.run(scanned(connected(one, lacks=5, looks=10**6), STREAM, [LOG], 1, last))


def test_a_message_that_a_new_leader_does_not_have_yet_is_not_gone(lab: MakeLab) -> None:
    one = lab(behind())
    one.start()
    one.publish("in", {"text": "0"})
    last = one.server.streams[STREAM].last
    found = one.run(stored(connected(one, lacks=3, looks=6), STREAM, last))
    assert found is not None
    assert found.sequence == last


def test_a_message_that_was_removed_is_gone_and_one_beyond_a_stream_that_was_rolled_back_too(lab: MakeLab) -> None:
    one = lab(behind())
    one.start()
    one.publish("in", {"text": "0"})
    event = one.messages("in")[0].sequence
    one.run(one.client.bus.delete(STREAM, event))
    assert one.run(stored(one.client.bus, STREAM, event)) is None
    assert one.run(stored(one.client.bus, STREAM, 10**6)) is None


def test_an_event_that_was_put_off_is_run_again_though_the_leader_changed_meanwhile(lab: MakeLab) -> None:
    from dspex.bus.errors import RetryLater

    topology, tries = Topology("behind"), list[int]()

    def patient(data: object) -> object:
        tries.append(1)
        if len(tries) == 1:
            raise RetryLater(after=10.0)
        return data

    topology.source("in").map(patient, name="patient").sink("out")
    one = lab(topology)
    bus = connected(one, lacks=0, looks=0)
    one.start(bus=bus)
    one.publish("in", {"n": 1})
    one.advance(8)
    bus.lacks, bus.looks = 100, 5
    one.advance(10)
    assert one.outputs("out") == [{"n": 1}]
    assert one.letters() == []
