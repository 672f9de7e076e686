"""No two calls have one id, whatever their publishers and topologies call things, and so no paid answer is lost.

Ids are written out where every event passes; they are those that the one module of ids gives to everybody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
import pytest
from engine_lab import SOURCES, STREAM, Cut, Lab
from hypothesis import given
from hypothesis import strategies as st

from dspex.bus import codecs, subjects
from dspex.bus.memory.server import MemoryServer
from dspex.bus.message import Message, derived_id, place_id
from dspex.bus.port import NewMessage, StreamConfig
from dspex.bus.records import NodeEvent, Origin
from dspex.engine.log.rows import Place, Position
from dspex.engine.log.tables import Tables
from dspex.engine.runtime.arrival import Arrival, Effects
from dspex.engine.runtime.inputs.source import SourceInput
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.process import Process
from dspex.engine.runtime.walk.compile import compile_stage
from dspex.engine.runtime.walk.request import Address
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def asking(name: str, source: str, sink: str) -> Topology:
    topology = Topology(name)
    topology.source(source).predict("text -> answer", name="ask").sink(sink)
    return topology


def calls_are_different(one: Lab) -> None:
    """No two have one id, and no record of one can be taken for a repeat of another's."""
    assert len({request.record.id for request in one.asked if request.record}) == len(one.asked)
    assert len({request.call for request in one.asked}) == len(one.asked)
    assert one.letters() == []


def test_two_topologies_with_a_node_of_one_name_on_one_source_both_get_their_answers(lab: MakeLab) -> None:
    one = lab(asking("first", "in", "out.first"), asking("second", "in", "out.second"))
    one.start()
    one.work()
    for text in "abc":
        one.publish("in", {"text": text})
    one.advance(1)
    for sink in ("out.first", "out.second"):
        assert [o["text"] for o in one.outputs(sink)] == ["a", "b", "c"]
    assert len(one.asked) == 6
    calls_are_different(one)


def test_overlapping_sources_that_are_merged_give_each_event_an_answer_for_each_of_them(lab: MakeLab) -> None:
    topology = Topology("merged")
    narrow, wide = topology.source("in.a"), topology.source("in.*")
    narrow.merge(wide).predict("text -> answer", name="ask").sink("out")
    one = lab(topology)
    one.start()
    one.work()
    one.publish("in.a", {"text": "both"})
    one.publish("in.b", {"text": "wide"})
    one.advance(1)
    assert sorted(o["text"] for o in one.outputs("out")) == ["both", "both", "wide"]
    calls_are_different(one)


def test_one_business_id_in_two_streams_is_two_events(lab: MakeLab) -> None:
    topology = Topology("two")
    left, right = topology.source("left", stream="LEFT"), topology.source("right", stream="RIGHT")
    left.merge(right).predict("text -> answer", name="ask").sink("out")
    one = lab(topology)
    for name in ("left", "right"):
        one.run(one.client.bus.ensure_stream(StreamConfig(name.upper(), [name])))
    one.start()
    one.work()
    for name in ("left", "right"):
        one.store(NewMessage(name, b'{"text": "%s"}' % name.encode(), {subjects.MESSAGE_ID: "order-1"}))
    one.advance(1)
    assert sorted(o["text"] for o in one.outputs("out")) == ["left", "right"]
    calls_are_different(one)


@pytest.mark.parametrize("killed", [False, True])
def test_an_id_that_comes_again_after_the_duplicate_window_is_another_event(lab: MakeLab, killed: bool) -> None:  # I2
    one = lab(asking("again", "in", "out"))
    one.start()
    one.work()
    for text in "ab":
        one.store(NewMessage("in", b'{"text": "%s"}' % text.encode(), {subjects.MESSAGE_ID: "order-1"}))
        one.advance(200)
        if killed:
            one.kill()
            one.start()
    assert [o["text"] for o in one.outputs("out")] == ["a", "b"]
    calls_are_different(one)
    ids = [m.headers[subjects.EVENT_ID] for m in one.messages("out", STREAM)]
    assert len(set(ids)) == 2


def test_a_stage_that_begins_again_gives_the_records_of_its_calls_other_ids(lab: MakeLab) -> None:
    one = lab(asking("again", "in", "out"))
    one.start()
    one.publish("in", {"text": "a"})
    (first,) = one.requests()
    one.kill()
    one.server.streams[STREAM].purge(subjects.log("lab", "again", "s1", 0), 10**9)
    one.start()
    second = one.requests()[-1]
    assert (first.call, first.try_number) == (second.call, second.try_number)
    assert first.record != second.record


