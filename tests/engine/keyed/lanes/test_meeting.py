"""Several sources of one lane: joins and look-ups that are built from history."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engine_lab import APP
from with_history import MakeLab, backfilled, joined, send, summed, through_both

from dspex.bus.memory.server import MemoryBus
from dspex.bus.port import BusEvents, StreamConfig
from dspex.engine.client.status.state import of_key
from dspex.engine.graph.lanes import Backfill
from dspex.engine.hosting.apply import apply
from dspex.operators.topology import Topology


def test_a_join_of_two_sources_is_built_with_what_waits_in_it(lab: MakeLab) -> None:
    """Some of its pairs lie across the boundary, and so do some events that find none."""
    made = joined("12s", how="left")
    before = 0
    found: list[list[Any]] = []
    for new in (False, True):
        one = lab(made)
        if not new:
            one.start()
        else:
            one.run(apply(one.client.bus, APP, [through_both().graph]))
        send(one, range(20))
        one.advance(10)
        send(one, range(0, 20, 2), "other")
        one.advance(15)
        send(one, range(20, 25))
        one.advance(1)
        if new:
            backfilled(one, made)
            one.start()
        else:
            before = len(one.outputs("pairs.out"))
        send(one, range(22, 24), "other")
        one.advance(90)
        found.append(sorted(map(repr, one.outputs("pairs.out")[0 if new else before :])))
    assert before
    assert found[1] == found[0]
    assert any("None" in pair for pair in found[0])


def test_a_lookup_is_built_with_all_that_its_table_ever_said(lab: MakeLab) -> None:
    made = Topology("t")
    events, table = (made.source(name).key_by("k", name=f"by_{name}") for name in ("in", "other"))
    found = events.lookup(table, name="known").map(lambda p: {"n": p[0]["n"], "said": p[1] and p[1]["n"]}, name="named")
    found.sink("known.out")
    one = lab(made)
    one.run(apply(one.client.bus, APP, [through_both().graph]))
    send(one, range(7), "other")
    one.advance(100)
    send(one, range(7))
    one.advance(1)
    one.run(apply(one.client.bus, APP, [made.graph], backfill=Backfill(50.0)))
    send(one, range(7, 14))
    one.start()
    one.advance(10)
    assert sorted((row["n"], row["said"]) for row in one.outputs("known.out")) == [(n, n - 7) for n in range(7, 14)]


class SlowLane(MemoryBus):
    """A connection on which the source of one stage is read 10 s late."""

    def __init__(self, server: Any, stage: str) -> None:
        super().__init__(server, BusEvents())
        self._stage = f"-{stage}-source-"

    async def reader(self, stream: str, filters: Any, **options: Any) -> Any:
        if self._stage in options["name"]:
            await asyncio.sleep(10)
        return await super().reader(stream, filters, **options)


@pytest.mark.parametrize("slow", ["pairs/in", "pairs/other"])
def test_no_source_of_a_lane_passes_the_boundary_before_all_are_there(lab: MakeLab, slow: str) -> None:
    """Else a pair over the boundary would be found by the older of its two events, and count as history."""
    made = joined("1h")
    one = lab()
    one.run(apply(one.client.bus, APP, [through_both().graph]))
    for subject in ("in", "other"):
        send(one, range(7), subject)
    one.advance(1)
    applied = backfilled(one, made)
    one.graphs = [made.graph]
    one.start(bus=SlowLane(one.server, applied.manifests["t"].stages[slow][0]))
    for subject in ("in", "other"):
        send(one, range(7, 14), subject)
    one.advance(60)
    assert len(one.outputs("pairs.out")) == 7 * 3  # of a key: the new one of each side with the old of the other, and both
    one.kill()
    one.start("b")
    one.advance(6)
    send(one, [14], "in")
    one.advance(0.2)  # it has been at the boundary before, and does not wait there again
    assert len(one.outputs("pairs.out")) == 7 * 3 + 2


def test_a_new_topology_over_an_old_stream_reads_each_event_once(lab: MakeLab) -> None:
    made = Topology("t")
    summed(made.source("in").key_by("k", name="by"))
    one = lab(made)
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    send(one, range(20))
    one.advance(5)
    backfilled(one, made)
    host = one.start()
    assert [r.stage.name for r in host.runners] == ["sums/in", "sums/by"]
    run = one.publish("in", {"k": "k1", "n": 100})
    one.advance(1)
    assert one.outputs("sums.out") == [{"k": "k1", "n": 100, "sum": 124}]
    (state,) = one.run(of_key(one.client.bus, APP, "t/sums", "k1"))
    assert state.value == 124
    assert [p.info({}).status for p in one.run(anext(one.client.follow([run])))] == ["done"]
