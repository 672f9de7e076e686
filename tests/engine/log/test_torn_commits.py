"""Remainders of torn commits are removed before a claim goes on, wherever they lie, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.message import Message
from dspex.bus.port import COMMIT_LIMIT, PAGE_MESSAGES, BusEvents, NewMessage
from dspex.engine.hosting.delete import delete
from dspex.engine.log import torn_commits
from dspex.engine.log.entries import unpack
from dspex.engine.log.torn_commits import TornCommits
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


class Counting(MemoryBus):
    """A connection that notes which sequences were read for all subjects."""

    def __init__(self, server: MemoryServer, events: BusEvents) -> None:
        super().__init__(server, events)
        self.read: list[int] = []

    async def page(
        self, stream: str, filters: Sequence[str], *, start: int, stop: int, most: int = PAGE_MESSAGES
    ) -> list[Message]:
        found = await super().page(stream, filters, start=start, stop=stop, most=most)
        if list(filters) == [">"]:
            self.read += [m.sequence for m in found]
        return found


ELSE = subjects.record(APP, "some", "split", "s1", 0)  # what others write to the application's stream


def split() -> Topology:
    topology = Topology("split")
    topology.source("in", partitions=2).map(lambda d: d, name="same").sink("out")
    return topology


def torn(one: Lab, count: int) -> None:
    """What a server leaves of a commit that it stored in part."""
    one.tear([NewMessage("out", b"{}", {subjects.EVENT_ID: f"torn-{n}"}) for n in range(count)])


def left(one: Lab) -> int:
    return sum(m.headers.get(subjects.EVENT_ID, "").startswith("torn") for m in one.messages("out"))


def looked_at(one: Lab, repair: TornCommits, partition: int) -> None:
    """A claim of a partition, and the repair before it, as its owner does it."""
    log = subjects.log(APP, "split", "s1", partition)
    last = one.messages(log)[-1].sequence
    info = one.server.streams[STREAM]
    one.run(repair.before(info.last + 1, last))
    one.store(NewMessage(ELSE, b"{}"))  # the claim's place in the stream


def test_a_remainder_is_found_before_each_partitions_claim_and_not_only_before_the_first(lab: MakeLab) -> None:
    one = lab(split())
    one.start()
    one.publish("in", {"n": 1}, key="a")
    one.publish("in", {"n": 2}, key="b")
    one.kill()
    torn(one, 3)
    one.store(NewMessage(subjects.log(APP, "split", "s1", 1), b"moved on"))  # partition 1 goes on behind it
    one.store(NewMessage(ELSE, b"{}"))
    repair = TornCommits(one.client.bus, APP, [split().graph])
    looked_at(one, repair, 1)
    assert left(one) == 3
    looked_at(one, repair, 0)
    assert left(one) == 0
    assert len(one.outputs("out")) == 2


def test_a_remainder_is_found_however_much_was_stored_since(lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torn_commits, "PAGE", 500)
    one = lab(split())
    one.start()
    one.publish("in", {"n": 1}, key="a")
    one.kill()
    torn(one, 2)

    async def much() -> None:
        for _ in range(12):
            await one.client.bus.commit([NewMessage(ELSE, b"{}")] * COMMIT_LIMIT)

    one.run(much())
    repair = TornCommits(one.client.bus, APP, [split().graph])
    looked_at(one, repair, 0)
    assert left(one) == 0
    assert len(one.messages(ELSE)) == 12 * COMMIT_LIMIT + 1


def test_what_is_torn_after_the_stream_was_rolled_back_is_found_though_that_place_was_looked_at(lab: MakeLab) -> None:
    one = lab(split())
    one.start()
    for n in range(5):
        one.publish("in", {"n": n}, key="a")
    one.kill()
    repair, stream = TornCommits(one.client.bus, APP, [split().graph]), one.server.streams[STREAM]
    one.run(repair.before(stream.last + 1, 0))
    for sequence in [sequence for sequence in stream.messages if sequence > 3]:
        one.run(one.client.bus.delete(STREAM, sequence))
    stream.last = 3
    torn(one, 3)
    assert left(one) == 3
    one.run(repair.before(stream.last + 1, 0))
    assert left(one) == 0


def test_a_commit_over_the_border_of_a_page_is_none_that_is_torn(lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torn_commits, "PAGE", 7)
    topology = Topology("split")
    topology.source("in", partitions=2).flat_map(lambda d: [d] * 20, name="many").sink("out")
    one = lab(topology)
    one.start()
    for n in range(5):
        one.publish("in", {"n": n}, key="ab"[n % 2])
    one.kill()
    repair = TornCommits(one.client.bus, APP, [topology.graph])
    one.run(repair.before(one.server.streams[STREAM].last + 1, 0))
    assert len(one.outputs("out")) == 100


def test_no_message_is_read_twice_however_many_partitions_are_claimed(lab: MakeLab) -> None:
    topology = Topology("split")
    topology.source("in", partitions=32).map(lambda d: d, name="same").sink("out")
    one = lab(topology)
    one.start()
    for n in range(50):
        one.publish("in", {"n": n}, key=str(n))
    one.kill()
    bus = Counting(one.server, BusEvents())
    one.start(bus=bus)
    one.advance(5)
    assert len(bus.read) == len(set(bus.read)) > 50


def test_a_copy_of_an_output_that_somebody_published_with_its_headers_is_no_remainder(lab: MakeLab) -> None:
    one = lab(split())
    one.start()
    one.publish("in", {"n": 1}, key="a")
    (output,) = one.messages("out")
    one.store(NewMessage("out", output.data, output.headers))  # as a bridge or a script does
    one.kill()
    one.start()
    one.publish("in", {"n": 2}, key="a")
    assert one.outputs("out") == [{"n": 1}, {"n": 1}, {"n": 2}]


def test_a_copy_of_an_entry_behind_a_remainder_does_not_keep_it(lab: MakeLab) -> None:
    one = lab(split())
    one.start()
    one.publish("in", {"n": 1}, key="a")
    one.kill()
    entry = next(m for m in one.messages(subjects.log(APP, "split", "s1", "*")) if unpack(m.data).get("covers"))
    torn(one, 2)
    for _ in range(2):
        one.store(NewMessage(entry.subject, entry.data))
    one.start()
    assert left(one) == 0
    assert one.outputs("out") == [{"n": 1}]


def test_what_a_topology_emitted_stays_when_it_was_deleted_and_runs_again(lab: MakeLab) -> None:
    other, again = Topology("other"), Topology("split")
    other.source("else").sink("elsewhere")
    again.source("in", partitions=2, start="new").sink("out")
    one = lab(split(), other)
    one.start()
    one.publish("in", {"n": 1}, key="a")
    one.publish("in", {"n": 2}, key="b")
    one.kill()
    one.advance(600)  # until nobody takes the engine for alive
    one.run(delete(one.client.bus, APP, "split"))
    one.start("a", again, other)
    one.advance(1)
    assert {1, 2} == {o["n"] for o in one.outputs("out")}


def test_a_start_does_not_read_again_what_was_looked_at_while_a_partition_was_idle(lab: MakeLab) -> None:
    idle = Topology("idle")
    idle.source("never").sink("nothing")
    one = lab(split(), idle)
    one.start()
    for n in range(50):
        one.publish("in", {"n": n}, key=str(n))
    one.kill()
    one.start()
    one.kill()
    bus = Counting(one.server, BusEvents())
    one.start(bus=bus)
    assert len(bus.read) < 50


def test_a_note_of_how_far_was_looked_counts_only_for_the_stream_that_it_was_made_of(lab: MakeLab) -> None:
    one = lab(split())
    one.start()
    one.publish("in", {"n": 1}, key="a")
    one.kill()
    one.start()
    one.kill()
    created = one.server.streams[STREAM].created

    async def noted(note: bytes) -> None:
        bucket = await one.client.bus.bucket(subjects.bucket(APP))
        await bucket.put(subjects.torn_key("split"), note)

    for note in (b"[]", b"\xff", b"[1.0, 999999]", b'["x", "y"]', b"[%f, 999999]" % created):
        one.run(noted(note))
        torn(one, 3)
        one.store(NewMessage(subjects.log(APP, "split", "s1", 1), b"moved on"))
        one.start()
        one.kill()
        assert left(one) == 0, note