# -- ids that are written out, for speed ----------------------------------------------------------------------------------
names = st.from_regex(r"[a-z][a-z0-9_-]{0,20}", fullmatch=True)
times = st.floats(0, 10**10)
AGES = [1.0, 1.5, 1_764_338_400.123456]
HEADERS: list[Mapping[str, str]] = [
    {},
    {subjects.MESSAGE_ID: "order-17"},
    {subjects.TIME: "2026-05-04T11:00:00Z", subjects.KEY: "k"},
    {"X": "theirs", subjects.EVENT_ID: "an id of ours, in a source", subjects.SESSION: "s"},
]


def source(stream: str, *ages: float) -> SourceInput:
    """The input of a source in a stream that was made at the first of these times, and is made anew at each other one."""
    topology = Topology("t")
    topology.source("in").sink("out")
    left = iter(ages)

    async def check(partitions: Sequence[Partition], clock: float) -> float:
        return next(left)

    stage = compile_stage(topology.graph, topology.graph.sources[0], "s1")
    assert stage.source is not None
    return SourceInput(MemoryServer().connect(), "app", stage, stage.source, stream, 1, check, asyncio.Event())


@given(st.text(min_size=1, max_size=40), times, st.integers(1, 2**64 - 1), st.sampled_from(HEADERS))
def test_the_id_of_a_source_event_is_that_of_its_place(
    stream: str, time: float, sequence: int, headers: Mapping[str, str]
) -> None:
    read, message = source(stream, *AGES), Message("in", b"{}", headers, sequence, time)
    for age in AGES:
        with suppress(StopIteration):  # nothing of it waits
            read.verify([], 0.0).send(None)
        origin = read.event(message).origin
        assert (origin.id, origin.run) == (place_id(stream, age, message), place_id(stream, age, message))


def test_what_is_made_for_each_event_without_its_constructor_has_all_its_fields(lab: MakeLab) -> None:
    """A field that is added to one of these would be missing: `tuple.__new__` knows no defaults."""
    topology = Topology("t")
    topology.source("in").sink("out")
    (runner,) = lab(topology).start().runners
    p, read = runner.partitions[0], source("S", 1.0)
    with suppress(StopIteration):  # nothing of it waits
        read.verify([], 0.0).send(None)
    arrival = read.at_once(p, Message("in", b"{}", {}, 7, 1.5), 2.0)
    assert arrival is not None
    assert arrival == Arrival(Place("source", 7), Position(7, -1, 1.0, 1.5), 2.0, arrival.what, {})
    general = read.event(Message("in", b"{}", {subjects.KEY: "k"}, 7, 1.5))
    assert arrival.what == general._replace(origin=general.origin._replace(key=None))
    effects = p.process.handle(arrival, Tables())
    (output,) = effects.outputs
    assert isinstance(output, NewMessage)
    assert output == NewMessage("out", b"{}", output.headers)
    assert effects == Effects([output], notes=("event",))


@given(names, names, names, st.text(max_size=60), st.integers(1, 20))
def test_the_ids_of_outputs_are_derived_from_event_node_and_ordinal(
    topology: str, stage: str, word: str, parent: str, count: int
) -> None:
    sinks, made = [f"{word}.first", f"{word}.second"], Topology(topology)
    items = made.source("in").flat_map(lambda d: [d] * count, name="split")
    for sink in sinks:
        items.sink(sink)
    address = Address("app", topology, stage, 0, "nonce", 1 << 20)
    process = Process(compile_stage(made.graph, made.graph.sources[0], stage), address, {}, "S")
    event = NodeEvent("in", Origin(parent, "in", "run"), codecs.JSON, b"{}")
    effects = process.handle(Arrival(Place("source", 1), Position(1, -1, 0.0, 0.0), 0.0, event), Tables())
    for sink in sinks:
        found = [
            o.headers[subjects.EVENT_ID]
            for o in effects.outputs
            if isinstance(o, NewMessage) and o.headers and o.subject == sink
        ]
        assert found == [derived_id(parent, address.node_id(sink), n) for n in range(count)]


def test_an_event_whose_outputs_fill_many_commits_gives_them_the_same_ids_also_after_a_crash(lab: MakeLab) -> None:
    count, topology = 2500, Topology("many")
    topology.source("in").flat_map(lambda d: [{"i": i} for i in range(count)], name="split").sink("out")
    one = lab(topology)
    cut = Cut(one.server, 3, landed=True)
    one.start(bus=cut)
    one.store(NewMessage("in", b"{}"))
    one.run(cut.cut.wait())
    one.kill()
    one.start()
    one.advance(20)
    (event,) = one.messages("in", SOURCES)
    info: Any = one.run(one.client.bus.stream(SOURCES))
    found = one.messages("out", STREAM)
    assert [orjson.loads(m.data)["i"] for m in found] == list(range(count))
    parent = place_id(SOURCES, info.created, event)
    assert [m.headers[subjects.EVENT_ID] for m in found] == [derived_id(parent, "many/s1/out", n) for n in range(count)]
