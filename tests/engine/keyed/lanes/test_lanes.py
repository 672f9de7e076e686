"""Operators that are built from history in a lane: as if they had been there from the begin, and silent before the boundary."""

from __future__ import annotations

import json
from typing import Any

import pytest
from engine_lab import APP, Cut, Lab
from with_history import (
    MONTH,
    Build,
    MakeLab,
    backfilled,
    begun,
    both,
    by_key,
    history,
    lag,
    manifest,
    send,
    summed,
    sums,
    sums_of,
    topology,
    windows,
)

from dspex.bus import subjects
from dspex.bus.errors import TopologyError
from dspex.engine.cli.terminal.terminal import Terminal
from dspex.engine.cli.topology.backfill import announce, watch
from dspex.engine.graph.manifest import of_application
from dspex.engine.hosting.apply import apply
from dspex.engine.hosting.planning.lines import lines_of
from dspex.engine.hosting.planning.plan import plan
from dspex.engine.hosting.planning.there import look
from dspex.engine.log.housekeeping import sweep


@pytest.mark.parametrize(("build", "sink"), [(windows, "counts"), (both, "counts")])
def test_what_is_built_gives_what_it_would_had_it_been_there_but_nothing_before_the_boundary(
    lab: MakeLab, build: Build, sink: str
) -> None:
    always, one = lab(topology(build)), lab(topology())
    before = 0
    for at in (always, one):
        at.start()
        history(at)
        if at is always:
            before = len(at.outputs(sink))
        else:
            backfilled(at, topology(build))
            at.drain()
            at.start("b", topology(build))
        history(at, first=60)
        at.advance(45)
    expected = always.outputs(sink)[before:]
    assert before
    assert expected
    assert by_key(one.outputs(sink)) == by_key(expected)
    assert by_key(one.outputs("out")) == by_key(always.outputs("out"))
    assert one.differences(f"{one.hosts['b'][0].graphs[0].states[0].name}/") == []


def test_an_engine_that_is_killed_while_it_reads_history_and_live_events_loses_and_doubles_nothing(lab: MakeLab) -> None:
    one = lab(topology())
    one.start()
    send(one, range(1000))
    one.advance(1)
    one.drain()
    backfilled(one, topology(summed))
    unread = []
    for life in range(3):
        bus = Cut(one.server, life + 1, landed=life % 2 == 0)  # it is dead from that commit on
        one.start(f"e{life}", topology(summed), bus=bus, most_arrivals=50)
        one.advance(6)  # the one before is silent for long enough
        send(one, range(1000 + life * 40, 1040 + life * 40))
        one.kill(f"e{life}")
        unread.append(lag(one, "sums/in"))
    one.start("last", topology(summed))
    one.advance(10)
    assert (unread[0] > 1000, unread[-1] < 1000) == (True, True), "they died before and after it had read the history"
    assert by_key(one.outputs("sums.out")) == sums_of(range(1120), 1000)
    assert len({m.headers[subjects.EVENT_ID] for m in one.messages("sums.out")}) == 120
    assert one.differences("sums/") == []


def test_a_version_that_is_applied_later_keeps_the_lane_also_where_its_operator_has_another_name(lab: MakeLab) -> None:
    one = begun(lab, topology(summed))
    one.drain("b")
    before = manifest(one)

    def renamed(keyed: Any) -> None:
        keyed.stateful(sums, init=int, name="totals").map(lambda d: d, name="more").sink("sums.out")

    made = topology(renamed, renamed_from={"totals": "sums"})
    assert one.run(apply(one.client.bus, APP, [topology(summed).graph])).changes == {"t": "unchanged"}
    one.run(apply(one.client.bus, APP, [made.graph]))
    after = manifest(one)
    assert after.lanes["sums"].operators == ("totals",)
    assert (after.stages, after.hops) == (before.stages, before.hops)
    one.start("c", made)
    send(one, range(60, 90))
    one.advance(1)
    assert by_key(one.outputs("sums.out")) == sums_of(range(90), 60)


