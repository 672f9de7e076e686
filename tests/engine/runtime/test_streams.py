"""Streams and sinks: from one topology to the next, subjects of others, full streams, refused commits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import pytest
from engine_lab import APP, SOURCES, STREAM, Lab

from dspex.bus import codecs, subjects
from dspex.bus.errors import BusError, Fenced, PayloadTooLarge, SubjectTaken, Unsettled
from dspex.bus.memory.server import MemoryBus
from dspex.bus.port import BusEvents, NewMessage, StreamConfig
from dspex.engine.client.following.naming import full_ids
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def test_a_sink_is_the_source_of_another_topology_and_a_run_spans_both(lab: MakeLab) -> None:
    first, second = Topology("first"), Topology("second")
    first.source("raw").map(lambda d: {"n": d["n"] + 1}, name="plus").sink("clean")
    second.source("clean").predict("n -> answer", name="ask").sink("done")
    one = lab(first, second)
    one.start()

    async def publish() -> Any:
        return await one.client.publish("raw", {"n": 1})

    run = one.run(publish())
    one.advance(1)
    assert one.run(run.info()).status == "running"
    one.work()
    info = one.run(run.wait(timeout="10s"))
    assert (info.status, info.calls, info.dead_letters) == ("done", 1, 0)
    outputs = one.run(run.outputs())
    assert [(e.subject, e.data) for e in outputs] == [("clean", {"n": 2}), ("done", {"n": 2, "answer": "yes"})]
    assert {e.run for e in outputs} == {run.id}


class Behind(MemoryBus):
    """A new leader is behind, right after a claim: it does not see the stream EVENTS, or refuses a reader of it."""

    unseen = refused = 0

    def __init__(self, lab: Lab, *, sees: bool) -> None:
        super().__init__(lab.server, BusEvents())
        self.sees = sees

    async def multi_last(self, stream: str, subjects: Sequence[str]) -> Any:
        if ".log." in subjects[0]:  # of a claim
            self.unseen, self.refused = int(not self.sees), int(self.sees)
        return await super().multi_last(stream, subjects)

    async def stream(self, name: str) -> Any:
        if name == "EVENTS" and self.unseen:
            self.unseen -= 1
            return None
        return await super().stream(name)

    async def reader(self, stream: str, filters: Sequence[str], **options: Any) -> Any:
        if stream == "EVENTS" and self.refused:
            self.refused -= 1
            raise BusError("stream not found (10059)")
        return await super().reader(stream, filters, **options)


@pytest.mark.parametrize("sees", [False, True])
def test_a_source_is_read_though_a_leader_that_was_behind_did_not_know_it(lab: MakeLab, sees: bool) -> None:
    topology = Topology("reading")
    topology.source("in").sink("out")
    one = lab(topology)
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    one.publish("in", {"n": 1})
    bus = Behind(one, sees=sees)
    host = one.start(bus=bus)
    one.advance(30)
    one.publish("in", {"n": 2})
    one.advance(10)
    assert (bus.unseen, bus.refused) == (0, 0)
    assert [o["n"] for o in one.outputs("out")] == [1, 2]
    assert host.runners[0].stopped is None


class RolledBackLate(MemoryBus):
    """The stream EVENTS is rolled back to an older copy and filled again, after it was looked at and before it is read."""

    done = False

    async def reader(self, stream: str, filters: Sequence[str], **options: Any) -> Any:
        if stream == "EVENTS" and not self.done:
            self.done = True
            again = copy(self.server.streams[stream])
            again.messages = {n: m._replace(time=m.time + 1, data=b'{"n": -1}') for n, m in again.messages.items()}
            again.messages[again.last + 1] = again.messages[again.last]._replace(sequence=again.last + 1)
            again.last += 1
            self.server.streams[stream] = again
        return await super().reader(stream, filters, **options)


def test_a_source_that_is_rolled_back_just_before_it_is_read_stops_the_stage(lab: MakeLab) -> None:
    topology = Topology("reading")
    topology.source("in").sink("out")
    one = lab(topology)
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    for n in range(3):
        one.publish("in", {"n": n})
    one.start()
    one.drain()
    host = one.start(bus=RolledBackLate(one.server, BusEvents()))
    one.advance(10)
    assert "rolled back" in (host.runners[0].stopped or "")
    one.publish("in", {"n": 3})
    one.advance(10)
    assert [o["n"] for o in one.outputs("out")] == [0, 1, 2]


def test_a_sink_that_another_stream_captures_is_refused_with_the_way_out(lab: MakeLab) -> None:
    topology = Topology("taken")
    topology.source("in").sink("replies")
    one = lab(topology)
    one.run(one.client.bus.ensure_stream(StreamConfig("THEIRS", ["replies"])))
    with pytest.raises(SubjectTaken) as e:
        one.start()
    one.hosts.clear()
    assert "THEIRS" in e.value.message
    assert "another subject" in e.value.fix


def test_a_sinks_subject_may_be_made_of_fields_and_a_bad_one_is_a_dead_letter() -> None:
    topology = Topology("fields")
    topology.source("in").sink("replies.{kind}")
    with Driver(topology) as d:
        d.publish("in", {"kind": "a"})
        d.publish("in", {"kind": "a.b"})
        d.publish("in", {"kind": "x" * 3000})
        assert d.outputs("replies.a") == [{"kind": "a"}]
        assert [letter.reason for letter in d.dead_letters()] == ["InvalidInput", "InvalidInput"]


@pytest.mark.parametrize("limit", ["messages", "bytes"])
def test_a_full_stream_is_backpressure_and_nothing_is_lost(lab: MakeLab, limit: str) -> None:  # N6, P15
    topology = Topology("full")
    topology.source("in").flat_map(lambda d: [d] * 10, name="ten").sink("out")
    one = lab(topology)
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    host = one.start(most_arrivals=5)
    stream = one.server.streams[STREAM]
    config = stream.config
    room = {"max_messages": 100} if limit == "messages" else {"max_bytes": 20_000}
    stream.config = replace(config, **room)  # type: ignore[arg-type]
    for n in range(30):
        one.publish("in", {"n": n})
    one.advance(10)
    assert len(one.outputs("out")) < 300
    assert host.committer.full
    assert host.failure is None
    p = host.runners[0].partitions[0]
    assert p.tables.position("source").sequence < 30  # it reads no more than it may hold
    one.kill()
    host = one.start(most_arrivals=5)
    one.advance(10)
    assert host.failure is None
    stream.config = config
    one.advance(10)
    assert [o["n"] for o in one.outputs("out")] == [n for n in range(30) for _ in range(10)]
    assert host.committer.full == ""


def test_sources_wait_while_the_stream_is_nearly_full_and_open_calls_end(lab: MakeLab) -> None:  # G5
    topology = Topology("nearly")
    topology.source("in").predict("n -> answer", name="ask").sink("out")
    one = lab(topology)
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    host = one.start()
    one.store(NewMessage("out", codecs.json_bytes({"n": 0, "filler": "x" * 30_000})))
    one.publish("in", {"n": 1})
    one.advance(2)  # its call is open
    stream, used = one.server.streams[STREAM], one.run(one.client.bus.stream(STREAM)).bytes
    config = stream.config
    stream.config = replace(config, max_bytes=int(used / 0.85))
    one.advance(5)  # the engine asks how full it is
    one.publish("in", {"n": 2})
    one.advance(5)
    assert one.run(one.client.status())["engines"][0]["full"] == "sources wait: 80% of the stream's max_bytes are used"
    one.work()
    one.advance(5)
    assert [o["n"] for o in one.outputs("out")] == [0, 1]
    stream.config = replace(config, max_bytes=used * 2)
    one.advance(5)
    one.work()
    one.advance(5)
    assert [o["n"] for o in one.outputs("out")] == [0, 1, 2]
    assert one.run(one.client.status())["engines"][0]["full"] == ""
    assert host.watchdog.health == "ok"


class Picky(MemoryBus):
    """A server that refuses commits with "poison" in them, and names what is in them as the reason."""

    async def commit(self, drafts: Any, *, timeout: float = 5.0) -> int:
        if any(b"poison" in d.data and d.subject.startswith(("out", "dspex.lab.work")) for d in drafts):
            raise PayloadTooLarge("it does not take that")
        return await super().commit(drafts, timeout=timeout)


class Failing(MemoryBus):
    """A server that refuses the first commits with outputs for `error`."""

    def __init__(self, one: Lab, error: BusError, times: int) -> None:
        super().__init__(one.server, BusEvents())
        self.error, self.left = error, times

    async def commit(self, drafts: Any, *, timeout: float = 5.0) -> int:
        if self.left and any(d.subject == "out" for d in drafts):
            self.left -= 1
            raise self.error
        return await super().commit(drafts, timeout=timeout)


class Wiped(MemoryBus):
    """A server that is wiped when the first output is committed: the commit is refused, and no log is there any more."""

    done = False

    async def commit(self, drafts: Any, *, timeout: float = 5.0) -> int:
        if not self.done and any(d.subject == "out" for d in drafts):
            self.done = True
            await self.remove("stream", STREAM)
            raise Fenced("wrong last sequence")
        return await super().commit(drafts, timeout=timeout)


def test_a_server_that_is_wiped_during_a_commit_ends_no_engine(lab: MakeLab) -> None:
    topology = Topology("wiped")
    topology.source("in").sink("out")
    one = lab(topology)
    host = one.start(bus=Wiped(one.server, BusEvents()))
    one.publish("in", {"n": 0})
    one.advance(10)  # raises what an engine ended with
    assert "is gone from the server" in host.watchdog.health


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (Unsettled("batch is incomplete (10176)"), 12),
        (BusError("an error that nobody knows (10999)"), 12),
        (PayloadTooLarge("it does not take that"), 1),
    ],
)
def test_no_event_is_blamed_for_a_refusal_that_does_not_name_it_or_comes_once(
    lab: MakeLab, error: BusError, times: int
) -> None:
    topology = Topology("blamed")
    topology.source("in").sink("out")
    one = lab(topology)
    one.start(bus=Failing(one, error, times))
    one.publish("in", {"n": 0})
    one.advance(60)
    assert (one.outputs("out"), one.letters()) == ([{"n": 0}], [])


def test_of_a_refused_commit_only_the_culprits_become_dead_letters(lab: MakeLab) -> None:
    topology = Topology("picky")
    topology.source("in", partitions=3).sink("out")
    one = lab(topology)
    one.start()
    one.kill()
    for n in range(60):
        text = "poison" if n in (17, 18, 40) else "fine"
        one.publish("in", {"n": n, "text": text}, key=f"k{n % 5}")
    host = one.start(bus=Picky(one.server, BusEvents()))
    one.advance(30)
    counters = host.runners[0].counters
    assert (counters["event"], counters["dead_letter"]) == (60, 3)  # each once, however often it was walked
    assert sorted(o["n"] for o in one.outputs("out")) == [n for n in range(60) if n not in (17, 18, 40)]
    assert sorted(letter.event.data["n"] for letter in one.letters()) == [17, 18, 40]
    assert {letter.reason for letter in one.letters()} == {"BusError"}


def test_a_result_of_which_the_server_takes_nothing_is_a_dead_letter_and_its_call_is_over(lab: MakeLab) -> None:
    topology = Topology("picky")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    one = lab(topology)
    one.answers["ask"] = lambda inputs, work: {"answer": "poison" if inputs["text"] == "1" else "fine"}
    host = one.start(bus=Picky(one.server, BusEvents()))
    for n in range(3):
        one.publish("in", {"text": str(n)})
    one.work()
    one.advance(5)
    assert [o["text"] for o in one.outputs("out")] == ["0", "2"]
    (letter,) = one.letters()
    assert (letter.node, letter.event.data) == ("ask", {"text": "1"})
    assert host.runners[0].partitions[0].tables.calls.rows == {}


def test_a_fallback_or_redriven_event_of_which_the_server_takes_nothing_is_a_dead_letter(lab: MakeLab) -> None:
    topology = Topology("picky")
    topology.source("in").predict("text -> answer", name="ask", deadline="5s", fallback={"answer": "poison"}).sink("out")
    one = lab(topology)
    one.start(bus=Picky(one.server, BusEvents()))
    one.publish("in", {"text": "1"})
    one.advance(20)
    (letter,) = one.letters()
    assert letter.code == "DX400"
    one.answers["ask"] = lambda inputs, work: {"answer": "poison"}
    one.run(one.client.redrive([letter]))
    one.advance(20)
    (letter,) = one.letters()
    one.work()
    assert letter.event.data == {"text": "1"}


def test_a_dead_letter_that_cannot_be_stored_stops_its_partition_and_floods_nobody(lab: MakeLab) -> None:
    class Impossible(MemoryBus):
        async def commit(self, drafts: Any, *, timeout: float = 5.0) -> int:
            if len(drafts) > 1:
                raise BusError("nothing is good enough")
            return await super().commit(drafts, timeout=timeout)

    topology = Topology("impossible")
    topology.source("in").sink("out")
    one = lab(topology)
    one.start(bus=Impossible(one.server, BusEvents()))
    one.publish("in", {"n": 1})
    one.advance(60)
    assert len(one.messages(subjects.log("lab", "impossible", "s1", 0))) < 60
    one.kill()
    one.start()
    assert one.outputs("out") == [{"n": 1}]


def test_a_stream_of_sinks_grows_with_its_topologies(lab: MakeLab) -> None:
    one = lab()
    for name, sink in (("first", "a.*"), ("second", "a.b.>")):
        topology = Topology(name)
        topology.source(f"in.{name}").sink(sink.replace("*", "x").replace(">", "y"))
        one.start(name, topology)
    stream = one.run(one.client.bus.stream(STREAM))
    assert {"a.x", "a.b.y"} <= set(stream.subjects)
    assert set(one.run(one.client.bus.stream(SOURCES)).subjects) == {"in.first", "in.second"}


def test_an_id_that_any_nats_client_stores_twice_is_one_event_and_not_the_id_of_its_run(lab: MakeLab) -> None:
    topology = Topology("plain")
    topology.source("in").sink("out")
    one = lab(topology)
    one.start()
    one.store(NewMessage("in", b'{"n": 1}', {subjects.MESSAGE_ID: "mine"}))
    one.store(NewMessage("in", b'{"n": 1}', {subjects.MESSAGE_ID: "mine"}))
    (m,) = one.messages("out")
    (run,) = one.run(full_ids(one.client.bus, APP, [f"{SOURCES}@{one.messages('in')[0].sequence}"]))
    assert m.headers[subjects.RUN] == run != "mine"
