"""A run of the past is done again: recorded calls are read back, and others are made, where that is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_lab import Lab
from structlog.testing import capture_logs

from dspex.bus.errors import CallError, CallTimeout, Divergence, ProgramError, Saturated, TopologyError
from dspex.bus.records import CallRecord, CallRequest
from dspex.engine.again.repeat import Repeated, repeat
from dspex.engine.client.runs.export import RunFile, load
from dspex.engine.graph.nodes import Retry
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def words(*, loud: bool = False, spoil: str = "", more: str = "") -> Topology:
    topology = Topology("words")
    each = topology.source("in").flat_map(lambda d: [{"word": word} for word in d["text"].split()])
    each = each.map(lambda d, ctx: {**d, "id": str(ctx.uuid()), "at": ctx.event.time.isoformat()}, name="mark")
    if spoil:
        each = each.map(lambda d: {**d, "word": d["word"] + "!" * (d["word"] == spoil)}, name="spoil")
    asked = each.predict(f"word -> label{more}", name="ask", retry=Retry(attempts=3, backoff="5s"))
    if loud:
        asked = asked.map(lambda d: {**d, "label": d["label"] * 2}, name="double")
    asked.sink("out")
    asked.key_by("label", name="by_label").throttle("1/s", name="slowly").sink("slow")
    return topology


@pytest.fixture
def one(lab: MakeLab) -> Lab:
    found = lab(words())
    found.start()
    found.work()
    return found


def recorded(one: Lab, text: str = "a b a", **publish: Any) -> RunFile:
    """A run whose second call failed at first."""
    fails = [CallTimeout("slow")]

    def answer(inputs: Any, work: Any) -> Any:
        if inputs["word"] == "b" and fails:
            raise fails.pop()
        if inputs["word"] == "x":
            raise ProgramError("no")
        return {"label": str(inputs["word"]).upper()}

    one.answers["ask"] = answer
    one.publish("in", {"text": "before"})
    run = one.client.run(one.publish("in", {"text": text}, **publish))
    one.advance(60)
    found: RunFile = one.run(run.file())
    return found


def again(file: RunFile, topology: Topology, **options: Any) -> Repeated:
    return asyncio.run(repeat(None, file, [topology.graph], **options))


def test_a_run_is_the_same_again_with_every_id_and_nothing_is_called(one: Lab) -> None:
    file = recorded(one, key="k", session="s")
    found = again(file, words())
    assert found.diff.same, str(found.diff)
    assert (found.served, found.called, found.tokens, found.cost) == (3, 0, 0, 0.0)
    assert [one.id for one in found.file.root if one.kind == "output"] == [one.id for one in file.root if one.kind == "output"]
    assert found.file.info.id == file.info.id
    assert [s.error for c in found.file.calls for s in c.attempts] == [s.error for c in file.calls for s in c.attempts]


def test_the_engine_that_does_it_again_logs_nothing_and_others_of_the_process_do(one: Lab) -> None:
    file = recorded(one, "a x")
    with capture_logs() as said:
        again(file, words())
    assert said == []
    with capture_logs() as said:
        one.start("b")
    assert {"hands over"} <= {entry["event"] for entry in said}


def test_a_run_that_failed_fails_again_with_its_letter(one: Lab) -> None:
    found = again(recorded(one, "a x"), words())
    assert found.diff.same, str(found.diff)
    assert [h.error["message"] for h in found.file.root if h.kind == "letter" and h.error] == ["no"]


def test_what_is_exported_is_the_same_again(one: Lab, tmp_path: Path) -> None:
    file = recorded(one)
    one.run(one.client.run(file.info.id).export(tmp_path / "run.jsonl"))
    found = again(load(tmp_path / "run.jsonl"), words())
    assert found.diff.same, str(found.diff)


def test_changed_code_behind_the_calls_differs_and_nothing_is_called(one: Lab) -> None:
    found = again(recorded(one), words(loud=True))
    assert not found.diff.same
    assert (found.diff.first.step, found.diff.first.a, found.diff.first.b) == ("out#0", "A", "AA")


def test_a_call_that_was_not_made_then_ends_a_strict_replay(one: Lab) -> None:
    file, other = recorded(one), Topology("other")
    other.source("in").sink("out")
    with pytest.raises(Divergence, match=r"stopped at ask#1: its input is not the recorded one") as e:
        again(file, words(spoil="b"))
    assert "word: b → b!" in e.value.message
    assert "(behind spoil, " in e.value.message
    with pytest.raises(Divergence, match=r"it asks something else than the recorded call") as e:
        again(file, words(more=", why"))
    assert "its models, its parameters" in e.value.message
    with pytest.raises(TopologyError, match="no topology 'words' in the code"):
        again(file, other)


class Workers:
    """Answers calls in the world. `together`: so many are open before the first one is answered."""

    def __init__(self, together: int = 1, **answers: Any) -> None:
        self.asked: list[CallRequest] = []
        self.answers, self.together, self.all = answers, together, asyncio.Event()

    async def __call__(self, pool: str, request: CallRequest) -> CallRecord:
        self.asked.append(request)
        if len(self.asked) >= self.together:
            self.all.set()
        await self.all.wait()
        answer = self.answers.get(request.inputs["word"], {"label": "NEW"})
        if isinstance(answer, CallError):
            return CallRecord("", 1, 1, "", "", error=answer.as_dict(), usage=USED)
        return CallRecord("", 1, 1, "", "", outputs=answer, lm="big", usage=USED)


USED = {"input_tokens": 10, "output_tokens": 5, "cost": 0.5, "requests": 1}


def test_hybrid_makes_the_calls_that_have_no_answer_and_no_other(one: Lab) -> None:
    file, world = recorded(one), Workers()
    found = again(file, words(spoil="b"), mode="hybrid", make=world)
    assert [r.inputs for r in world.asked] == [{"word": "b!"}]
    assert (found.served, found.called, found.tokens, found.cost) == (2, 1, 15, 0.5)
    assert [(s.step, s.field) for s in found.diff.steps if s.step.startswith("ask")][:2] == [
        ("ask#1", "in.word"),
        ("ask#1", "lm"),
    ]
    again_all = again(file, words(more=", why"), mode="hybrid", make=Workers(**{w: {"label": w, "why": "w"} for w in "ab"}))
    assert (again_all.served, again_all.called) == (0, 3)


def test_live_makes_all_calls_side_by_side(one: Lab) -> None:
    file, world = recorded(one, " ".join("abcdefghij")), Workers(together=10)
    found = again(file, words(), mode="live", make=world)
    assert (found.served, found.called) == (0, 10)
    assert {e.data["label"] for e in found.file.root if e.label == "out"} == {"NEW"}


def test_calls_that_fail_are_tried_again_as_in_a_run_and_become_letters(one: Lab) -> None:
    world = Workers(a=CallTimeout("slow"), b=ProgramError("broken"))
    found = again(recorded(one, "a b c"), words(), mode="live", make=world)
    assert [r.inputs["word"] for r in world.asked].count("a") == 3
    assert sorted(h.error["message"] for h in found.file.root if h.kind == "letter" and h.error) == ["broken", "slow"]
    assert found.called == 3
    assert found.usage.requests == 5


def test_without_a_worker_it_ends_with_that(one: Lab) -> None:
    async def nobody(pool: str, request: CallRequest) -> CallRecord:
        raise Saturated(f"pool {pool} has no worker")

    with pytest.raises(Saturated, match="has no worker"):
        again(recorded(one), words(), mode="live", make=nobody)


def test_who_gives_up_waits_for_nothing(one: Lab) -> None:
    file, ended = recorded(one), list[str]()

    async def never(pool: str, request: CallRequest) -> CallRecord:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(request.node)
        raise AssertionError

    async def go() -> None:
        task = asyncio.ensure_future(repeat(None, file, [words().graph], mode="live", make=never))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    begun = asyncio.Event()
    asyncio.run(go())
    assert ended
