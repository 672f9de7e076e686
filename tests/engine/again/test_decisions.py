"""What people decided about a run is decided again where the run is done again; a fork may decide otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus.errors import ConfigError
from dspex.engine.again.change import ForkChange
from dspex.engine.again.fork import forked
from dspex.engine.again.repeat import Repeated, repeat
from dspex.engine.client.runs.export import RunFile, load
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def approving() -> Topology:
    topology = Topology("orders")
    asked = topology.source("in").predict("text -> price: int", name="ask").approve(name="ok", timeout="10d")
    asked.map(lambda d, ctx: {**d, "at": ctx.now.isoformat(timespec="seconds")}, name="mark").sink("out")
    return topology


@pytest.fixture
def past(lab: MakeLab) -> tuple[Lab, list[str]]:
    """Runs that were accepted after a while and too late for a run that is done again, edited, rejected, and left."""
    one = lab(approving())
    one.answers["ask"] = lambda inputs, work: {"price": 7}
    one.start()
    one.work()
    runs = [one.publish("in", {"text": f"t{n}"}) for n in range(4)]
    one.advance(2)

    async def decide(run: str, *args: Any, **more: Any) -> None:
        waiting = [each async for each in one.client.approvals() if each.event.run == run]
        await one.client.decide(waiting[0], *args, **more)

    one.advance(61)
    one.run(decide(runs[0], "accept"))
    one.run(decide(runs[1], "accept", edit={"price": 8}))
    one.run(decide(runs[2], "reject", note="too dear"))
    one.advance(600)  # longer than a decision is waited for when a run is done again
    one.run(decide(runs[3], "accept"))
    one.advance(5)
    return one, runs


def file_of(one: Lab, run: str) -> RunFile:
    found: RunFile = one.run(one.client.run(run).file(state=True))
    return found


def again(file: RunFile) -> Repeated:
    return asyncio.run(repeat(None, file, [approving().graph]))


def test_a_run_that_waited_for_a_person_is_the_same_again(past: tuple[Lab, list[str]], tmp_path: Path) -> None:
    one, runs = past
    for run in runs[:3]:
        one.run(one.client.run(run).export(tmp_path / run))
        for file in (file_of(one, run), load(tmp_path / run)):
            found = again(file)
            assert (found.diff.same, found.file.info.status) == (True, file.info.status), str(found.diff)


def test_nobody_waits_for_a_decision_that_came_late(past: tuple[Lab, list[str]]) -> None:
    one, runs = past
    found = again(file_of(one, runs[3]))
    assert (found.file.info.status, [s.field for s in found.diff.steps]) == ("done", ["at"])


@pytest.mark.long
def test_a_fork_decides_otherwise(past: tuple[Lab, list[str]]) -> None:
    one, runs = past

    def fork(run: str, **outputs: Any) -> RunFile:
        made = one.run(forked(one.client, run, "ok", ForkChange(outputs=outputs), [approving().graph]))
        found: RunFile = one.run(one.client.run(made.run).file())
        assert again(found).diff.same
        return found

    (letter,) = [h for h in fork(runs[0], decision="reject", note="no").root if h.kind == "letter"]
    assert "no" in str(letter.error)
    assert [o.data["price"] for o in fork(runs[2], edit={"price": 9}).outputs] == [9]
    with pytest.raises(ConfigError, match="ok waits for a decision, and it is no decision"):
        fork(runs[0], decision="perhaps")
    with pytest.raises(ConfigError, match="what was decided is changed"):
        one.run(forked(one.client, runs[0], "ok", ForkChange(inputs={"price": 1}), [approving().graph]))


@pytest.mark.long
def test_who_decided_about_other_data_decides_the_same_in_a_fork(past: tuple[Lab, list[str]]) -> None:
    one, runs = past
    made = one.run(forked(one.client, runs[0], "ask", ForkChange(outputs={"price": 1}), [approving().graph]))
    assert [o.data["price"] for o in one.run(one.client.run(made.run).file()).outputs] == [1]


def test_a_run_that_was_cancelled_while_it_waited_is_so_again_and_a_fork_may_accept_but_not_cancel(lab: MakeLab) -> None:
    one = lab(approving())
    one.answers["ask"] = lambda inputs, work: {"price": 7}
    one.start()
    one.work()
    run = one.publish("in", {"text": "t"})
    one.advance(2)
    one.run(one.client.run(run).cancel())
    file = file_of(one, run)
    found = again(file)
    assert (found.diff.same, found.file.info.status, file.info.status) == (True, "cancelled", "cancelled"), str(found.diff)
    accept, cancel = (ForkChange(outputs={"decision": how}) for how in ("accept", "cancel"))
    made = one.run(forked(one.client, run, "ok", accept, [approving().graph]))
    assert one.run(one.client.run(made.run).info()).status == "done"
    with pytest.raises(ConfigError, match="that ends a whole run"):
        one.run(forked(one.client, run, "ok", cancel, [approving().graph]))
