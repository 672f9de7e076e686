"""Operators that are built anew from history, where their results go on exactly where those of before ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from engine_lab import APP, Lab
from with_history import (
    MONTH,
    Build,
    MakeLab,
    backfilled,
    both,
    by_key,
    manifest,
    message,
    send,
    summed,
    sums,
    sums_of,
    topology,
    windows,
)

from dspex.bus import subjects
from dspex.bus.errors import TopologyError
from dspex.engine.client.status.status import stage_rows
from dspex.engine.graph import pauses
from dspex.engine.hosting.apply import apply


def predicted(keyed: Any) -> None:
    summed(keyed)
    keyed.stateful(lambda s, d, ctx: (s + 1, [{**d, "seen": s + 1}]), init=int, name="counted").predict(
        "seen: int -> answer", name="ask"
    ).sink("answers")


async def trickle(one: Lab, numbers: Sequence[int]) -> None:
    """Two events a second."""
    for n in numbers:
        await one.client.bus.publish(message(n))
        await asyncio.sleep(0.5)


@pytest.mark.parametrize(
    ("build", "reset", "sinks"),
    [
        (summed, ["sums"], ["sums.out"]),
        (windows, ["windows"], ["counts"]),
        (both, ["sums", "windows"], ["counts"]),
        (predicted, ["counted"], ["answers", "sums.out"]),
        (both, ["sums"], ["counts"]),
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
        at.run(trickle(at, range(40)))

    async def meanwhile() -> None:
        how: dict[str, Any] = {"reset": reset, "backfill": MONTH, "again": True}
        await asyncio.gather(apply(one.client.bus, APP, [topology(build).graph], **how), trickle(one, range(40, 80)))

    one.run(meanwhile())
    always.run(trickle(always, range(40, 80)))
    for at in (always, one):
        at.run(trickle(at, range(80, 100)))
        if at is one:
            at.start("b", topology(build))
        else:
            at.advance(0.5)  # as long as the other one takes
        at.run(trickle(at, range(100, 110)))
        if at is one:
            at.kill()
        at.run(trickle(at, range(110, 130)))
        at.advance(60)
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

    async def meanwhile() -> None:
        how: dict[str, Any] = {"backfill": MONTH, "again": True}
        await asyncio.gather(apply(one.client.bus, APP, [topology(in_between).graph], **how), trickle(one, range(20, 50)))

    one.run(meanwhile())
    one.drain()
    one.start("b", topology(in_between))
    one.run(trickle(one, range(50, 60)))
    one.advance(5)
    out = one.outputs("sums.out")
    assert sorted(row["n"] for row in out) == list(range(60))
    first = min(row["n"] for row in out if "sum" in row)
    assert 20 < first < 30
    assert by_key([row for row in out if "sum" in row]) == sums_of(range(60), first)


def test_who_cannot_come_to_rest_goes_on_as_before(lab: MakeLab) -> None:
    """Without an engine nothing is read, and while a call is open nobody knows what comes of it."""
    one = lab(topology(predicted))
    one.start()
    one.kill()
    send(one, range(5))
    with pytest.raises(TopologyError, match="events of in are not read") as e:
        backfilled(one, topology(predicted), reset=["counted"])
    assert "start the engines" in e.value.fix
    one.start("b")
    one.advance(10)
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


async def pause_and_resume(one: Lab) -> None:
    bucket = await one.client.bus.bucket(subjects.applied(APP))
    await pauses.pause(bucket, "t", pauses.WHOLE, 0.0)
    await pauses.resume(bucket, "t", pauses.WHOLE)
