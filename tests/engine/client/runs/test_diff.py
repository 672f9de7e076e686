"""Two runs are compared step by step, whatever order things happened in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus.errors import ProgramError, RateLimited
from dspex.engine.client.runs.diff import NOTHING, Diff, compare
from dspex.engine.client.runs.judged.beside import change
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


@pytest.mark.parametrize(
    ("then", "now", "steps", "equal"),
    [
        ("a b c", "x a b c", {("ask#0", NOTHING, "X"), ("out#0", NOTHING, "X")}, {"ask#0", "ask#1", "ask#2"}),
        ("a b c", "b c", {("ask#0", "A", NOTHING), ("out#0", "A", NOTHING)}, {"ask#1", "ask#2"}),
        ("a b c", "c a b", set[Any](), {"ask#0", "ask#1", "ask#2"}),
        ("a b b", "b a", {("ask#2", "B", NOTHING), ("out#2", "B", NOTHING)}, {"ask#0", "ask#1"}),
    ],
)
def test_one_more_or_fewer_or_another_order_makes_no_other_step_another_one(
    one: Lab, then: str, now: str, steps: set[Any], equal: set[str]
) -> None:
    found = diff(one, one.publish("in", {"text": then}), one.publish("in", {"text": now}))
    assert {(s.step, *(_label(of) for of in (s.a, s.b))) for s in found.steps if s.step != "in#0"} == steps
    assert {step for step in found.equal if step.startswith("ask")} == equal
    assert (f"| `ask#{2 if now == 'b a' else 0}` |" in found.markdown()) == bool(steps)


def _label(of: Any) -> Any:
    return of["label"] if isinstance(of, dict) else of


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


def test_a_retried_call_that_is_asked_something_else_at_first_differs(one: Lab) -> None:
    tries = iter((RateLimited("busy"), None, RateLimited("busy"), None))

    def at_second(inputs: Any, work: Any) -> Any:
        if (error := next(tries)) is not None:
            raise error
        return {"label": "A", "why": WHY}

    one.answers["ask"] = at_second
    roots = []
    for _ in range(2):
        run = one.publish("in", {"text": "a"})
        one.advance(10)
        roots.append(one.run(one.client.run(run).tree()))
    (call,) = (told for told in roots[1] if told.kind == "call")
    assert len(call.attempts) == 2
    call.attempts[0] = replace(call.attempts[0], inputs={"word": "b"})  # as in a replay, where later attempts are those of then
    infos = (one.run(one.client.run("@last").info()),) * 2
    found = compare(*roots, infos)
    assert [(s.step, s.field, s.a, s.b) for s in found.steps] == [("ask#0", "in.word", "a", "b")]


@pytest.mark.parametrize(
    ("a", "b", "shown"),
    [
        ([*range(200)], [*range(199), 7], "[-…6,197,198,199]-] {+…6,197,198,7]+}"),
        ("x" * 99 + "a", "x" * 99 + "b", "[-…xxxxxxxxxxa-] {+…xxxxxxxxxxb+}"),
        ("a  b " * 20, "a b " * 20, "[-a  b"),
        ({"a": True, "b": None}, {"a": True}, '{"a":true,"b":null} → {"a":true}'),
    ],
)
def test_where_long_values_differ_is_seen(a: Any, b: Any, shown: str) -> None:
    assert change(a, b).startswith(shown)


def test_arrays_tables_and_numbers_that_are_none_are_compared_by_what_is_in_them(one: Lab) -> None:
    np, pa = pytest.importorskip("numpy"), pytest.importorskip("pyarrow")
    for a, b in (
        (np.arange(3), np.arange(4)),
        (np.arange(3), "text"),
        (pa.table({"n": [1]}), pa.table({"n": [2]})),
        ({"n": float("nan")}, {"n": 1.0}),
    ):
        root = one.run(one.client.run(one.publish("in", {"text": ""})).tree())
        infos = (one.run(one.client.run("@last").info()),) * 2
        assert compare(replace(root, data=a), replace(root, data=a), infos).same
        assert not compare(replace(root, data=a), replace(root, data=b), infos).same


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
