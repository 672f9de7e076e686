"""Sources: where reading begins, what events may look like, and what happens when the stream is not what it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from engine_lab import STREAM, Lab
from structlog.testing import capture_logs

from dspex.bus import subjects, telemetry
from dspex.bus.port import NewMessage, StreamConfig
from dspex.bus.records import unpack_event
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def reading(stream: str | None = None, **options: Any) -> Topology:
    topology = Topology("reading")
    if stream:
        options["stream"] = stream
    topology.source("in", **options).map(lambda d: d, name="same").sink("out")
    return topology


def foreign(one: Lab, name: str = "EVENTS", subject: str = "in", *others: str) -> None:
    """A stream that is not ours: it may be trimmed at any time. `others`: subjects that it holds besides."""
    one.run(one.client.bus.ensure_stream(StreamConfig(name, [subject, *others])))
    stream = one.server.streams[name]
    info = stream.info
    stream.info = lambda now: replace(info(now), own=False)  # type: ignore[method-assign]


def number(one: Lab, *numbers: int) -> None:
    for n in numbers:
        one.publish("in", {"n": n})


def numbers(one: Lab) -> list[int]:
    return [o["n"] for o in one.outputs("out")]


# -- start
def test_start_all_begins_with_the_first_event_there_is(lab: MakeLab) -> None:
    one = lab(reading())
    foreign(one)
    number(one, 1, 2)
    one.start()
    number(one, 3)
    assert numbers(one) == [1, 2, 3]


def test_start_new_begins_with_the_first_event_after_applying_even_if_the_engine_dies_at_once(lab: MakeLab) -> None:
    one = lab(reading(start="new"))
    foreign(one)
    number(one, 1, 2)
    one.start()
    one.kill()
    number(one, 3)
    one.start()
    one.advance(10)
    number(one, 4)
    assert numbers(one) == [3, 4]


def test_a_source_may_start_at_a_sequence_or_a_time(lab: MakeLab) -> None:
    for start in (3, datetime(2026, 1, 1, 0, 0, 15, tzinfo=UTC)):
        one = lab(reading(start=start))
        foreign(one)
        for n in range(1, 5):
            number(one, n)
            one.advance(8)
        one.start()
        assert numbers(one) == [3, 4], start


def test_a_source_that_starts_at_a_future_sequence_waits_for_it(lab: MakeLab) -> None:
    one = lab(reading(start=3))
    foreign(one)
    host = one.start()
    number(one, 1, 2, 3)
    one.advance(10)
    number(one, 4)
    assert numbers(one) == [3, 4]
    assert host.runners[0].stopped is None


# -- events
def test_an_event_without_an_id_gets_the_same_one_whenever_it_is_read(lab: MakeLab) -> None:
    one = lab(reading())
    one.start()
    one.kill()
    one.store(NewMessage("in", b'{"n":1}'))
    ids = []
    for _ in range(2):
        one.start()
        (message,) = one.messages("out")
        ids.append((message.headers[subjects.EVENT_ID], message.headers[subjects.RUN]))
        one.kill()
        one.server.streams[STREAM].purge("out", 10**9)
        one.server.streams[STREAM].purge(subjects.log("lab", "reading", "s1", 0), 10**9)
    assert ids[0] == ids[1]


def test_bytes_that_are_not_json_are_a_dead_letter_with_the_bytes(lab: MakeLab) -> None:
    one = lab(reading())
    one.start()
    one.store(NewMessage("in", b"\xff\x00 not json"))
    number(one, 1)
    (letter,) = one.letters()
    assert (letter.node, letter.reason, letter.event.data) == ("in", "DecodeError", b"\xff\x00 not json")
    assert numbers(one) == [1]


def test_key_session_and_trace_are_inherited_and_causes_are_named(lab: MakeLab) -> None:
    topology = Topology("heirs")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    one = lab(topology)
    one.start()
    one.work()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"traceparent": trace, "tracestate": "a=b", "X-Tenant": "t"}
    run = one.publish("in", {"text": "a"}, key="k", session="s", headers=headers)
    one.advance(1)
    (m,) = one.messages("out")
    h = m.headers
    assert (h[subjects.KEY], h[subjects.SESSION], h[subjects.TRACEPARENT], h[subjects.RUN]) == ("k", "s", trace, run)
    assert h[subjects.TRACESTATE] == "a=b"
    assert h[subjects.CAUSE] == one.asked[0].call
    assert one.asked[0].record is not None
    assert unpack_event(one.asked[0].record.event).origin.id == run
    assert "X-Tenant" not in h


def test_a_function_sees_the_publishers_headers_and_the_events_time(lab: MakeLab) -> None:
    topology = Topology("headers")

    def look(data: Any, ctx: Any) -> Any:
        return {"tenant": ctx.event.headers.get("X-Tenant"), "time": ctx.event.time.isoformat()}

    topology.source("in", time="at").map(look, name="look").sink("out")
    one = lab(topology)
    one.start()
    one.publish("in", {"at": "2020-05-04T03:02:01Z"}, headers={"X-Tenant": "t"})
    one.publish("in", {"at": "never"})
    assert one.outputs("out") == [{"tenant": "t", "time": "2020-05-04T03:02:01+00:00"}]
    assert [letter.reason for letter in one.letters()] == ["InvalidInput"]


def test_data_that_is_not_of_the_sources_type_is_a_dead_letter(lab: MakeLab) -> None:
    from pydantic import BaseModel

    class Number(BaseModel):
        n: int

    topology = Topology("typed")
    topology.source("in", Number).map(lambda d: {"n": d.n}, name="plain").sink("out")
    one = lab(topology)
    one.start()
    one.publish("in", {"n": "many"})
    number(one, 1)
    assert [letter.reason for letter in one.letters()] == ["InvalidInput"]
    assert numbers(one) == [1]


def test_events_of_a_wildcard_keep_their_subject(lab: MakeLab) -> None:
    topology = Topology("wild")
    topology.source("orders.*").map(lambda d, ctx: {"from": ctx.event.subject}, name="where").sink("out")
    one = lab(topology)
    one.start()
    one.publish("orders.eu", {})
    one.publish("orders.us", {})
    assert one.outputs("out") == [{"from": "orders.eu"}, {"from": "orders.us"}]


# -- gaps
def trim(one: Lab, below: int) -> None:
    one.server.streams["EVENTS"].purge(">", below)


@pytest.mark.parametrize("first_left", [6, 7])
def test_a_source_that_was_trimmed_or_emptied_while_the_engine_was_away_stops_the_stage(lab: MakeLab, first_left: int) -> None:
    one = lab(reading())
    foreign(one)
    number(one, 1, 2, 3)
    one.start()
    one.drain()
    number(one, 4, 5, 6)
    trim(one, first_left)
    codes: list[object] = []
    done = telemetry.subscribe(lambda name, facts: codes.append(facts["code"]) if name == "stopped" else None)
    host = one.start()
    one.advance(20)
    done()
    assert numbers(one) == [1, 2, 3]
    assert "trimmed" in (host.runners[0].stopped or "")
    assert codes == ["DX410"]


def test_a_gap_that_may_be_of_other_subjects_only_is_logged_and_never_stops(lab: MakeLab) -> None:
    one = lab(reading())
    foreign(one, "EVENTS", "in", "other")
    number(one, 1, 2, 3)
    one.start()
    one.drain()
    number(one, 4, 5, 6)
    trim(one, 6)
    with capture_logs() as logs:
        host = one.start()
        one.advance(20)
    assert numbers(one) == [1, 2, 3, 6]
    assert host.runners[0].stopped is None
    assert [entry["read"] for entry in logs if "possible gap" in entry["event"]] == [3]
    assert host.runners[0].counters["possible_gap"] == 1


def test_on_gap_skip_records_a_gap_in_the_source_and_goes_on(lab: MakeLab) -> None:
    from dspex.engine.log.entries import unpack

    one = lab(reading(on_gap="skip"))
    foreign(one)
    number(one, 1, 2, 3)
    one.start()
    one.drain()
    number(one, 4, 5, 6)
    trim(one, 6)
    one.start()
    assert numbers(one) == [1, 2, 3, 6]
    entries = [unpack(m.data) for m in one.messages(subjects.log("lab", "reading", "s1", 0))]
    marks = [run[5] for entry in entries for run in entry.get("taken", ()) if len(run) > 5]
    assert [mark[:3] for mark in marks] == [("gap", 3, 5)]


def remade(one: Lab) -> None:
    """The stream is deleted, and made again."""
    del one.server.streams["EVENTS"]
    one.advance(0.2)
    foreign(one)


def rolled_back(one: Lab) -> None:
    """The server has an older copy of the stream: of when only the first event was stored."""
    old = one.server.streams["EVENTS"]
    foreign_again = copy.copy(old)
    foreign_again.messages, foreign_again.last = {1: old.messages[1]}, 1
    one.advance(0.2)
    one.server.streams["EVENTS"] = foreign_again
    foreign_again.info = lambda now: replace(old.info(now), last=foreign_again.last)  # type: ignore[method-assign]


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("change", [remade, rolled_back])
def test_of_a_stream_that_is_another_one_no_event_is_left_out_and_none_comes_twice(
    lab: MakeLab, policy: Any, alive: bool, change: Callable[[Lab], None]
) -> None:
    """It is filled again at once, beyond what was read, so its numbers alone show nothing."""
    one = lab(reading(on_gap=policy))
    foreign(one)
    number(one, 1, 2, 3)
    host = one.start()
    if not alive:
        one.drain()
    change(one)
    number(one, 4, 5, 6, 7, 8, 9)
    if not alive:
        host = one.start()
    one.advance(20)
    if policy == "stop":
        assert numbers(one) == [1, 2, 3]
        assert any(why in (host.runners[0].stopped or "") for why in ("made anew", "rolled back"))
    else:
        again = [1] if change is rolled_back else []  # the copy's own first event has the id that it had before
        assert numbers(one) == [1, 2, 3, *again, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("refilled", [[4], [4, 5]], ids=["shorter", "to where it was read"])
def test_of_a_stream_that_was_rolled_back_to_before_what_was_read_no_event_is_left_out(
    lab: MakeLab, policy: Any, alive: bool, refilled: list[int]
) -> None:
    one = lab(reading(on_gap=policy))
    foreign(one)
    number(one, 1, 2, 3)
    host = one.start()
    if not alive:
        one.drain()
    rolled_back(one)
    number(one, *refilled)
    if not alive:
        host = one.start()
    one.advance(20)
    number(one, 6)
    one.advance(20)
    assert numbers(one) == ([1, 2, 3] if policy == "stop" else [1, 2, 3, 1, *refilled, 6])
    assert any(w in (host.runners[0].stopped or "") for w in ("truncated", "rolled back")) == (policy == "stop")


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_source_that_was_made_anew_is_noticed_at_start_and_while_running(lab: MakeLab, policy: Any) -> None:
    for running in (False, True):
        one = lab(reading(on_gap=policy))
        foreign(one)
        number(one, 1, 2, 3)
        host = one.start()
        if not running:
            one.drain()
        del one.server.streams["EVENTS"]
        one.advance(0.2)
        foreign(one)
        number(one, 4, 5, 6, 7)
        if not running:
            host = one.start()
        one.advance(20)
        assert numbers(one) == ([1, 2, 3] if policy == "stop" else [1, 2, 3, 4, 5, 6, 7]), running
        assert ("made anew" in (host.runners[0].stopped or "")) == (policy == "stop")


def test_events_of_others_may_be_trimmed_from_a_stream_that_is_shared(lab: MakeLab) -> None:
    """The stream moves on by itself: an engine that has read all of its own events lost nothing."""
    one = lab(reading(partitions=4))
    foreign(one, "EVENTS", "in", "other")
    number(one, 1, 2)
    one.start()
    for away in (False, True):
        if away:
            one.drain()
        for _ in range(20):
            one.store(NewMessage("other", b"{}"))
        trim(one, one.server.streams["EVENTS"].last)
        if away:
            one.start()
        one.advance(20)
        assert one.hosts["a"][0].runners[0].stopped is None
    number(one, 3)
    one.advance(1)
    assert numbers(one) == [1, 2, 3]


def test_a_partition_that_gets_no_events_is_no_gap_when_what_others_read_is_trimmed(lab: MakeLab) -> None:
    one = lab(reading(partitions=2))
    foreign(one)
    for n in range(5):
        one.publish("in", {"n": n}, key="same")
    one.start()
    one.publish("in", {"n": 5}, key="same")
    one.advance(11)
    one.kill()
    trim(one, 7)
    one.publish("in", {"n": 6}, key="same")
    host = one.start()
    one.advance(1)
    assert host.runners[0].stopped is None
    assert numbers(one) == [0, 1, 2, 3, 4, 5, 6]


def test_a_stream_that_is_not_there_yet_is_waited_for(lab: MakeLab) -> None:
    one = lab(reading(stream="EVENTS", start="new"))
    host = one.start()
    one.advance(3)
    assert host.failure is None
    foreign(one)
    one.advance(3)
    number(one, 1)
    assert numbers(one) == [1]


def test_partitions_without_events_keep_nothing_that_the_others_have_read(lab: MakeLab) -> None:
    one = lab(reading(partitions=4))
    host = one.start()
    for n in range(50):
        one.publish("in", {"n": n}, key="same")
    one.advance(60)
    read = {index: p.tables.position("source").sequence for index, p in host.runners[0].partitions.items()}
    assert len(read) == 4
    assert min(read.values()) == max(read.values()) == 50
    entries = sum(len(one.messages(subjects.log("lab", "reading", "s1", index))) for index in range(4))
    one.advance(600)
    assert sum(len(one.messages(subjects.log("lab", "reading", "s1", index))) for index in range(4)) == entries
