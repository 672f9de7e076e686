"""Events too large for one commit, and outputs too large for one message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from engine_lab import Cut, Lab, Slow

from dspex.bus import subjects
from dspex.bus.errors import PayloadTooLarge
from dspex.bus.memory.server import MemoryServer
from dspex.bus.message import partition_of
from dspex.bus.port import COMMIT_LIMIT, NewMessage
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
CALLS = COMMIT_LIMIT + 100  # of one event, which no commit holds


def clocked() -> Topology:
    """Each event becomes `count` outputs whose content depends on the clock."""

    def many(data: Any, ctx: Any) -> Any:
        return [{"n": n, "at": ctx.now.isoformat()} for n in range(data["count"])]

    topology = Topology("clocked")
    topology.source("in").flat_map(many, name="many").sink("out")
    return topology


@pytest.mark.parametrize("landed", [True, False])
@pytest.mark.parametrize("at", [2, 3, 4])
def test_2500_outputs_are_whole_and_of_one_clock_though_killed_between_any_parts(lab: MakeLab, at: int, landed: bool) -> None:
    one = lab(clocked())
    one.start(bus=Cut(one.server, at, landed))  # commit 1 is the claim
    one.publish("in", {"count": 2500})
    one.advance(1)
    one.kill()
    one.advance(100)
    one.start(bus=Cut(one.server, 2, landed))  # and again
    one.advance(1)
    one.kill()
    one.advance(100)
    one.start()
    one.advance(1)
    outputs = one.outputs("out")
    assert [o["n"] for o in outputs] == list(range(2500))
    if landed:
        assert len({o["at"] for o in outputs}) == 1
    ids = [m.headers[subjects.EVENT_ID] for m in one.messages("out")]
    assert len(set(ids)) == 2500


class Counting(Slow):
    """A connection that notes how many messages each commit has. Partitions wait for each other's commits."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, 0.2)
        self.counts: list[int] = []

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        self.counts.append(len(drafts))
        return await super().commit(drafts, timeout=timeout)


@pytest.mark.parametrize(
    ("partitions", "count"),
    [pytest.param(1, 960, marks=pytest.mark.long), pytest.param(1, 2000, marks=pytest.mark.long), (2, 484)],
)
def test_no_commit_has_more_messages_than_the_server_takes_however_long_the_log_entries_are(
    lab: MakeLab, partitions: int, count: int
) -> None:
    """Each event opens so many calls, whose rows no single message of this server can hold."""
    topology = Topology("asking")
    calls = topology.source("in", partitions=partitions).flat_map(lambda d: [{"n": n} for n in range(d["count"])], name="many")
    calls.predict("n: int -> answer", name="ask").sink("out")
    one = lab(topology, max_payload=8192)
    bus = Counting(one.server)
    one.start(bus=bus)
    keys = ["a", "d"][:partitions]
    assert {partition_of(key, partitions) for key in keys} == set(range(partitions))
    one.publish("in", {"count": 1}, key="a")  # while it is committed, the others wait
    for key in keys:
        one.publish("in", {"count": count}, key=key)
    one.advance(5)
    assert len(one.requests()) == 1 + partitions * count
    assert max(bus.counts) <= COMMIT_LIMIT
    one.work()
    one.advance(20)
    assert len(one.outputs("out")) == 1 + partitions * count
    assert one.letters() == []
    assert max(bus.counts) <= COMMIT_LIMIT


def test_parts_of_several_events_at_once_are_not_taken_for_each_other(lab: MakeLab) -> None:
    """A large source event and a large result are both half committed when the engine dies."""
    topology = Topology("two")
    source = topology.source("in")
    plain, asked = source.branch("kind == 'plain'")

    def many(data: Any, ctx: Any) -> Any:
        return [{"kind": data["kind"], "n": n, "at": ctx.now.isoformat()} for n in range(1500)]

    plain.flat_map(many, name="many").sink("plain")
    asked.predict("kind -> answer", name="ask").flat_map(many, name="more").sink("asked")
    one = lab(topology)
    one.start()
    one.publish("in", {"kind": "asked"})
    one.kill()
    one.start(bus=Cut(one.server, 3, True))
    one.work()
    one.advance(0.5)  # the first part of the result is stored
    one.kill()
    one.publish("in", {"kind": "plain"})
    one.start(bus=Cut(one.server, 3, True))
    one.advance(0.5)
    one.kill()
    one.start()
    one.advance(1)
    for subject in ("plain", "asked"):
        outputs = one.outputs(subject)
        assert [o["n"] for o in outputs] == list(range(1500)), subject
        assert len({o["at"] for o in outputs}) == 1


def test_a_function_that_fails_between_the_parts_of_its_event_leaves_a_dead_letter(lab: MakeLab) -> None:
    broken = []

    def many(data: Any) -> Any:
        if broken:
            raise ValueError("broken meanwhile")
        return [{"n": n} for n in range(1500)]

    topology = Topology("breaking")
    topology.source("in").flat_map(many, name="many").sink("out")
    one = lab(topology)
    one.start(bus=Cut(one.server, 2, True))
    one.publish("in", {})
    one.advance(1)
    one.kill()
    broken.append(True)
    one.start()
    one.advance(1)
    assert [letter.node for letter in one.letters()] == ["many"]


