"""No two calls have one id, whatever their publishers and topologies call things, and so no paid answer is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_lab import STREAM, Lab

from dspex.bus import subjects
from dspex.bus.port import NewMessage, StreamConfig
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
def test_an_id_that_comes_again_after_the_duplicate_window_is_another_event(lab: MakeLab, killed: bool) -> None:
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