def test_an_operator_that_is_dropped_takes_its_lane_with_it(lab: MakeLab) -> None:
    one = begun(lab, topology(summed))
    one.drain("b")
    with pytest.raises(TopologyError, match="'sums' of the applied version is gone"):
        one.run(apply(one.client.bus, APP, [topology().graph], again=True))
    made = topology(drop=["sums"])
    one.run(apply(one.client.bus, APP, [made.graph], again=True))
    after = manifest(one)
    assert (after.lanes, list(after.streams), "sums/by" in after.dropped) == ({}, ["in"], True)
    host = one.start("c", made)
    one.advance(20)  # what is left of the stages has ended by then
    assert [r.stage.name for r in host.runners] == ["in", "by"]
    send(one, range(60, 70))
    one.advance(1)
    assert len(one.outputs("out")) == 70


def test_an_event_that_waits_for_its_time_counts_from_then_on(lab: MakeLab) -> None:
    one = lab(topology())
    one.start()
    for n, after in ((1, "1s"), (2, "60s"), (3, "50s")):
        one.publish("in", {"k": "a", "n": n}, after=after)
    one.advance(10)
    one.drain()
    backfilled(one, topology(summed))
    one.start("b", topology(summed))
    one.advance(45)
    one.drain("b")
    one.advance(10)  # one of them is due while no engine runs
    one.start("c", topology(summed))
    one.advance(20)
    assert [(row["n"], row["sum"]) for row in one.outputs("sums.out")] == [(3, 4), (2, 6)]
    assert one.differences("sums/") == []


def test_a_hop_that_is_reset_gives_up_what_is_held_behind_it_in_the_lane_too(lab: MakeLab) -> None:
    one = begun(lab, topology(summed))
    one.drain("b")
    one.run(apply(one.client.bus, APP, [topology(summed).graph], reset=["by"]))
    one.start("c", topology(summed))
    send(one, range(60, 67))
    one.advance(1)
    assert sorted(row["sum"] for row in one.outputs("sums.out")) == list(range(60, 67))


def asked(keyed: Any) -> None:
    """Calls and a person behind what is built, and an operator that goes by the clock."""
    found = keyed.stateful(sums, init=int, name="sums")
    found.predict("sum: int -> answer", name="ask").sink("answers")
    found.approve(name="ok", timeout="1h").sink("approved")
    found.batch(100, within="1s", name="batches").sink("batches.out")


def test_nobody_is_asked_about_history_and_what_goes_by_the_clock_gets_none(lab: MakeLab) -> None:
    one = begun(lab, topology(asked))
    one.work()
    one.advance(2)
    assert (one.asked, one.outputs("batches.out")) == ([], [])
    send(one, range(60, 67))
    one.advance(2)
    expected = sorted(row["sum"] for rows in sums_of(range(67), 60).values() for row in rows)
    assert sorted(request.inputs["sum"] for request in one.asked) == expected
    assert sorted(row["sum"] for batch in one.outputs("batches.out") for row in batch) == expected
    assert sorted(row["sum"] for row in one.outputs("answers")) == expected
    assert len(one.run(waiting(one))) == 7
    assert one.differences() == []


async def waiting(one: Lab) -> list[Any]:
    return [approval async for approval in one.client.approvals()]


def predicted(keyed: Any) -> None:
    keyed.predict("n: int -> m: int", name="ask").stateful(sums, init=int, name="sums").sink("sums.out")


def throttled(keyed: Any) -> None:
    keyed.throttle("1/s", name="slowly").stateful(sums, init=int, name="sums").sink("sums.out")


def behind_another(keyed: Any) -> None:
    first = keyed.stateful(sums, init=int, name="sums")
    first.sink("sums.out")
    first.stateful(sums, init=int, name="more").sink("more.out")


