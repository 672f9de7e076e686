"""Runs are scored later, and who answered gets the credit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from engine_lab import APP, Lab
from sealed_app import CARD, Sealed

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, NotAllowed, RunNotFound, Unsettled
from dspex.bus.memory.handles import MemoryBucket
from dspex.engine.client.runs.judged.scores import Score, credited, latest
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def triage() -> Topology:
    topology = Topology("triage")
    asked = topology.source("in").predict("text -> intent", name="classify")
    asked.filter("intent == 'card'").predict("text -> reply", name="draft", state="writer@2").sink("out")
    return topology


@pytest.fixture
def one(lab: MakeLab) -> Lab:
    found = lab(triage())
    found.answers["classify"] = lambda inputs, work: {"intent": str(inputs["text"]).split()[0]}
    found.answers["draft"] = lambda inputs, work: {"reply": "sorry"}
    found.start()
    found.work()
    return found


def scores(one: Lab, run: str | None = None, **options: Any) -> list[Score]:
    async def found() -> list[Score]:
        return [score async for score in one.client.scores(run, **options)]

    listed: list[Score] = one.run(found())
    return listed


def said(of: list[Score]) -> list[tuple[str, float, str | None]]:
    return [(score.name, score.value, score.node) for score in of]


def test_all_that_is_said_of_a_run_is_kept_and_the_latest_counts(one: Lab) -> None:
    run = one.publish("in", {"text": "card stolen"})
    one.advance(5)
    assert scores(one, run) == scores(one) == []
    for value in (0.2, 0.9):
        one.run(one.client.score(run[-8:], "helpful", value, note="read again"))
    one.run(one.client.score(run, "helpful", 1, node="draft"))
    found = scores(one, run)
    assert said(found) == [("helpful", 0.2, None), ("helpful", 0.9, None), ("helpful", 1.0, "draft")]
    assert {(s.topology, s.note, "@" in s.who) for s in found[:2]} == {("triage", "read again", True)}
    assert said([*latest(found).values()]) == [("helpful", 0.9, None), ("helpful", 1.0, "draft")]
    assert said(scores(one, topology="triage")) == said(found)
    assert scores(one, topology="other") == scores(one, since="0s") == []


def test_a_score_is_credited_to_the_version_that_answered(one: Lab) -> None:
    runs = [one.publish("in", {"text": text}) for text in ("card stolen", "rate today", "card lost")]
    one.advance(5)
    for run, value in zip(runs, (1.0, 0.5, 0.0)):
        one.run(one.client.score(run, "good", 0.7))
        one.run(one.client.score(run, "good", value))
    one.run(one.client.score(runs[0], "good", 0.1, node="draft"))
    one.run(one.client.score(runs[0], "fast", 3, node="classify#0"))
    found = [(c.name, c.answered.node, c.scores, c.mean, c.lowest) for c in credited(scores(one))]
    assert found == [
        ("fast", "classify", 1, 3.0, 3.0),
        ("good", "classify", 3, 0.5, 0.0),
        ("good", "draft", 3, pytest.approx((1.0 + 0.0 + 0.1) / 3), 0.0),
    ]


def test_what_is_no_score_is_refused_and_nothing_is_kept(one: Lab) -> None:
    run = one.publish("in", {"text": "rate today"})
    one.advance(5)
    for name, value in (("a score", 1.0), ("good", float("nan")), ("good", True), ("good", "1")):
        with pytest.raises(ConfigError):
            one.run(one.client.score(run, name, value))
    with pytest.raises(ConfigError, match="a note of"):
        one.run(one.client.score(run, "good", 1.0, note="x" * 5000))
    with pytest.raises(RunNotFound, match="no answer of 'draft'"):
        one.run(one.client.score(run, "good", 1.0, node="draft"))
    with pytest.raises(RunNotFound):
        one.run(one.client.score("00000000-0000-7000-8000-000000000000", "good", 1.0))
    assert scores(one) == []


def test_a_score_of_which_nobody_knows_whether_it_was_stored_is_there_once(one: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run = one.publish("in", {"text": "rate today"})
    one.advance(5)
    put, lost = MemoryBucket.put, [True]

    async def unsettled(self: MemoryBucket, key: str, value: bytes, *, revision: int | None = None) -> int:
        stored = await put(self, key, value, revision=revision)
        if key.startswith("score.") and lost and lost.pop():
            raise Unsettled("no answer came")
        return stored

    monkeypatch.setattr(MemoryBucket, "put", unsettled)
    one.run(one.client.score(run, "good", 1.0))
    assert (said(scores(one, run)), lost) == ([("good", 1.0, None)], [])


def test_what_is_no_score_among_those_that_are_kept_is_passed_over(one: Lab) -> None:
    run = one.publish("in", {"text": "rate today"})
    one.advance(5)
    one.run(one.client.score(run, "good", 1.0))
    kept = one.server.buckets[subjects.kept(APP)]
    kept[f"score.{run}.x"] = b"anything", 98
    kept["score.x"] = b"\x80", 99
    assert said(scores(one, run)) == said(scores(one)) == [("good", 1.0, None)]


@pytest.mark.asyncio
async def test_a_note_is_sealed_and_forgotten_with_the_session_of_its_run(nats_url: str, unique: str) -> None:
    async with AsyncExitStack() as stack:
        app = Sealed(nats_url, unique, stack)
        await app.engine()
        await app.worker()
        client = await app.client()
        run = await client.publish(f"{unique}.in", {"text": "hello"}, session="s1")
        await run.wait("30s")
        await client.score(run, "helpful", 1.0, note=CARD)
        plain = await app.bus(None)
        stream = f"KV_{subjects.kept(unique)}"
        stored = await plain.scan(stream, [">"], start=1, stop=1000)
        assert stored
        assert not any(CARD.encode() in m.data for m in stored)
        assert [score.note async for score in client.scores(run)] == [CARD]
        assert [score.note async for score in (await app.client(None)).scores()] == [None]
        with pytest.raises(NotAllowed):
            await (await app.client(None)).score(run, "helpful", 1.0, note="in clear text")
        await client.forget(session="s1")
        again = await app.client()
        assert [(score.value, score.note) async for score in again.scores()] == [(1.0, None)]
