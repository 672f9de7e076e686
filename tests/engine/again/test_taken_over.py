"""A run of which a later event of another run took what waited: it drove it out, paired it, or was woken in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_lab import Lab

from dspex.engine.again.change import ForkChange
from dspex.engine.again.fork import Forked, forked
from dspex.engine.again.repeat import repeat
from dspex.engine.client.runs.export import RunFile, load
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
BEGAN = 1_767_225_600


def gathered(state: list[int], data: dict[str, Any], ctx: Any) -> tuple[list[int], list[Any]]:
    ctx.wake("2s")
    return [*state, data["n"]], []


def said(state: list[int], ctx: Any) -> tuple[None, list[Any]]:
    return None, [{"n": state}]


def counted(state: int, data: dict[str, Any], ctx: object) -> tuple[int, list[dict[str, Any]]]:
    return state + 1, [{**data, "n": state + 1}]


def calm() -> Topology:
    """Each of its operators keeps something of an event that later ones find."""
    topology = Topology("calm")
    by_k = topology.source("in", time="at").key_by("k", name="by_k")
    by_k.debounce("2s", name="last").predict("text -> kind", name="ask").sink("calmed")
    by_k.stateful(gathered, init=list, on_wake=said, name="woken").sink("gathered")
    by_k.throttle("1/s", name="slowly").sink("slow")
    by_k.dedupe("id", within="5s", name="once").sink("seen")
    by_k.stateful(counted, init=int, ttl="5s", name="total").sink("sums")
    by_k.session_window("3s").count(name="window").sink("windows")
    by_k.batch(2, within="3s", name="some").sink("batches")
    right = topology.source("right", time="at").key_by("k", name="right_by_k")
    by_k.join(right, within="4s", how="left", name="both").sink("pairs")
    return topology


def ran(one: Lab, gap: float) -> list[str]:
    """Runs of one key with some seconds between them, and an event of the other stream among them."""
    one.answers["ask"] = lambda inputs, work: {"kind": str(inputs["text"]).upper()}
    one.start()
    one.work()
    runs = list[str]()
    for n in range(5):
        runs.append(one.publish("in", {"k": "a", "n": n, "id": f"i{n % 3}", "text": f"t{n}", "at": BEGAN + n * gap}))
        if gap:
            one.advance(gap)
        if n == 2:
            one.publish("right", {"k": "a", "r": n, "at": BEGAN + n * gap})
    one.advance(30)
    for stream in ("in", "right"):
        one.publish(stream, {"k": "z", "n": 9, "id": "z", "text": "later", "at": BEGAN + 100})
    one.advance(60)
    return runs


@pytest.mark.parametrize(
    "gap",
    [
        pytest.param(1.0, id="a second apart"),
        pytest.param(0.0, id="at once", marks=pytest.mark.long),
        pytest.param(10.0, id="far apart", marks=pytest.mark.long),
    ],
)
def test_each_run_is_the_same_again_from_its_file_whatever_later_ones_took_of_it(
    lab: MakeLab, tmp_path: Path, gap: float
) -> None:
    one = lab(calm())
    for run in ran(one, gap):
        one.run(one.client.run(run).export(tmp_path / run))
        for file in (load(tmp_path / run), one.run(one.client.run(run).file(state=True))):
            found = asyncio.run(repeat(None, file, [calm().graph]))
            assert (file.info.status, found.diff.same) == ("done", True), (run, found.without, str(found.diff))


def quiet() -> Topology:
    topology = Topology("quiet")
    topology.source("in").key_by("k", name="by_k").debounce("20s", name="last").sink("calmed")
    return topology


def test_a_run_is_over_for_who_waits_once_a_later_event_has_taken_what_it_left(lab: MakeLab) -> None:
    one = lab(quiet())
    one.start()
    runs = [one.publish("in", {"k": "a", "n": n}) for n in range(3)]
    one.advance(5)
    infos = [one.run(one.client.run(run).info()) for run in runs]
    assert [info.status for info in infos] == ["done", "done", "running"]

    async def waited() -> list[str]:
        return [(await asyncio.wait_for(one.client.run(run).wait(), 60)).status for run in runs[:2]]

    assert one.run(waited()) == ["done", "done"]


def test_a_fork_that_leads_to_another_key_waits_there_as_any_event_does(lab: MakeLab) -> None:
    one = lab(quiet())
    one.start()
    runs = [one.publish("in", {"k": "a", "n": n}) for n in range(3)]
    one.advance(10)
    for key, comes in (("b", [0]), ("a", [])):
        change = ForkChange(inputs={"k": key})
        made: Forked = one.run(forked(one.client, runs[0], "in", change, [quiet().graph]))
        file: RunFile = one.run(one.client.run(made.run).file())
        assert [o.data["n"] for o in file.root if o.node == "calmed"] == comes
