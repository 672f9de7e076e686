"""A stage whose source was dropped runs until nothing of it is left to do, and costs nothing after that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import APP, Lab
from structlog.testing import capture_logs

from dspex.bus import subjects
from dspex.bus.errors import RetryLater
from dspex.bus.port import NewMessage, StreamConfig
from dspex.bus.records import NodeEvent, Origin, pack_frame
from dspex.engine.hosting.apply import apply
from dspex.engine.log import commit_log, housekeeping
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def version(source: str, *asks: str, drop: tuple[str, ...] = (), partitions: int = 1, **options: Any) -> Topology:
    """A topology with one source, and behind it one recorded operator after the other."""
    topology = Topology("changing", drop=drop, **options)
    stream = topology.source(source, partitions=partitions)
    for ask in asks:
        stream = stream.predict(f"text -> {ask}", name=ask)
    stream.sink("out")
    return topology


def asked(one: Lab) -> None:
    """The first version has a call open for each of ten events; then it is replaced."""
    one.start()
    for n in range(10):
        one.publish("in", {"text": str(n)}, key=str(n))
    one.advance(1)
    one.answers |= {name: lambda inputs, request: {request.node: "yes"} for name in ("ask", "other")}


def stages(one: Lab) -> dict[str, tuple[int, bool]]:
    one.advance(2)
    return {s["source"]: (s["open_calls"], s["dropped"]) for s in one.run(one.client.status())["stages"]}


def entries(one: Lab) -> int:
    return len(one.messages(f"{subjects.log(APP, 'changing', 's1', 0).rpartition('.')[0]}.*"))


@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("stop", [Lab.drain, Lab.kill])
def test_calls_of_a_dropped_source_end_as_dead_letters_where_their_operator_is_gone(
    lab: MakeLab, stop: Callable[[Lab], None], partitions: int
) -> None:  # E12
    one = lab(version("in", "ask", partitions=partitions))
    asked(one)
    stop(one)
    one.start("b", version("new", "other", drop=("in", "ask")))
    one.advance(10)  # until it has taken over
    one.publish("new", {"text": "b"})
    assert stages(one) == {"in": (10, True), "new": (1, False)}
    one.work()
    one.advance(1)
    assert [o["text"] for o in one.outputs("out")] == ["b"]
    assert {(d.node, d.code) for d in one.letters()} == {("ask", "DX232")}
    assert sorted(d.event.data["text"] for d in one.letters()) == [str(n) for n in range(10)]


def test_calls_of_a_dropped_source_go_on_where_their_operator_is_still_there(lab: MakeLab) -> None:
    """The first call ends with an answer; the one behind it is made by the stage that has no source any more."""
    one = lab(version("in", "ask", "other"))
    asked(one)
    one.drain()
    one.start("b", version("new", "ask", "other", drop=("in",)))
    one.work()
    one.advance(1)
    assert sorted(o["text"] for o in one.outputs("out")) == [str(n) for n in range(10)]
    assert all(o["other"] == "yes" for o in one.outputs("out"))
    assert one.letters() == []


def test_an_engine_takes_over_the_open_calls_of_a_dropped_source(lab: MakeLab) -> None:
    one = lab(version("in", "ask", partitions=4))
    asked(one)
    after = version("new", "ask", drop=("in",))
    one.start("b", after)  # beside the engine of the version before, which hands over
    one.start("c", after)
    one.advance(10)
    one.kill("b")
    one.advance(20)
    one.work()
    one.advance(1)
    assert len(one.outputs("out")) == 10
    assert one.letters() == []


def test_a_call_is_found_that_an_engine_opens_before_it_hears_that_the_source_was_dropped(lab: MakeLab) -> None:
    one = lab(version("in", "ask"))
    one.start()
    one.advance(0.6)  # until just after its heartbeat
    one.start("b", version("new", "ask", drop=("in",)))
    one.publish("in", {"text": "a"})
    assert len(one.requests()) == 1
    one.advance(10)
    one.answers["ask"] = lambda inputs, request: {"ask": "yes"}
    one.work()
    one.advance(1)
    assert len(one.outputs("out")) == 1


def test_nothing_is_left_of_a_dropped_source_once_its_calls_are_closed(lab: MakeLab) -> None:
    one = lab(version("in", "ask", partitions=4))
    asked(one)
    one.drain()
    after = version("new", "ask", drop=("in",))
    host = one.start("b", after)
    assert [r.stage.id for r in host.runners] == ["s2", "s1"]
    one.work()
    one.advance(10)
    assert stages(one) == {"new": (0, False)}
    assert [r.stage.id for r in host.runners] == ["s2"]
    written = entries(one)
    one.drain("b")
    host = one.start("b", after)
    one.advance(10)
    assert [r.stage.id for r in host.runners] == ["s2"]
    assert entries(one) == written


def test_an_event_of_a_dropped_source_that_was_put_off_becomes_a_dead_letter(lab: MakeLab) -> None:
    def later(data: Any) -> Any:
        raise RetryLater("not yet", after=60)

    topology = Topology("changing")
    topology.source("in").map(later, name="later").sink("out")
    one = lab(topology)
    one.start()
    one.publish("in", {"text": "a"})
    one.advance(1)
    one.drain()
    host = one.start("b", version("new", "ask", drop=("in",)))
    one.advance(30)
    assert one.letters() == []
    one.advance(60)
    (letter,) = one.letters()
    assert (letter.node, letter.code, letter.event.data) == ("in", "DX232", {"text": "a"})
    one.advance(10)
    assert [r.stage.id for r in host.runners] == ["s2"]


def test_a_stage_ends_though_the_stream_of_an_event_that_was_put_off_was_deleted_with_its_source(lab: MakeLab) -> None:
    def later(data: Any) -> Any:
        raise RetryLater("not yet", after=60)

    topology = Topology("changing")
    topology.source("ev.in").map(later, name="later").sink("out")
    one = lab(topology)
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["ev.>"])))
    one.start()
    one.publish("ev.in", {"text": "a"})
    one.advance(1)
    one.drain()
    host = one.start("b", version("new", "ask", drop=("ev.in",)))
    one.run(one.client.bus.remove("stream", "EVENTS"))
    one.advance(30)
    assert [r.stage.id for r in host.runners] == ["s2", "s1"]
    with capture_logs() as logs:
        one.advance(60)
    assert [r.stage.id for r in host.runners] == ["s2"]
    assert [e["log_level"] for e in logs if e["event"] == "an event that was put off is stored nowhere any more"] == ["error"]


def test_a_stage_ends_though_the_stream_of_an_event_that_was_redriven_was_deleted_with_its_source(lab: MakeLab) -> None:
    one = lab(version("ev.in", "ask"))
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["ev.>"])))
    one.start()
    one.publish("ev.in", {"text": "a"})
    one.drain()
    event = NodeEvent("ask", Origin("id", "ev.in", "run"), "application/json", b"")
    points = {subjects.STORED: "EVENTS:1"}  # as where the event was too large for its dead letter
    one.store(NewMessage(subjects.edge(APP, "changing", "s1", 0), pack_frame([event]), points))
    one.run(one.client.bus.remove("stream", "EVENTS"))
    host = one.start("b", version("new", "ask", drop=("ev.in",)))
    one.answers["ask"] = lambda inputs, request: {"ask": "yes"}
    one.work()
    one.advance(30)
    assert [r.stage.id for r in host.runners] == ["s2"]
    assert [(letter.node, letter.code) for letter in one.letters()] == [("ask", "DX511")]
    assert [o["text"] for o in one.outputs("out")] == ["a"]


def test_what_was_kept_for_the_calls_of_a_dropped_source_is_removed_after_the_retention(
    lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "EVERY", 60.0)
    monkeypatch.setattr(commit_log, "LEAST", 4_000)
    one = lab(version("in", "ask", retention="30s"))
    asked(one)
    one.drain()
    one.start("b", version("new", drop=("in", "ask"), retention="30s"), records=30.0)
    for n in range(48):  # so that a snapshot stands behind what goes
        one.publish("new", {"text": str(n)})
    one.advance(200)
    work, records = subjects.work_of(APP, "changing"), subjects.record(APP, "*", "changing", "s1", 0)
    assert len(one.messages(work)) == 10  # still to be done
    one.work()
    one.advance(1)
    assert len(one.messages(records)) == 10
    one.advance(200)
    assert (one.messages(work), one.messages(records)) == ([], [])
    assert (len(one.letters()), len(one.outputs("out"))) == (10, 48)


def test_a_dropped_source_that_comes_back_goes_on_where_it_was(lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "EVERY", 60.0)
    one = lab(version("in", "ask", retention="30s"))
    asked(one)
    one.drain()
    one.work()
    one.start("b", version("new", "ask", drop=("in",), retention="30s"), records=30.0)
    one.advance(200)
    one.drain("b")
    one.start("c", version("in", "ask", "other", drop=("new",), retention="30s"))
    one.publish("in", {"text": "10"})
    one.advance(1)
    assert [o["text"] for o in one.outputs("out")] == [str(n) for n in range(11)]


def test_a_source_that_was_renamed_is_not_dropped(lab: MakeLab) -> None:
    one = lab(version("in", "ask"))
    asked(one)
    one.drain()
    one.start("b", version("renamed", "ask", renamed_from={"renamed": "in"}))
    assert stages(one) == {"renamed": (10, False)}
    one.drain("b")
    one.start("c", version("new", "ask", drop=("renamed",)))
    assert stages(one) == {"renamed": (10, True), "new": (0, False)}
    one.work()
    one.advance(1)
    assert len(one.outputs("out")) == 10


@pytest.mark.parametrize("answered", [True, False])
def test_calls_of_a_dropped_operator_go_on_with_what_was_paid_for_once_it_is_brought_back(lab: MakeLab, answered: bool) -> None:
    one = lab(version("in", "ask"))
    asked(one)
    one.drain()
    one.start("b", version("in", "other", drop=("ask",)))
    if answered:
        one.work()
    one.advance(2 if answered else 700)  # more than its deadline
    letters = one.letters()
    assert {(d.node, d.code) for d in letters} == {("ask", "DX232")}
    assert sorted(d.event.data["text"] for d in letters) == [str(n) for n in range(10)]
    one.stop_workers()
    one.drain("b")
    again = version("in", "ask", drop=("other",))
    again.source("more").sink("others")
    one.start("c", again)
    assert one.run(one.client.redrive(letters)) == 10
    one.advance(1)
    assert len(one.outputs("out")) == (10 if answered else 0)  # without another call
    one.work()
    one.advance(1)
    assert sorted(o["text"] for o in one.outputs("out")) == [str(n) for n in range(10)]


def test_calls_of_an_operator_that_is_reset_go_without_a_letter(lab: MakeLab) -> None:
    one = lab(version("in", "ask"))
    asked(one)
    one.drain()
    one.run(apply(one.client.bus, APP, [version("in", "ask").graph], reset=["ask"]))
    one.start("b")
    one.publish("in", {"text": "b"})
    one.work()
    one.advance(700)
    assert [o["text"] for o in one.outputs("out")] == ["b"]
    assert one.letters() == []
