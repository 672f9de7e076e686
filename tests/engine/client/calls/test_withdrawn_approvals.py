"""A run that is cancelled while it waits for a person: its approvals are withdrawn, and nobody decides about them any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.errors import RunError
from dspex.bus.serving import audit
from dspex.engine.client.calls.cancelling import CancelledRun
from dspex.engine.client.status.approvals import Approval
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def asking(**options: Any) -> Topology:
    topology = Topology("t")
    topology.source("in").approve(name="ok", **options).sink("out")
    return topology


def open_approvals(one: Lab) -> list[Approval]:
    async def found() -> list[Approval]:
        return [a async for a in one.client.approvals()]

    result: list[Approval] = one.run(found())
    return result


def cancelled(one: Lab, run: str) -> tuple[CancelledRun, str]:
    """What came of it, and the status of the run then."""
    done = one.run(one.client.run(run).cancelled())
    return done, one.run(one.client.run(run).info()).status


def two_waiting(one: Lab) -> list[Approval]:
    one.start()
    for n in (1, 2):
        one.publish("in", {"n": n})
    one.advance(1)
    return sorted(open_approvals(one), key=lambda a: a.shown["n"])


def test_a_cancelled_run_waits_for_nobody_and_other_runs_go_on_waiting(lab: MakeLab) -> None:
    one = lab(asking(timeout="2m", on_timeout="pass"))
    a, b = two_waiting(one)
    assert cancelled(one, a.event.run) == (CancelledRun(0, 1, True), "cancelled")
    assert [w.id for w in open_approvals(one)] == [b.id]
    (letter,) = one.letters()
    assert (letter.node, letter.reason, letter.event.id, letter.event.data) == ("ok", "Cancelled", a.id, {"n": 1})
    assert letter.message == f"its run was cancelled by {audit.whoami()} while it waited for a decision"
    assert one.run(one.client.run(b.event.run).info()).status == "running"
    (entry,) = map(audit.read, one.messages(subjects.audit(APP, "cancel"), STREAM))
    assert entry.what == {"run": a.event.run, "calls": 0, "approvals": 1}
    (told,) = map(audit.read, one.messages(subjects.audit(APP, "decide"), STREAM))
    assert told.what == {"approval": a.id, "topology": "t", "node": "ok", "decision": "cancel"}
    one.advance(130)
    assert one.outputs("out") == [{"n": 2}]  # only of the other one the time went on
    assert one.differences() == []


@pytest.mark.parametrize("decision", ["accept", "reject"])
def test_who_decides_about_a_withdrawn_approval_is_told_that_its_run_was_cancelled(lab: MakeLab, decision: Any) -> None:
    one = lab(asking())
    a, _ = two_waiting(one)
    cancelled(one, a.event.run)
    with pytest.raises(RunError, match=f"{a.id} was cancelled with its run by ") as e:
        one.run(one.client.decide(a, decision))
    assert e.value.code == "DX626"
    one.advance(1)
    assert (one.outputs("out"), len(one.letters())) == ([], 1)


def test_an_approval_that_was_decided_before_its_run_is_cancelled_is_left_as_it_is(lab: MakeLab) -> None:
    one = lab(asking())
    a, _ = two_waiting(one)
    one.kill()
    one.run(one.client.decide(a, "accept"))  # and no engine has taken it yet
    assert cancelled(one, a.event.run) == (CancelledRun(0, 0, False), "running")
    one.start("b")
    one.advance(10)
    assert (one.outputs("out"), one.letters()) == ([{"n": 1}], [])
    assert one.run(one.client.run(a.event.run).info()).status == "done"


def test_what_is_withdrawn_while_no_engine_runs_ends_when_one_does_and_can_be_cancelled_again_until_then(lab: MakeLab) -> None:
    one = lab(asking())
    a, _ = two_waiting(one)
    one.kill()
    assert cancelled(one, a.event.run) == (CancelledRun(0, 1, False), "running")
    assert cancelled(one, a.event.run)[0].over is False
    one.start("b")
    one.advance(10)
    assert one.run(one.client.run(a.event.run).info()).status == "cancelled"
    assert [letter.reason for letter in one.letters()] == ["Cancelled"]
    assert one.differences() == []


def test_a_withdrawn_event_that_is_redriven_waits_for_another_decision(lab: MakeLab) -> None:
    one = lab(asking())
    a, _ = two_waiting(one)
    cancelled(one, a.event.run)
    assert one.run(one.client.redrive(one.letters())) == 1
    one.advance(1)
    (again,) = [w for w in open_approvals(one) if w.event.run == a.event.run]
    assert (again.id != a.id, again.shown) == (True, {"n": 1})
    one.run(one.client.decide(again, "accept"))
    one.advance(1)
    assert one.outputs("out") == [{"n": 1}]


def test_nobody_decides_by_the_word_that_cancels_a_run() -> None:
    with Driver(asking()) as d:
        d.publish("in", {"n": 1})
        (a,) = d.approvals()
        with pytest.raises(Exception, match="'cancel' is no decision"):
            d.decide(a, "cancel")  # type: ignore[arg-type]
        assert [w.id for w in d.approvals()] == [a.id]