def before_another(keyed: Any) -> None:
    keyed.stateful(sums, init=int, name="first").stateful(sums, init=int, name="sums").sink("sums.out")


def meeting(keyed: Any) -> None:
    keyed.stateful(sums, init=int, name="sums").merge(keyed.predict("n: int -> m: int", name="ask")).sink("sums.out")


def nothing(keyed: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (nothing, predicted, "what it answered in history is not read back"),
        (nothing, throttled, "slowly lies before it, and goes by the clock"),
        (summed, behind_another, "sums lies before it, and what that let out in history is not kept"),
        (summed, before_another, "sums behind it is there already"),
        (nothing, meeting, "behind it meets what comes from ask"),
        (summed, summed, "no operator that keeps state by its events is new"),
    ],
)
def test_what_cannot_be_built_from_history_is_refused_with_the_reason(
    lab: MakeLab, before: Build, after: Build, why: str
) -> None:
    one = lab()
    one.run(apply(one.client.bus, APP, [topology(before).graph]))
    with pytest.raises(TopologyError, match=why) as e:
        backfilled(one, topology(after))
    assert e.value.code == "DX245"
    assert e.value.fix


def test_a_plan_says_what_is_built_how_much_is_read_and_since_when_there_is_history(lab: MakeLab) -> None:
    one = begun(lab, topology(summed))
    new = [topology(lambda keyed: (summed(keyed), windows(keyed))).graph]
    there = one.run(look(one.client.bus, APP, new, backfill=MONTH))
    found = plan(APP, there.graphs, there)
    assert [c.name for c in found.changes if c.kind == "lane"] == ["t/windows"]
    (line,) = [line for line in lines_of(found) if " lane " in line]
    assert line.endswith("windows from 2025-12-02T00:00:31+00:00; 60 events of in since 2026-01-01T00:00:00+00:00")
    one.advance(5)  # who is to agree takes a while
    applied = one.run(apply(one.client.bus, APP, new, backfill=MONTH, agreed=found))
    assert applied.manifests["t"].lanes.keys() == {"sums", "windows"}


def test_events_that_history_still_needs_are_not_removed(lab: MakeLab) -> None:
    one = lab(topology())
    one.start()
    send(one, range(60))
    one.advance(1)
    one.drain()
    backfilled(one, topology(summed))
    manifests = one.run(of_application(one.client.bus, APP))
    one.run(sweep(one.client.bus, APP, "t", manifests, records=0.0, now=one.loop.time() + 1e8))
    assert len(one.messages("in")) == 60


def test_apply_shows_where_results_begin_and_how_far_the_history_is_read(
    lab: MakeLab, capsys: pytest.CaptureFixture[str]
) -> None:
    one = lab(topology())
    one.start()
    send(one, range(60))
    one.advance(1)
    one.drain()
    there = one.run(look(one.client.bus, APP, [topology(summed).graph], backfill=MONTH))
    backfilled(one, topology(summed))
    people, machine = Terminal(), Terminal(json=True, bars=False)
    announce(people, there.lanes)
    announce(machine, there.lanes)
    one.run(watch(people, one.client, there.lanes))  # nobody runs it, and nobody looks on
    one.start("b", topology(summed))
    one.advance(1)  # it has said what it runs
    one.run(watch(people, one.client, there.lanes))
    one.run(watch(machine, one.client, there.lanes))
    said = capsys.readouterr()
    assert "backfill  sums: 60 events of history; results begin 2026-01-01T00:00:01+00:00\n" in said.out
    made, done = (json.loads(line) for line in said.out.splitlines() if line.startswith("{"))
    assert (made["operators"], made["events"], made["since"]) == (["sums"], 60, "2025-12-02T00:00:01+00:00")
    assert (done["read"], done["of"], done["left_out"], done["done"]) == (60, 60, 60, True)
    assert said.err.count("no engine runs this version yet") == 1
    assert "all 60 events of history are read" in said.err
