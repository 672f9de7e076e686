"""A run that was exported is done again by a driver, without a server and without a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus.errors import CallTimeout, DecodeError, Divergence, RecordingIncomplete, TopologyError
from dspex.engine.client.runs.export import load
from dspex.engine.graph.nodes import Retry
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def words(*, loud: bool = False, clean: bool = True) -> Topology:
    topology = Topology("words")
    each = topology.source("in").flat_map(lambda d: [{"word": word} for word in d["text"].split()])
    if not clean:
        each = each.map(lambda d: {"word": d["word"] + "!"}, name="spoil")
    asked = each.predict("word -> label", name="ask", retry=Retry(attempts=3, backoff="5s"))
    if loud:
        asked = asked.map(lambda d: {**d, "label": d["label"] * 2}, name="double")
    asked.sink("out")
    asked.key_by("label", name="by_label").throttle("1/s", name="slowly").sink("slow")
    return topology


@pytest.fixture
def file(lab: MakeLab, tmp_path: Path) -> Path:
    """A run whose second call failed at first."""
    one = lab(words())
    fails = [CallTimeout("slow")]

    def answer(inputs: Any, work: Any) -> Any:
        if inputs["word"] == "b" and fails:
            raise fails.pop()
        return {"label": str(inputs["word"]).upper()}

    one.answers["ask"] = answer
    one.start()
    one.work()
    run = one.client.run(one.publish("in", {"text": "a b a"}, key="k"))
    one.advance(60)
    one.run(run.export(tmp_path / "run.jsonl"))
    return tmp_path / "run.jsonl"


def test_what_was_exported_is_the_same_and_no_model_is_asked(file: Path) -> None:
    with Driver(words()) as d:
        found = d.replay(file)
        assert (found.same, found.runs, found.served, found.live, found.tokens) == (True, 1, 3, 0, 0), str(found.diff)
        assert d.outputs("out") == []  # it is done by itself


def test_a_changed_operator_is_told_by_what_follows_it_and_what_is_declared_harmless_is_not(file: Path) -> None:
    with Driver(words(loud=True)) as d:
        found = d.replay(file)
        assert not found.same
        assert found.diverged is not None
        assert (found.diverged.step, found.diverged.field, found.diverged.a, found.diverged.b) == ("out#0", "label", "A", "AA")
    with Driver(words(loud=True)) as d:
        assert {s.field for s in d.replay(file, ignore=["label"]).diff.steps} <= {None}


def test_a_call_that_was_not_made_then_ends_the_replay_and_is_named(file: Path) -> None:
    with (
        Driver(words(clean=False)) as d,
        pytest.raises(Divergence, match=r"stopped at ask#0: its input is not the recorded one") as e,
    ):
        d.replay(file)
    assert "word: a → a!" in e.value.message


def test_a_call_with_another_signature_has_no_recorded_answer_and_one_with_other_parameters_has(file: Path) -> None:
    def asking(signature: str, **options: Any) -> Topology:
        topology = Topology("words")
        each = topology.source("in").flat_map(lambda d: [{"word": word} for word in d["text"].split()])
        asked = each.predict(signature, name="ask", retry=Retry(attempts=3, backoff="5s"), **options)
        asked.sink("out")
        asked.key_by("label", name="by_label").throttle("1/s", name="slowly").sink("slow")
        return topology

    answered = load(file)
    asked = answered.calls[0].node
    program = next(node.call.spec.program for node in words().graph.calls if node.name == asked)
    for call in answered.calls:
        call.attempts[:] = [replace(step, program=program) for step in call.attempts]  # as workers that are no test's record it
    with Driver(asking("word -> label", config={"temperature": 0.5})) as d:  # as settings may say it, which no test has
        assert d.replay(answered).same
    with Driver(asking("word -> label, why")) as d, pytest.raises(Divergence, match="it asks something else") as e:
        d.replay(answered)
    assert f"program: {program} → predict#" in e.value.message


def test_a_file_that_no_driver_can_replay_says_so(file: Path, tmp_path: Path, lab: MakeLab) -> None:
    other = Topology("other")
    other.source("in").sink("out")
    with Driver(other) as d, pytest.raises(TopologyError, match="no topology 'words'"):
        d.replay(file)
    for text in ("", "{}", "no", file.read_text().replace('"kind":"output"', '"kynd":"output"')):
        (tmp_path / "bad.jsonl").write_text(text)
        with Driver(words()) as d, pytest.raises(DecodeError, match="not the file of a run"):
            d.replay(tmp_path / "bad.jsonl")
    one = lab(words())
    one.start()
    run = one.client.run(one.publish("in", {"text": "a"}))
    one.advance(1)
    with pytest.raises(RecordingIncomplete, match="ask#0"):
        one.run(run.export(tmp_path / "open.jsonl"))


def test_a_file_of_a_run_that_was_not_over_says_so_and_is_not_compared(file: Path) -> None:
    then = load(file)
    with Driver(words()) as d, pytest.raises(RecordingIncomplete, match="was not over when this was recorded") as refused:
        d.replay(replace(then, info=replace(then.info, status="running", finished=None)))
    assert refused.value.run == then.info.id
