"""approve: an event waits for a person, who decides once, for what was shown, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from engine_lab import APP, STREAM, Lab
from pydantic import BaseModel, field_validator

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, RunError
from dspex.bus.port import NewMessage
from dspex.bus.serving import audit
from dspex.engine.client.status.approvals import Approval, find
from dspex.engine.graph.approvals import Decision
from dspex.engine.runtime.inputs import events
from dspex.engine.testing.driver import Driver
from dspex.operators.keyed.windows.windowed import Windowed
from dspex.operators.recorded import approve
from dspex.operators.stream import AnyStream
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


class Order(BaseModel):
    n: int
    note: str = ""


def approving(*, keyed: bool = False, type: Any = None, **options: Any) -> Topology:
    topology = Topology("t")
    s: AnyStream = topology.source("in", type) if type else topology.source("in")
    s = s.key_by("str(n)", name="by_n") if keyed else s
    s.approve(name="ok", **options).sink("out")
    return topology


def waiting(one: Lab) -> list[Approval]:
    async def found() -> list[Approval]:
        return [a async for a in one.client.approvals()]

    result: list[Approval] = one.run(found())
    return result


def decide(one: Lab, approval: str | Approval, decision: Any, **more: Any) -> None:
    one.run(one.client.decide(approval, decision, **more))
    one.advance(1)


def told(one: Lab, a: Approval, **changes: Any) -> None:
    """A decision as any NATS client can write it."""
    body = {"approval": a.id, "digest": a.digest, "decision": "accept"} | changes
    to = subjects.decision(APP, "t", a.stage, a.partition)
    one.store(NewMessage(to, json.dumps(body).encode(), {subjects.DECIDE: changes.pop("node", "ok")}))
    one.advance(1)


@pytest.mark.parametrize("keyed", [False, True])
def test_accepted_events_go_on_rejected_ones_are_letters_and_nothing_is_left(lab: MakeLab, keyed: bool) -> None:
    one = lab(approving(keyed=keyed))
    one.start()
    for n in range(4):
        one.publish("in", {"n": n}, session="s")
    one.advance(1)
    assert one.outputs("out") == []
    a, b, c, d = sorted(waiting(one), key=lambda a: a.shown["n"])
    decide(one, b.id[-12:], "accept")
    decide(one, c, "reject", note="too much")
    one.kill()
    decide(one, a, "accept", edit={"n": 10, "by": "me"})
    one.start("b")
    one.advance(10)
    assert one.outputs("out") == [{"n": 1}, {"n": 10, "by": "me"}]
    (letter,) = one.letters()
    assert (letter.node, letter.reason, letter.event.id, letter.event.data) == ("ok", "Reject", c.id, {"n": 2})
    assert letter.message == f"rejected by {audit.whoami()}: too much"
    assert [w.id for w in waiting(one)] == [d.id]
    decide(one, d, "accept")
    assert one.left() == []
    assert one.differences() == []
    headers = one.messages("out")[0].headers
    assert (headers[subjects.RUN], headers[subjects.SESSION]) == (b.event.run, "s")
    assert headers.get(subjects.KEY) == ("1" if keyed else None)


@pytest.mark.parametrize(("on_timeout", "out"), [("dead_letter", []), ("pass", [{"n": 1}]), ("drop", [])])
def test_what_nobody_decides_about_in_time_becomes_what_was_said(on_timeout: Any, out: list[Any]) -> None:
    with Driver(approving(timeout="2m", on_timeout=on_timeout)) as d:
        d.publish("in", {"n": 1})
        d.advance("119s")
        d.crash()
        (a,) = d.approvals()
        assert a.due is not None
        assert a.due - a.since == timedelta(minutes=2)
        assert d.outputs("out") == d.dead_letters() == []
        d.advance("2s")
        assert d.outputs("out") == out
        assert [letter.code for letter in d.dead_letters()] == ["DX516"] * (on_timeout == "dead_letter")
        assert d.approvals() == []
        with pytest.raises(RunError, match="nothing waits"):
            d.decide(a, "accept")


@pytest.mark.parametrize("data", [{"n": 1}, "a text", None, ["a"]])
def test_a_rejected_event_that_is_redriven_waits_for_another_decision(data: Any) -> None:
    with Driver(approving()) as d:
        d.publish("in", data)
        (a,) = d.approvals()
        d.decide(a, "reject")
        assert [letter.message.startswith("rejected by ") for letter in d.dead_letters()] == [True]
        d.redrive()
        (again,) = d.approvals()
        assert (again.id != a.id, again.shown) == (True, data)
        d.decide(again, "accept")
        assert d.outputs("out") == [data]


def test_a_decision_is_final_and_who_decides_again_is_told_what_it_was() -> None:
    with Driver(approving()) as d:
        d.publish("in", {"n": 1})
        (a,) = d.approvals()
        d.decide(a.id, "accept", edit={"n": 2}, note="fine")
        d.decide(a.id, "accept", edit={"n": 2})
        for other in ({"decision": "accept"}, {"decision": "reject"}):
            with pytest.raises(RunError, match=r"was accepted, with n edited, by .*: fine") as e:
                d.decide(a.id, **other)  # type: ignore[arg-type]
            assert e.value.code == "DX626"
        assert d.outputs("out") == [{"n": 2}]


def test_of_two_who_decide_at_once_one_is_told_that_the_other_has(lab: MakeLab) -> None:
    one = lab(approving())
    one.start()
    one.publish("in", {"n": 1})
    (a,) = waiting(one)

    async def both() -> list[Any]:
        return await asyncio.gather(one.client.decide(a, "accept"), one.client.decide(a, "reject"), return_exceptions=True)

    results = one.run(both())
    one.advance(1)
    assert sorted(type(r).__name__ for r in results) == ["NoneType", "RunError"]
    assert len(one.outputs("out")) + len(one.letters()) == 1
    assert (results[0] is None) == (len(one.outputs("out")) == 1)


def test_of_two_decisions_that_were_stored_before_one_was_taken_the_first_holds(lab: MakeLab) -> None:
    one = lab(approving())
    one.start()
    one.publish("in", {"n": 1})
    (a,) = waiting(one)
    one.kill()
    told(one, a)
    told(one, a, decision="reject")
    one.start("b")
    one.advance(10)
    assert (one.outputs("out"), one.letters()) == ([{"n": 1}], [])
    assert one.differences() == []


def test_what_waits_is_decided_about_under_the_new_name_of_its_operator_and_under_the_old_one(lab: MakeLab) -> None:
    one = lab(approving())
    one.start()
    for n in (1, 2):
        one.publish("in", {"n": n})
    a, b = sorted(waiting(one), key=lambda a: a.shown["n"])
    one.kill()
    renamed = Topology("t", renamed_from={"fine": "ok"})
    renamed.source("in").approve(name="fine").sink("out")
    one.start("b", renamed)
    one.advance(10)
    assert {w.node for w in waiting(one)} == {"fine"}
    decide(one, a.id, "accept")
    told(one, b)  # by who has seen it under its old name
    assert one.outputs("out") == [{"n": 1}, {"n": 2}]
    assert (waiting(one), one.left()) == ([], [])


def test_an_edit_that_does_not_fit_the_type_leaves_the_event_as_it_was_shown_and_to_be_decided_about_anew() -> None:
    with Driver(approving(type=Order)) as d:
        d.publish("in", {"n": 1})
        d.publish("in", {"n": 2})
        a, b = sorted(d.approvals(), key=lambda a: a.shown["n"])
        d.decide(a, "accept", edit={"n": "many"})
        d.decide(b, "accept", edit={"note": "ok"})
        assert d.outputs("out") == [{"n": 2, "note": "ok"}]
        (letter,) = d.dead_letters()
        assert (letter.node, letter.code, letter.event.data) == ("ok", "DX502", a.shown)
        assert letter.message.startswith(f'edited by {audit.whoami()}, {{"n":"many"}}: the data does not fit Order: n: ')
        assert d.redrive() == 1
        (again,) = d.approvals()
        assert (again.id != a.id, again.shown) == (True, a.shown)
        d.decide(again, "accept", edit={"n": 10})
        assert d.outputs("out")[1:] == [{"n": 10, "note": ""}]


def _number_of(state: int, data: Any) -> int:
    return state + 1


class Odd:
    """What nothing can check data against."""


def _odd(state: int, data: Any) -> Odd:
    found: Any = state + 1
    return found


@pytest.mark.parametrize(
    ("give", "wrong", "right"),
    [
        (lambda w: w.count(name="w"), "many", 7),
        (lambda w: w.collect(name="w"), [{"n": "many"}], [Order(n=7)]),
        (lambda w: w.reduce(lambda a, b: b, name="w"), {"note": "no number"}, Order(n=7)),
        (lambda w: w.aggregate(int, _number_of, name="w"), "many", 7),
    ],
)
def test_behind_a_window_an_edit_of_the_value_has_to_fit_the_type_of_what_it_gives(give: Any, wrong: Any, right: Any) -> None:
    topology, taken = Topology("t"), list[Any]()
    windows = topology.source("in", Order).key_by("str(n)", name="by").window("1m")
    give(windows).approve(name="ok").map(lambda w: taken.append(w) or {}, name="take").sink("out")
    with Driver(topology) as d:
        for n in (1, 2):
            d.publish("in", {"n": n})
        d.advance("2m")
        a, b = d.approvals()
        d.decide(a, "accept", edit={"value": wrong})
        d.decide(b, "accept", edit={"value": json.loads(json.dumps(right, default=dict))})
        (letter,) = d.dead_letters()
        assert (letter.reason, "the data does not fit Windowed[" in letter.message) == ("InvalidInput", True)
        assert [(type(w), w.value) for w in taken] == [(Windowed, right)]


def test_a_value_of_a_window_that_nothing_can_check_takes_every_edit() -> None:
    topology = Topology("t")
    topology.source("in").key_by("k").window("1m").aggregate(int, _odd, name="w").approve(name="ok").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"k": "a"})
        d.advance("2m")
        (a,) = d.approvals()
        d.decide(a, "accept", edit={"value": "many"})
        assert d.outputs("out")[0]["value"] == "many"


def test_what_a_type_refuses_once_its_own_bug_is_corrected_waits_for_another_decision(lab: MakeLab) -> None:
    broken = [True]

    class Small(Order):
        @field_validator("n")
        @classmethod
        def small(cls, n: int) -> int:
            if n > 9:
                raise ZeroDivisionError if broken else ValueError("too large")
            return n

    one = lab(approving(type=Small))
    one.start()
    one.publish("in", {"n": 1})
    (a,) = waiting(one)
    decide(one, a, "accept", edit={"n": 10})
    assert [letter.code for letter in one.letters()] == ["DX507"]
    broken.clear()
    assert one.run(one.client.redrive(one.letters())) == 1
    one.advance(1)
    (again,) = waiting(one)
    assert again.shown == {"n": 1, "note": ""}
    decide(one, again, "accept")
    assert one.outputs("out") == [{"n": 1, "note": ""}]
    assert one.left() == []


def test_only_the_fields_that_are_to_be_shown_are() -> None:
    with Driver(approving(show=["n"])) as d:
        d.publish("in", {"n": 1, "secret": 2})
        (a,) = d.approvals()
        assert (a.shown, a.event.data) == ({"n": 1}, {"n": 1, "secret": 2})
        assert [w["shown"] for w in d.state("ok", "")] == [{"n": 1}]
        d.decide(a, "accept")
    problems = [p.message for p in approving(type=Order, show=["m"]).check()]
    assert problems == ["approve wants field 'm'; the stream has n: int, note: str"]


def test_a_decision_for_something_else_is_a_letter_and_the_event_waits_on(lab: MakeLab) -> None:
    one = lab(approving())
    one.start()
    one.publish("in", {"n": 1})
    (a,) = waiting(one)
    told(one, a, digest="0" * 24)
    told(one, a, decision="maybe")
    told(one, a, edits={"n": 2})
    told(one, a, decision="reject", edit={"n": 2})
    told(one, a, note="x" * 9000)
    told(one, a, node="nobody")
    told(one, a, approval="none")  # nothing waits so: perhaps it did
    reasons = [letter.reason for letter in one.letters()]
    assert reasons == [*["InvalidInput"] * 5, "TopologyError"]
    assert [w.digest for w in waiting(one)] == [a.digest]
    told(one, a)
    told(one, a, decision="reject")  # too late
    assert one.outputs("out") == [{"n": 1}]
    assert len(one.letters()) == 6
    assert one.differences() == []


def test_a_decision_counts_on_the_subject_of_decisions_alone(lab: MakeLab) -> None:
    one = lab(approving())
    one.start()
    one.publish("in", {"n": 1})
    (a,) = waiting(one)
    decided = Decision(a.id, a.digest, "accept").pack()
    one.store(NewMessage(subjects.edge(APP, "t", a.stage, a.partition), decided, {subjects.DECIDE: "ok"}))
    one.advance(1)
    assert ([w.id for w in waiting(one)], one.outputs("out"), one.letters()) == ([a.id], [], [])
    told(one, a)
    assert one.outputs("out") == [{"n": 1}]


def test_what_was_shown_must_be_what_waits(lab: MakeLab) -> None:
    one = lab(approving())
    one.start()
    one.publish("in", {"n": 1})
    (a,) = waiting(one)
    other = Approval(**{**vars(a), "digest": "0"})
    with pytest.raises(RunError, match="not what was shown"):
        one.run(one.client.decide(other, "accept"))
    with pytest.raises(RunError, match="nothing waits"):
        one.run(one.client.decide("00000000", "accept"))
    for wrong in ({"decision": "maybe"}, {"decision": "reject", "edit": {"n": 1}}):
        with pytest.raises(ConfigError):
            one.run(one.client.decide(a, **wrong))
    assert one.run(find(one.client.bus, APP, a.id[-6:])) == a
    decisions = one.messages(subjects.audit(APP, "decide"), STREAM)
    assert decisions == []
    decide(one, a, "accept")
    (entry,) = map(audit.read, one.messages(subjects.audit(APP, "decide"), STREAM))
    assert entry.what == {"approval": a.id, "topology": "t", "node": "ok", "decision": "accept"}


def test_what_waits_holds_the_windows_behind_it_for_an_hour(lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approve, "HOLD", 150.0)
    topology = Topology("t")
    topology.source("in").key_by("k").approve(name="ok").window("1m").count(name="count").sink("out")
    one = lab(topology)
    one.start()
    one.publish("in", {"k": "a"})
    one.publish("in", {"k": "a"})
    one.advance(100)
    a, b = waiting(one)
    decide(one, a, "accept")
    one.advance(20)
    assert one.outputs("out") == []  # the other one may come into the same window yet
    one.advance(60)
    assert [o["value"] for o in one.outputs("out")] == [1]
    decide(one, b, "accept")
    assert [letter.reason for letter in one.letters()] == ["LateEvent"]


def test_a_decision_that_was_stored_long_before_an_engine_runs_is_taken(lab: MakeLab) -> None:
    topology = approving()
    topology.source("other").sink("others")
    one = lab(topology)
    one.start()
    one.publish("in", {"n": 1})
    one.advance(1)
    (a,) = waiting(one)
    one.kill()
    decide(one, a, "accept")
    one.run(one.client.bus.publish_all([NewMessage("others", b"{}") for _ in range(events.FAR + 10)]))
    one.start("b")
    one.advance(10)
    assert one.outputs("out") == [{"n": 1}]
    assert one.differences() == []
