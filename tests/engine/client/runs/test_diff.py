"""Two runs are compared step by step, whatever order things happened in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus.errors import ProgramError
from dspex.engine.client.runs.diff import NOTHING, Diff
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def words() -> Topology:
    topology = Topology("words")
    each = topology.source("in").flat_map(lambda d: [{"word": word} for word in d["text"].split()])
    each.predict("word -> label, why", name="ask").sink("out")
    return topology


@pytest.fixture
def one(lab: MakeLab) -> Lab:
    found = lab(words())
    found.answers["ask"] = lambda inputs, work: {"label": str(inputs["word"]).upper(), "why": WHY}
    found.start()
    found.work()
    return found


WHY = "because the word was said in front of everybody who was there on that day and could hear it"


def diff(one: Lab, a: str, b: str, **options: Any) -> Diff:
    one.advance(10)
    found: Diff = one.run(one.client.diff(a, b, **options))
    return found


def test_runs_of_equal_events_are_the_same(one: Lab) -> None:
    found = diff(one, one.publish("in", {"text": "a b"}), one.publish("in", {"text": "a b"}))
    assert (found.same, found.first, found.steps) == (True, None, [])
    assert found.equal == ["in#0", "ask#0", "out#0", "ask#1", "out#1"]
    assert "=  in#0, ask#0, out#0, ask#1, out#1" in str(found)


def test_what_differs_is_named_by_step_and_field_with_the_first_first(one: Lab) -> None:
    found = diff(one, one.publish("in", {"text": "a b"}), one.publish("in", {"text": "a c d"}))
    assert not found.same
    assert found.first is found.steps[0]
    assert [(s.step, s.field, s.a, s.b) for s in found.steps if s.step in ("in#0", "ask#1")] == [
        ("in#0", "text", "a b", "a c d"),
        ("ask#1", "in.word", "b", "c"),
        ("ask#1", "label", "B", "C"),
    ]
    assert [(s.step, s.field, s.a) for s in found.steps if s.field is None] == [
        ("ask#2", None, NOTHING),
        ("out#2", None, NOTHING),
    ]
    assert found.equal == ["ask#0", "out#0"]
    only = diff(one, "@last-1", "@last", fields=["label"])
    assert {s.field for s in only.steps} == {"label", None}


def test_of_long_texts_the_words_that_differ_are_shown(one: Lab) -> None:
    a = one.publish("in", {"text": "a"})
    one.advance(5)
    one.answers["ask"] = lambda inputs, work: {"label": "A", "why": WHY.replace("everybody", "nobody")}
    found = diff(one, a, one.publish("in", {"text": "a"}))
    assert "because the word … said in front of" not in WHY
    (line,) = [line for line in str(found).splitlines() if line.strip().startswith("why") and "first" in line]
    assert line.split("why", 1)[1].split("←")[0].strip() == (
        "because the word … in front of [-everybody-] {+nobody+} who was there … could hear it"
    )
    assert "| `ask#0` | why |" in found.markdown()


def test_an_error_differs_from_an_answer(one: Lab) -> None:
    a = one.publish("in", {"text": "a"})
    one.advance(5)

    def fails(inputs: Any, work: Any) -> Any:
        raise ProgramError("broken")

    one.answers["ask"] = fails
    found = diff(one, a, one.publish("in", {"text": "a"}))
    assert [(s.step, s.field, s.b) for s in found.steps][:1] == [("ask#0", "error", "broken")]
    assert ("out#0", NOTHING) in [(s.step, s.b) for s in found.steps]
    assert [s.step for s in found.steps if s.a is NOTHING] == ["letter at ask#0"]
