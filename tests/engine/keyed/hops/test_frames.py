"""Frames: what is one message on a hop are events of their own, with ids, positions and letters of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine_lab import APP, Cut, Lab, Slow

from dspex.bus import subjects
from dspex.bus.message import partition_of
from dspex.bus.records import unpack_frame
from dspex.engine.log.commit_log import CommitLog
from dspex.engine.log.entries import LogAddress
from dspex.engine.log.latest import latest
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
EDGES = subjects.edge(APP, "t", "s2", "*")


def scattering(count: int, *, poison: int = -1) -> Topology:
    """One event becomes many of one key, of which one may fail behind the hop."""

    def check(data: Any) -> Any:
        if data["n"] == poison:
            raise ValueError("poison")
        return data

    topology = Topology("t")
    many = topology.source("in").flat_map(lambda d: [{"k": "a", "n": n} for n in range(count)], name="many")
    many.key_by("k").map(check, name="check").sink("out")
    return topology


def test_children_of_one_event_are_other_events_behind_a_hop_with_calls_of_their_own(lab: MakeLab) -> None:  # I1
    topology = Topology("t")
    many = topology.source("in").flat_map(lambda d: [{"k": "a", "n": n} for n in range(3)], name="many")
    many.key_by("k").predict("n: int -> answer", name="ask").sink("out")
    one = lab(topology)
    one.start()
    one.publish("in", {})
    one.advance(1)
    assert len({request.call for request in one.requests()}) == 3
    one.work()
    one.advance(1)
    assert sorted(o["n"] for o in one.outputs("out")) == [0, 1, 2]
    assert len({m.headers[subjects.EVENT_ID] for m in one.messages("out")}) == 3


def test_an_engine_that_dies_within_a_frame_goes_on_there_and_one_poison_event_takes_no_other_along(
    lab: MakeLab,
) -> None:  # I5
    one = lab(scattering(90, poison=70))
    one.start()
    one.kill()
    one.start(bus=Cut(one.server, 5, landed=True), most_arrivals=30)  # behind two claims, the frame, and the first 30 of it
    one.publish("in", {})
    one.advance(1)
    (frame,) = one.messages(EDGES)
    assert len(unpack_frame(frame.data)) == 90
    assert len(one.outputs("out")) == 60
    one.kill()
    one.start("b")
    one.advance(10)
    assert [o["n"] for o in one.outputs("out")] == [n for n in range(90) if n != 70]
    assert [letter.node for letter in one.letters()] == ["check"]


def test_a_partition_that_was_claimed_by_another_engine_takes_no_frame_of_its_neighbours_along(lab: MakeLab) -> None:  # I7
    topology = Topology("t")
    topology.source("in", partitions=2).key_by("'all'", name="together").sink("out")
    one = lab(topology)
    host = one.start(bus=Slow(one.server, 1.0))
    one.advance(5)
    keys = [next(key for key in "abcdef" if partition_of(key, 2) == p) for p in (0, 1)]
    one.publish("in", {"n": 0}, key=keys[0])  # while this is committed, the next two wait for one commit
    for n in (1, 2):
        one.publish("in", {"n": n}, key=keys[n - 1])
    source = next(r for r in host.runners if r.source is not None)
    one.run(claimed_by_another(one, source.partitions[0].log.address))
    one.advance(30)
    assert sorted(o["n"] for o in one.outputs("out")) == [0, 1, 2]
    assert sorted(len(unpack_frame(m.data)) for m in one.messages(EDGES)) == [1, 1, 1]
    assert source.partitions[0].log.epoch > 2


async def claimed_by_another(one: Lab, log: LogAddress) -> None:
    """An engine has claimed a log, and died before it did anything."""
    bus = one.server.connect()
    other = CommitLog(bus, log, "other", 1)
    await bus.commit([other.draft(await latest(bus, log), one.server.now)])


def test_more_state_than_one_message_holds_is_committed_at_once_and_comes_back(lab: MakeLab) -> None:  # I9
    def fill(state: str, data: Any, ctx: Any) -> tuple[str, list[int]]:
        return state + "x" * data["size"], [len(state)]

    topology = Topology("t")
    spread = topology.source("in").flat_map(lambda d: [{**d, "k": f"k{n}"} for n in range(d["keys"])], name="spread")
    spread.key_by("k").stateful(fill, init=str, name="s").sink("out")
    one = lab(topology, max_payload=8192)
    one.start()
    before = len(one.messages(subjects.log(APP, "t", "s2", "*")))
    one.publish("in", {"keys": 40, "size": 1000})
    one.publish("in", {"keys": 1, "size": 30_000})
    one.advance(2)
    written = len(one.messages(subjects.log(APP, "t", "s2", "*"))) - before
    assert written <= 64 + 1  # an entry for each partition that got events: none was tried one by one
    one.kill()
    one.start("b")
    one.publish("in", {"keys": 2, "size": 1})
    one.advance(10)
    assert one.outputs("out")[-2:] == [31_000, 1000]
    assert one.letters() == []
