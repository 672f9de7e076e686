"""What a run did is found in the logs, and told as a tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from engine_lab import APP, STREAM, Lab

import dspex
from dspex.bus.errors import CallTimeout, ProgramError, RunNotFound
from dspex.bus.memory.connection import MemoryBus
from dspex.bus.message import Message
from dspex.bus.port import BusEvents
from dspex.engine.cli.runs.drawing import said as drawing
from dspex.engine.client.client import Client
from dspex.engine.client.runs.steps import Step
from dspex.engine.client.runs.tree import Happening
from dspex.engine.graph.nodes import Retry
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def triage() -> Topology:
    topology = Topology("triage")
    read = topology.source("in").filter("has(text)")
    retry = Retry(attempts=2, backoff="1s", jitter=0.0)
    asked = read.predict("text -> intent", name="classify", retry=retry)
    asked.sink("out")
    asked.key_by("intent", name="by_intent").stateful(total, init=int, name="total").sink("totals")
    return topology


def total(state: int, data: dict[str, Any], ctx: object) -> tuple[int, list[dict[str, Any]]]:
    return state + 1, [{"intent": data["intent"], "n": state + 1}]


def made(lab: MakeLab) -> Lab:
    one = lab(triage())
    one.answers["classify"] = lambda inputs, work: {"intent": str(inputs["text"]).split()[0]}
    one.start()
    one.work()
    return one


def publish(one: Lab, subject: str, data: Any) -> dspex.Run:
    return one.client.run(one.publish(subject, data))


def steps_of(one: Lab, run: dspex.Run, **options: Any) -> list[Step]:
    async def found() -> list[Step]:
        return [step async for step in run.steps(**options)]

    steps: list[Step] = one.run(found())
    return steps


def tree(one: Lab, run: dspex.Run) -> Happening:
    found: Happening = one.run(run.tree())
    return found


def said(told: Happening) -> list[Any]:
    """The kinds and labels of a tree."""
    return [told.kind, told.label, *([said(one) for one in told.below])]


def test_each_thing_stands_below_what_caused_it(lab: MakeLab) -> None:
    one = made(lab)
    other = publish(one, "in", {"text": "card lost"})
    run = publish(one, "in", {"text": "card arrived"})
    one.advance(5)
    found = tree(one, run)
    assert said(found) == [
        "source",
        "in",
        ["call", "classify#0", ["output", "out"], ["hop", "by_intent/card", ["output", "totals"]]],
    ]
    call, (out, hop) = found.below[0], found.below[0].below
    assert (found.data, call.data) == ({"text": "card arrived"}, {"text": "card arrived"})
    assert call.attempts[0].outputs == {"intent": "card"}
    assert out.data == {"text": "card arrived", "intent": "card"}
    assert hop.below[0].data == {"intent": "card", "n": 2}
    assert one.run(run.history())[0].done
    assert tree(one, other).below[0].below[1].below[0].data == {"intent": "card", "n": 1}


def test_every_attempt_at_a_call_is_told_and_one_that_runs_has_no_end(lab: MakeLab) -> None:
    one = made(lab)
    errors = [CallTimeout("slow"), None]

    def answer(inputs: Any, work: Any) -> Any:
        if (error := errors.pop(0)) is not None:
            raise error
        return {"intent": "card"}

    one.answers["classify"] = answer
    run = publish(one, "in", {"text": "a"})
    one.advance(10)
    steps = steps_of(one, run)
    assert [(step.id, step.attempt, step.error, step.outputs) for step in steps] == [
        ("classify#0", 1, "slow", None),
        ("classify#0", 2, None, {"intent": "card"}),
    ]
    one.stop_workers()
    waits = publish(one, "in", {"text": "b"})
    one.advance(1)
    assert [(step.error, step.outputs, step.route) for step in steps_of(one, waits)] == [(None, None, None)]
    assert one.run(waits.info()).status == "running"


def test_a_call_that_has_failed_waits_for_another_attempt_as_long_as_one_is_left(lab: MakeLab) -> None:
    one = made(lab)

    def answer(inputs: Any, work: Any) -> Any:
        why = "slow"
        raise CallTimeout(why)

    one.answers["classify"] = answer
    run = publish(one, "in", {"text": "a"})
    one.advance(0.5)
    (call,) = tree(one, run).below
    assert (call.attempts[-1].error, call.waits, call.as_dict()["waits"]) == ("slow", True, True)
    assert "  waiting for another attempt" in drawing(call, call.time)
    one.advance(10)
    (call,) = tree(one, run).below
    assert (call.waits, "  failed  2 attempts" in drawing(call, call.time)) == (False, True)
    assert "waits" not in call.as_dict()


def test_steps_are_followed_until_the_run_has_ended(lab: MakeLab) -> None:
    one = made(lab)
    errors = [CallTimeout("slow"), None]

    def answer(inputs: Any, work: Any) -> Any:
        if (error := errors.pop(0)) is not None:
            raise error
        return {"intent": "card"}

    one.answers["classify"] = answer
    run = publish(one, "in", {"text": "a"})
    assert [(step.attempt, step.error) for step in steps_of(one, run, follow=True)] == [(1, "slow"), (2, None)]
    assert one.run(run.info()).status == "done"


def test_a_dead_letter_stands_where_its_event_failed_and_what_is_redriven_follows(lab: MakeLab) -> None:
    one = made(lab)

    def fails(inputs: Any, work: Any) -> Any:
        raise ProgramError("broken")

    one.answers["classify"] = fails
    run = publish(one, "in", {"text": "card lost"})
    one.advance(10)
    found = tree(one, run)
    letter = found.below[0].below[0] if found.below[0].below else found.below[1]
    assert (letter.kind, letter.node, (letter.error or {})["message"]) == ("letter", "classify", "broken")
    one.answers["classify"] = lambda inputs, work: {"intent": "card"}

    async def again() -> int:
        return await one.client.redrive([d async for d in one.client.dead_letters("triage")])

    assert one.run(again()) == 1
    one.advance(10)
    assert [one.kind for one in tree(one, run) if one.kind == "output"] == ["output", "output"]
    assert one.run(run.info()).status == "done"


def test_runs_are_listed_the_latest_first_and_named_by_how_long_ago(lab: MakeLab) -> None:
    one = made(lab)
    runs = []
    for n in range(5):
        runs.append(publish(one, "in", {"text": f"card {n}"} if n != 3 else {"text": 5}))
        one.advance(2)

    async def listed(**options: Any) -> list[Any]:
        return [info async for info in one.client.runs(**options)]

    infos = one.run(listed())
    assert [info.id for info in infos] == [one.run(run.info()).id for run in reversed(runs)]
    assert {info.status for info in infos} == {"done"}
    assert [info.id for info in one.run(listed(limit=2))] == [info.id for info in infos[:2]]
    assert one.run(listed(status="failed")) == []
    assert one.run(one.client.run("@last").info()).id == infos[0].id
    assert one.run(one.client.run("@last-4").info()).id == infos[4].id
    with pytest.raises(RunNotFound, match="not so many runs"):
        one.run(one.client.run("@last-5").info())
    with pytest.raises(RunNotFound):
        one.run(one.client.run("@latest").info())


class Counting(MemoryBus):
    """A connection that counts the messages that are read through."""

    read = 0

    async def page(self, stream: str, filters: Sequence[str], **options: Any) -> list[Message]:
        found = await super().page(stream, filters, **options)
        self.read += len(found)
        return found


def test_of_all_that_was_stored_only_the_logs_are_read_while_the_run_lasted(lab: MakeLab) -> None:
    one = made(lab)
    run = publish(one, "in", {"text": "card lost"})
    one.advance(1)
    for n in range(400):
        publish(one, "in", {"text": f"card {n}"})
    one.advance(20)
    bus = Counting(one.server, BusEvents())
    found = tree(one, Client(bus=bus, app=APP).run(run.id))
    assert found.data == {"text": "card lost"}
    assert len([*found]) == 5
    assert bus.read < one.run(bus.stream(STREAM)).last / 4
