"""cron: each time of a schedule once, in its zone, whoever dies and however long nobody ran."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from engine_lab import APP, Cut, Lab

from dspex.bus import codecs, subjects
from dspex.bus.port import NewMessage
from dspex.bus.records import NodeEvent, Origin
from dspex.engine.graph import pauses
from dspex.engine.graph.nodes import TOLD
from dspex.engine.log.rows import Place, Position
from dspex.engine.log.tables import Tables
from dspex.engine.runtime.arrival import Arrival, Due, Woken
from dspex.engine.runtime.process import Process
from dspex.engine.runtime.walk.compile import compile_stage
from dspex.engine.runtime.walk.request import Address
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def ticking(schedule: str = "* * * * *", **options: Any) -> Topology:
    topology = Topology("t")
    topology.cron(schedule, name="tick", **options).sink("out")
    return topology


def minutes(outputs: list[Any]) -> list[int]:
    """The minutes of the day that were due."""
    return [at.hour * 60 + at.minute for at in (datetime.fromisoformat(o["due"]) for o in outputs)]


def due(topology: Topology, first: str, last: str) -> list[str]:
    """What is due between two times, which may be far apart: only the timers of a partition are run, on time."""
    graph = topology.graph
    stage = compile_stage(graph, graph.sources[0], "s1")
    process, tables = Process(stage, Address("lab", "t", "s1", 0, "nonce", 1 << 20), {}, ""), Tables()
    clock, end = datetime.fromisoformat(first).timestamp(), datetime.fromisoformat(last).timestamp()
    told = NodeEvent("tick" + TOLD, Origin("id", "in", "run"), codecs.JSON, b'"begin"')
    arrival, found = Arrival(Place("events", 1, 0), Position(1), clock, told), list[str]()
    while arrival.clock <= end:
        effects = process.handle(arrival, tables)
        tables.change(effects.changes)
        found += [codecs.decode(m.data)["due"] for m in effects.outputs if isinstance(m, NewMessage)]
        ((number, timer),) = tables.timers.rows.items()
        arrival = Arrival(Place("timers", number), None, timer.due, Due(number, timer, Woken()))
    return found


def test_each_time_is_taken_once_with_the_fields_that_were_given(lab: MakeLab) -> None:
    one = lab(ticking("*/2 * * * *", data={"report": "daily"}))
    one.start("a")
    one.start("b")
    one.advance(250)
    one.kill("a")
    one.advance(120)
    assert one.outputs("out") == [{"report": "daily", "due": f"2026-01-01T00:0{m}:00Z"} for m in (2, 4, 6)]
    assert one.differences() == []
    ids = [m.headers[subjects.RUN] for m in one.messages("out")]
    assert len(set(ids)) == 3
    again = lab(ticking("*/2 * * * *"))
    again.start()
    again.advance(125)
    assert [m.headers[subjects.RUN] for m in again.messages("out")] == ids[:1]  # of the operator and the time alone


@pytest.mark.parametrize("landed", [False, True])
def test_a_time_is_taken_once_whichever_commit_the_engine_dies_in(lab: MakeLab, landed: bool) -> None:
    for at in range(1, 5):
        one = lab(ticking())
        one.start("first")
        one.kill("first")
        one.start("a", bus=Cut(one.server, at, landed))
        one.advance(65)
        one.kill("a")
        one.start("b")
        one.advance(70)
        assert minutes(one.outputs("out")) == [1, 2], at
        assert one.differences() == []


@pytest.mark.parametrize(("missed", "made_up"), [("skip", []), ("last", [5]), ("all", [2, 3, 4, 5])])
def test_what_nobody_ran_is_made_up_for_as_was_said(lab: MakeLab, missed: Any, made_up: list[int]) -> None:
    one = lab(ticking("1-5,20 * * * *", missed=missed))
    one.start()
    one.advance(65)
    one.kill()
    one.advance(400)
    one.start("b")
    one.advance(10)
    assert minutes(one.outputs("out")) == [1, *made_up]
    assert one.differences() == []


def test_another_schedule_counts_from_when_it_is_applied(lab: MakeLab) -> None:
    one = lab(ticking("*/10 * * * *"))
    one.start()
    one.advance(60)
    one.kill()
    one.start("b", ticking("*/3 * * * *"))
    one.advance(310)
    assert minutes(one.outputs("out")) == [3, 6]
    assert len([row for row in one.left() if isinstance(row[0], int)]) == 1  # one timer


def test_a_time_that_is_left_out_when_clocks_change_comes_behind_it_and_one_that_comes_twice_is_taken_once() -> None:
    spring = due(ticking("30 2 * * *", zone="Europe/Berlin"), "2026-03-28T00:00Z", "2026-03-30T23:00Z")
    assert spring == ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
    autumn = due(ticking("30 2 * * *", zone="Europe/Berlin"), "2026-10-24T12:00Z", "2026-10-26T23:00Z")
    assert autumn == ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
    hourly = due(ticking("0 * * * *", zone="Europe/Berlin"), "2026-10-24T22:30Z", "2026-10-25T03:00Z")
    assert hourly == [f"2026-10-2{5 if h < 20 else 4}T{h:02d}:00:00Z" for h in (23, 0, 1, 2, 3)]


def test_a_minute_of_each_hour_is_a_minute_of_each_hour_for_a_month() -> None:
    found = due(ticking("7 * * * *"), "2026-01-01T00:00Z", "2026-01-31T23:59Z")
    start = datetime(2026, 1, 1, 0, 7, tzinfo=UTC)
    assert [datetime.fromisoformat(at) for at in found] == [start + timedelta(hours=h) for h in range(31 * 24)]


def test_an_event_of_its_source_comes_out_at_once() -> None:
    with Driver(ticking("0 0 1 1 *", data={"report": "daily", "by": "clock"})) as d:
        d.publish("cron.t.tick", {"by": "me"})
        (event,) = d.outputs("out")
        assert (event["report"], event["by"], event["due"][:10]) == ("daily", "me", "2026-01-01")
        assert d.state("tick", "")["next"] == datetime(2027, 1, 1, tzinfo=UTC)


def test_what_is_no_schedule_is_refused_when_the_topology_is_built() -> None:
    def codes(**options: Any) -> list[str]:
        return [p.code for p in ticking(**{"schedule": "* * * * *", **options}).check() if p.level == "error"]

    assert codes() == codes(zone="Europe/Berlin", missed="all", data={"n": 1}) == codes(schedule="0 0 3 * * *") == []
    for wrong in ({"schedule": "every day"}, {"schedule": "0 0 30 2 *"}, {"zone": "Mars"}, {"zone": "../../etc/passwd"}):
        assert codes(**wrong) == ["DX205"], wrong
    for data in ({"due": 1}, [1], {"x": object()}):
        assert codes(data=data) == ["DX205"], data
    topology = Topology("t")
    topology.source("a").filter("true").cron("* * * * *", name="tick").sink("out")
    assert [(p.code, p.message) for p in topology.check()] == [("DX205", "cron stands right behind a source")]


def test_a_schedule_is_the_same_in_yaml(tmp_path: Any) -> None:
    topology = ticking(zone="Europe/Berlin", data={"n": 1}, missed="skip")
    (tmp_path / "t.yaml").write_text(topology.to_yaml())
    assert Topology.load(tmp_path / "t.yaml").digest == topology.digest


def test_windows_behind_a_schedule_end_though_its_source_never_has_an_event(lab: MakeLab) -> None:
    topology = Topology("t")
    topology.cron("* * * * *", name="tick").key_by("'a'").window("2m").count(name="count").sink("out")
    one = lab(topology)
    one.start()
    one.advance(340)
    assert [o["value"] for o in one.outputs("out")] == [1, 2]  # the first one began before the schedule did
    assert one.letters() == []


def test_a_schedule_of_seconds_is_never_ahead_of_its_time(lab: MakeLab) -> None:
    one = lab(ticking("*/2 * * * * *"))
    one.start()
    one.advance(8.8)  # with what it takes to start it is 9.3
    assert [o["due"][-3:] for o in one.outputs("out")] == ["02Z", "04Z", "06Z", "08Z"]
    for m, event in zip(one.messages("out"), one.outputs("out"), strict=True):
        assert m.time >= datetime.fromisoformat(event["due"]).timestamp()


def test_nothing_begins_in_a_pause(lab: MakeLab) -> None:
    one = lab(ticking())
    one.start()

    async def paused(end: bool) -> None:
        bucket = await one.client.bus.bucket(subjects.applied(APP))
        await (pauses.resume(bucket, "t", "") if end else pauses.pause(bucket, "t", "", 0.0))

    one.run(paused(False))
    one.advance(190)
    assert one.outputs("out") == []
    one.run(paused(True))
    one.advance(5)
    assert minutes(one.outputs("out")) == [3]
    assert one.differences() == []
