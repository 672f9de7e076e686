"""Operators that are built anew from history, where their results go on exactly where those of before ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from engine_lab import APP, STREAM, Lab
from with_history import (
    MONTH,
    Build,
    MakeLab,
    backfilled,
    both,
    by_key,
    manifest,
    message,
    rebuilt,
    send,
    summed,
    sums,
    sums_of,
    topology,
    windows,
)

from dspex.bus import subjects
from dspex.bus.errors import TopologyError
from dspex.bus.memory.server import MemoryBus
from dspex.bus.port import BusEvents, Kept, StreamConfig, StreamInfo
from dspex.engine.cli.figures import blocks
from dspex.engine.client.status.health import faults
from dspex.engine.client.status.status import stage_rows
from dspex.engine.graph import pauses
from dspex.engine.graph.manifest import of_application
from dspex.engine.hosting.apply import apply
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology


def predicted(keyed: Any) -> None:
    summed(keyed)
    keyed.stateful(lambda s, d, ctx: (s + 1, [{**d, "seen": s + 1}]), init=int, name="counted").predict(
        "seen: int -> answer", name="ask"
    ).sink("answers")


def several(keyed: Any) -> None:
    windows(keyed)
    predicted(keyed)


def more(keyed: Any) -> None:
    keyed.map(lambda d: d, name="more").sink("more.out")


async def trickle(one: Lab, numbers: Sequence[int]) -> None:
    """Two events a second."""
    for n in numbers:
        await one.client.bus.publish(message(n))
        await asyncio.sleep(0.5)


@pytest.mark.parametrize(
    ("build", "reset", "sinks"),
    [
        (several, ["windows", "counted"], ["counts", "answers", "sums.out"]),
        pytest.param(both, ["sums", "windows"], ["counts"], marks=pytest.mark.long),
        pytest.param(both, ["sums"], ["counts"], marks=pytest.mark.long),
    ],
)
def test_what_is_built_anew_goes_on_exactly_where_it_was(
    lab: MakeLab, build: Build, reset: list[str], sinks: list[str]
) -> None:
    """Events come all the time, and the engine of before runs on until it is stopped."""
    always, one = lab(topology(build)), lab(topology(build))
    for at in (always, one):
        at.answers["ask"] = lambda inputs, request: {"answer": str(inputs["seen"])}
        at.start()
        at.work()
        at.run(trickle(at, range(24)))
    one.run(rebuilt(one, topology(build), trickle(one, range(24, 54)), reset=reset))
    always.run(trickle(always, range(24, 54)))
    for at in (always, one):
        at.run(trickle(at, range(54, 64)))
        if at is one:
            at.start("b", topology(build))
        else:
            at.advance(0.5)  # as long as the other one takes
        at.run(trickle(at, range(64, 70)))
        if at is one:
            at.kill()
        at.run(trickle(at, range(70, 84)))
        at.advance(45)
    for sink in [*sinks, "out"]:
        assert always.outputs(sink)
        assert by_key(one.outputs(sink)) == by_key(always.outputs(sink)), sink
    assert one.differences(f"{reset[0]}/") == []


def straight(keyed: Any) -> None:
    keyed.map(lambda d: d, name="same").sink("sums.out")


def in_between(keyed: Any) -> None:
    keyed.stateful(sums, init=int, name="sums").map(lambda d: d, name="same").sink("sums.out")


def test_an_operator_that_is_put_before_a_sink_that_is_there_leaves_no_gap_there(lab: MakeLab) -> None:
    one = lab(topology(straight))
    one.start()
    one.run(trickle(one, range(20)))
    one.run(rebuilt(one, topology(in_between), trickle(one, range(20, 50))))
    one.drain()
    one.start("b", topology(in_between))
    one.run(trickle(one, range(50, 60)))
    one.advance(5)
    out = one.outputs("sums.out")
    assert sorted(row["n"] for row in out) == list(range(60))
    first = min(row["n"] for row in out if "sum" in row)
    assert 20 < first < 30
    assert by_key([row for row in out if "sum" in row]) == sums_of(range(60), first)


def test_what_is_on_its_way_to_a_stage_that_is_reset_is_read_while_the_topology_comes_to_rest(lab: MakeLab) -> None:
    one = lab(topology(summed))
    one.start()

    async def meanwhile() -> None:
        bucket = await one.client.bus.bucket(subjects.applied(APP))
        await pauses.pause(bucket, "t", "by", 0.0)
        await asyncio.sleep(1.1)  # a heartbeat
        for n in range(10):
            await one.client.bus.publish(message(n))
        await asyncio.sleep(1)
        how: dict[str, Any] = {"reset": ["by", "sums"], "backfill": MONTH}
        applying = asyncio.ensure_future(apply(one.client.bus, APP, [topology(summed).graph], **how))
        await asyncio.sleep(2)
        await pauses.resume(bucket, "t", "by")
        await applying

    one.run(meanwhile())
    one.start("b", topology(summed))
    send(one, range(10, 20))
    one.advance(2)
    assert by_key(one.outputs("sums.out")) == sums_of(range(20), 0)


def test_who_cannot_come_to_rest_goes_on_as_before(lab: MakeLab) -> None:
    """Without an engine nothing is read, and while a call is open nobody knows what comes of it."""
    one = lab(topology(predicted))
    one.start()
    one.kill()
    send(one, range(5))
    with pytest.raises(TopologyError, match="events of in are not read") as e:
        backfilled(one, topology(predicted), reset=["counted"])
    assert "start the engines" in e.value.fix
    one.start("b", heartbeat=5.0)
    one.advance(20)
    with pytest.raises(TopologyError, match="5 open calls"):
        backfilled(one, topology(predicted), reset=["counted"])
    assert manifest(one).version == 1
    send(one, range(5, 10))
    one.work()
    one.advance(5)
    assert len(one.outputs("answers")) == 10


def test_engines_of_before_are_said_to_stand_where_another_version_goes_on(lab: MakeLab) -> None:
    one = lab(topology(summed))
    one.start()
    send(one, range(5))
    one.advance(2)
    backfilled(one, topology(summed), reset=["sums"])
    one.run(pause_and_resume(one))  # that does not let them go on
    send(one, range(5, 10))
    one.advance(40)
    assert len(one.outputs("out")) == 5
    (row,) = [row for row in one.run(stage_rows(one.client.bus, APP, {"t": manifest(one)})) if row["source"] == "in"]
    assert row["stopped"] == "version 2 goes on where version 1 stopped: start its engines"
    assert one.hosts["a"][0].watchdog.health == "ok"


def test_a_topology_that_stands_for_an_apply_is_said_to_do_so(lab: MakeLab) -> None:
    one = lab(topology(summed))
    one.start()
    send(one, range(5))
    until = one.run(at_rest(one))
    one.advance(2)
    status = one.run(one.client.status())
    (row,) = [row for row in status["stages"] if row["source"] == "in"]
    assert (row["stopped"], row["rests_until"]) == (None, until)
    assert [f for f in faults(status) if f.check == "stage"] == []
    shown = {row["source"]: row["owner"] for row in blocks(status)[0].rows}
    assert shown == {"in": f"AT REST for dspex apply --backfill until {until} at the latest; a", "by": "a"}
    one.advance(600)
    assert [row["rests_until"] for row in one.run(one.client.status())["stages"]] == [None, None]


async def at_rest(one: Lab) -> str:
    """Until when."""
    now = (await one.client.bus.stream(STREAM)).now  # type: ignore[union-attr]
    await pauses.rest(await one.client.bus.bucket(subjects.applied(APP)), "t", pauses.Rest(now, now + 600, 1))
    return datetime.fromtimestamp(now + 600, UTC).isoformat(timespec="seconds")


async def pause_and_resume(one: Lab) -> None:
    bucket = await one.client.bus.bucket(subjects.applied(APP))
    await pauses.pause(bucket, "t", pauses.WHOLE, 0.0)
    await pauses.resume(bucket, "t", pauses.WHOLE)


def test_a_version_that_is_applied_while_a_topology_comes_to_rest_for_another_one_is_not_written_over(lab: MakeLab) -> None:
    """Whoever came first stays, and all goes on."""
    one = lab(topology(predicted))
    one.start()
    send(one, range(5))  # the calls keep it from coming to rest
    one.advance(2)
    theirs = topology(predicted, more)

    async def meanwhile() -> None:
        ours = asyncio.ensure_future(apply(one.client.bus, APP, [topology(predicted).graph], reset=["counted"], backfill=MONTH))
        await asyncio.sleep(3)
        await apply(one.client.bus, APP, [theirs.graph])
        begun = one.loop.time()
        with pytest.raises(TopologyError, match="version 2 was applied meanwhile") as e:
            await ours
        assert (e.value.code, one.loop.time() - begun < 10) == ("DX243", True)

    one.run(meanwhile())
    assert (manifest(one).version, manifest(one).lanes) == (2, {})
    send(one, range(5, 10))
    one.work()
    one.advance(2)
    assert len(one.outputs("answers")) == 10


class Overtaken(MemoryBus):
    """A connection of one that has `theirs` applied before it looks what is there once all rests, or before it writes."""

    def __init__(self, one: Lab, theirs: Topology, at: str) -> None:
        super().__init__(one.server, BusEvents())
        self.one, self.theirs, self.at, self.looks = one, theirs, at, 0

    async def has(self, kind: Kept, name: str, *, own: bool = False) -> bool:
        self.looks += name == subjects.applied(APP)  # twice a look
        if self.at == "look" and self.looks == 3:
            await apply(self.one.client.bus, APP, [self.theirs.graph])
        return await super().has(kind, name, own=own)

    async def ensure_stream(self, config: StreamConfig) -> StreamInfo:
        if self.at == "write":
            await apply(self.one.client.bus, APP, [self.theirs.graph])
            self.at = ""
        return await super().ensure_stream(config)


@pytest.mark.parametrize("at", ["look", "write"])
def test_a_version_that_is_applied_once_a_topology_rests_for_another_one_is_not_written_over(lab: MakeLab, at: str) -> None:
    one = lab(topology(summed))
    one.start()
    with pytest.raises(TopologyError, match=r"applied (meanwhile|at the same moment)") as e:
        one.run(
            apply(Overtaken(one, topology(summed, more), at), APP, [topology(summed).graph], reset=["sums"], backfill=MONTH)
        )
    assert (e.value.code, manifest(one).version, manifest(one).lanes) == ("DX243", 2, {})
    send(one, range(5))
    one.advance(2)
    assert len(one.outputs("sums.out")) == 5


def test_engines_that_stand_where_a_version_goes_on_are_not_let_go_on_by_the_next_apply(lab: MakeLab) -> None:
    one = lab(topology(summed))
    one.start()
    send(one, range(10))
    one.advance(2)
    backfilled(one, topology(summed), reset=["sums"])
    send(one, range(10, 20))
    with pytest.raises(TopologyError, match="a runs version 1, and stands where version 2 goes on") as e:
        backfilled(one, topology(summed), reset=["sums"])
    assert e.value.code == "DX245"
    one.advance(2)
    one.start("b", topology(summed))
    one.advance(5)
    assert by_key(one.outputs("sums.out")) == sums_of(range(20), 0)
    backfilled(one, topology(summed), reset=["sums"])  # with it the topology comes to rest


def test_of_two_applies_for_which_a_topology_comes_to_rest_one_gives_way_and_the_other_one_is_exact(lab: MakeLab) -> None:
    one = lab(topology(summed))
    one.start()

    async def applied(after: float) -> None:
        await asyncio.sleep(after)
        await apply(one.client.bus, APP, [topology(summed).graph], reset=["sums"], backfill=MONTH)

    async def meanwhile() -> None:
        first, second, _ = await asyncio.gather(applied(0), applied(1), trickle(one, range(30)), return_exceptions=True)
        assert isinstance(first, TopologyError)
        assert (first.code, "another apply has it come to rest" in first.message, second) == ("DX243", True, None)

    one.run(meanwhile())
    one.start("b", topology(summed))
    one.advance(5)
    assert by_key(one.outputs("sums.out")) == sums_of(range(30), 0)


@pytest.mark.parametrize("written", [True, False])
def test_who_dies_while_a_topology_comes_to_rest_leaves_it_standing_only_where_another_version_goes_on(
    lab: MakeLab, written: bool
) -> None:
    one = lab(topology(summed))
    one.start()
    if written:
        backfilled(one, topology(summed), reset=["sums"])

    async def over() -> None:
        bucket = await one.client.bus.bucket(subjects.applied(APP))
        now = (await one.client.bus.stream(STREAM)).now  # type: ignore[union-attr]
        lanes = (await of_application(one.client.bus, APP))["t"].lanes
        await pauses.rest(bucket, "t", pauses.Rest(lanes["sums"].boundary if written else now, now + 5.0, 1))

    one.run(over())
    one.advance(1.1)
    send(one, range(5))
    one.advance(2)
    assert one.outputs("out") == []
    one.advance(10)
    assert len(one.outputs("out")) == (0 if written else 5)


def test_engines_that_die_while_a_topology_comes_to_rest_and_another_change_after_it_lose_and_double_nothing(
    lab: MakeLab,
) -> None:
    """Its lane is replaced by another one, which begins anew."""
    one = lab(topology(summed))
    one.start()

    async def killed() -> None:
        await asyncio.sleep(1.5)
        host, bus = one.hosts.pop("a")
        await host.kill()
        await bus.close()
        host = Host(bus := one.server.connect(), APP, one.graphs, engine="a2")
        one.hosts["a2"] = (host, bus)
        await host.start()

    made = topology(summed)
    one.run(trickle(one, range(10)))
    one.run(rebuilt(one, made, killed(), trickle(one, range(10, 50)), reset=["sums"]))
    one.start("b", topology(summed))
    one.run(trickle(one, range(50, 60)))
    one.run(rebuilt(one, made, trickle(one, range(60, 90)), reset=["sums"]))
    one.start("c", topology(summed))
    one.run(trickle(one, range(90, 100)))
    one.advance(10)
    assert manifest(one).lanes.keys() == {"sums/2"}
    assert by_key(one.outputs("sums.out")) == sums_of(range(100), 0)
    assert len(one.outputs("out")) == 100


@pytest.mark.parametrize("silence", [30.0, 35.3])
def test_windows_that_a_silent_source_ends_while_it_comes_to_rest_give_their_results_once(lab: MakeLab, silence: float) -> None:
    """The watermark is moved by the clock alone: past the end of a window soon after the rest, or while it comes."""
    one = lab(topology(windows))
    one.start()
    one.run(trickle(one, range(24)))
    one.advance(silence)
    backfilled(one, topology(windows), reset=["windows"])
    one.advance(20)  # the engine of before lives on
    one.start("b", topology(windows))
    one.advance(60)
    found = [(w["key"], w["start"]) for w in one.outputs("counts")]
    assert (len(found), sum(w["value"] for w in one.outputs("counts"))) == (len(set(found)), 24)


def test_windows_of_which_none_has_ended_when_a_topology_comes_to_rest_give_their_results_once(lab: MakeLab) -> None:
    one = lab(topology(windows))
    one.start()
    one.run(trickle(one, range(13)))  # the first one would end three seconds later, when the rest comes
    one.run(rebuilt(one, topology(windows), trickle(one, range(13, 30)), reset=["windows"]))
    one.start("b", topology(windows))
    one.advance(60)
    found = [(w["key"], w["start"]) for w in one.outputs("counts")]
    assert (len(found), sum(w["value"] for w in one.outputs("counts"))) == (len(set(found)), 30)