@pytest.mark.long
@pytest.mark.no_cover
def test_calls_of_one_event_that_no_commit_holds_are_all_made_and_answered() -> None:
    topology = Topology("calling")
    many = topology.source("in").flat_map(lambda d: [{"text": str(n)} for n in range(CALLS)], name="many")
    many.predict("text -> answer", name="ask").sink("out")
    with Driver(topology) as d:
        d.answer("ask", {"answer": "yes"}, after="1s")
        d.publish("in", {})
        d.crash()
        d.advance("5s")
        assert sorted(int(o["text"]) for o in d.outputs("out")) == list(range(CALLS))
        assert len(d.calls("ask")) == CALLS


def test_an_event_whose_outputs_have_more_bytes_than_a_commit_may_is_split(lab: MakeLab) -> None:
    topology = Topology("bytes")
    topology.source("in").flat_map(lambda d: [{"text": "x" * 200_000} for _ in range(100)], name="many").sink("out")
    one = lab(topology)
    host = one.start()
    one.publish("in", {})
    one.advance(1)
    assert len(one.outputs("out")) == 100
    assert host.committer.commits >= 3


def test_an_output_that_no_payload_may_be_is_a_dead_letter_with_its_size_and_the_rest_goes_on(lab: MakeLab) -> None:
    topology = Topology("wide")
    source = topology.source("in")
    source.map(lambda d: {"text": "x" * d["size"]}, name="blow_up").sink("out")
    one = lab(topology, max_payload=8192)  # the smaller a message, the smaller the largest payload: here a million bytes
    one.start()
    one.publish("in", {"size": 1_100_000})
    one.publish("in", {"size": 900_000})
    one.advance(1)
    assert len(one.outputs("out")) == 1
    (letter,) = one.letters()
    assert (letter.reason, letter.node) == ("OutputTooLarge", "out")
    assert letter.message == "out: 1,100,011 bytes, and one payload may have 1,024,000"


def test_an_answer_that_no_payload_may_be_is_an_error_that_says_so(lab: MakeLab) -> None:
    topology = Topology("wide")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    one = lab(topology, max_payload=8192)
    one.answers["ask"] = lambda inputs, work: {"answer": "y" * 1_100_000}
    one.start()
    one.work()
    one.publish("in", {"text": "a"})
    one.advance(1)
    (letter,) = one.letters()
    assert (letter.reason, letter.node) == ("OutputTooLarge", "ask")
    assert letter.message.endswith("and one payload may have 1,024,000")


def test_what_is_published_and_larger_than_a_payload_may_be_is_refused_with_its_size(lab: MakeLab) -> None:
    topology = Topology("wide")
    topology.source("in").sink("out")
    one = lab(topology, max_payload=8192)
    one.start()
    with pytest.raises(PayloadTooLarge, match=r"1,100,011 bytes for in, and one payload may have 1,024,000"):
        one.run(one.client.publish("in", {"text": "x" * 1_100_000}))


@pytest.mark.parametrize("at", [2, 3])
def test_of_an_event_that_gives_others_when_processed_again_none_is_lost_or_doubled_in_silence(
    lab: MakeLab, at: int
) -> None:  # I3
    """As a function does that iterates over a set, whose order differs in another process."""
    runs: list[int] = []

    def many(data: Any) -> Any:
        runs.append(1)
        numbers = [{"n": n} for n in range(2500)]
        return numbers if len(runs) == 1 else numbers[::-1]

    topology = Topology("unordered")
    topology.source("in").flat_map(many, name="many").sink("out")
    one = lab(topology)
    one.start(bus=Cut(one.server, at, landed=True))
    one.publish("in", {})
    one.advance(1)
    before = len(one.outputs("out"))
    assert 0 < before < 2500
    one.kill()
    one.advance(100)
    one.start()
    one.advance(5)
    assert len(one.outputs("out")) == before
    (letter,) = one.letters()
    assert letter.node == "in"
    assert f"its first {before} outputs are committed" in letter.message


class CutInParts(Cut):
    """A connection that ends behind the first commit that holds a part of a large event."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, 0, True)

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        self.left = 2 - (len(drafts) > COMMIT_LIMIT // 2)
        return await super().commit(drafts, timeout=timeout)


@pytest.mark.parametrize("quick", ["5s", "30s"])  # whose end is taken before the event comes, or is not
def test_a_large_event_is_in_time_for_its_window_though_the_watermark_moves_between_its_parts(lab: MakeLab, quick: str) -> None:
    def at(seconds: float) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)

    topology = Topology("t")
    keyed = topology.source("in").key_by("k")
    large, rest = keyed.branch("kind == 'large'")
    plain, asked = rest.branch("kind == 'plain'")
    large.flat_map(lambda d: [{"n": n} for n in range(2500)], name="split").sink("many")
    large.merge(plain, asked.predict("k -> answer", name="ask")).window("10s").count(name="w").sink("out")
    plain.window(quick).count(name="ends").sink("quick")
    one = lab(topology)
    bus = CutInParts(one.server)
    one.start(bus=bus)
    for kind, seconds in (("asked", 1), ("plain", 2), ("plain", 20), ("large", 4)):
        one.publish("in", {"k": "a", "kind": kind}, time=at(seconds))
        one.advance(0.5)
    assert bus.cut.is_set()
    one.kill()
    one.advance(10)
    one.work()  # the call ends first: it held the window, which the watermark has passed
    one.advance(1)
    one.start()
    one.advance(2)
    assert [o["n"] for o in one.outputs("many")] == list(range(2500))
    assert (one.letters(), [w["value"] for w in one.outputs("out")]) == ([], [3])
    assert one.differences() == []
