"""Which runs are the cases of an evaluation, and what its result says where there are few."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from engine_lab import Lab

from dspex.bus.errors import ConfigError
from dspex.engine.client.runs.judged.evaluation import EvalPolicy, Evaluation, JudgedRun
from dspex.engine.judge import forms
from dspex.engine.judge.evaluate import evaluate, terms_of
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def test_a_run_that_has_not_ended_is_no_case_and_is_counted(lab: MakeLab) -> None:
    topology = Topology("asking")
    topology.source("in").predict("text -> reply", name="ask").sink("out")
    one = lab(topology)
    one.start()
    run = one.publish("in", {"text": "nobody answers"})
    one.advance(5)
    found: Evaluation = one.run(evaluate(one.client, "asking", [topology.graph], terms_of("f1")))
    assert (found.open, found.cases, found.mean, found.passed) == ([run], [], None, False)
    assert [*forms.lines(found)][-2:] == ["1 more have not ended, and are no cases", "failed: there is no case"]


def test_a_policy_compares_the_runs_that_both_have() -> None:
    cases = [JudgedRun("a", 0.5, 0.5), JudgedRun("b", 1.0, 0.9), JudgedRun("new", None, 0.0)]
    found = Evaluation("t", "f1", cases=cases, policy=EvalPolicy.read("no worse than 5%"))
    assert (found.before, found.change, found.passed) == (0.75, pytest.approx(-0.05), True)
    assert not EvalPolicy.read("no worse than 0.04").holds(found.change, found.mean)
    assert EvalPolicy.read("at  least .4").holds(None, found.mean)
    assert not EvalPolicy.read("no worse than 0").holds(None, 1.0)
    assert [case.run for case in found.regressions] == ["b"]
    for text in ("", "no worse", "at least x", "at most 1", "no worse than -1"):
        with pytest.raises(ConfigError, match="is no policy"):
            EvalPolicy.read(text)


def test_whatever_a_case_says_the_xml_is_whole() -> None:
    case = JudgedRun("a", 1.0, None, 'it says <b>"&\x00\x1b[31m\ud800')
    suite = ElementTree.fromstring(forms.junit(Evaluation("t", 'f"<1', cases=[case])).encode())[0]
    (failure,) = suite.iter("failure")
    assert failure.attrib["message"] == 'it says <b>"&[31m'
    assert forms.markdown(Evaluation("t", "f1", cases=[case])).count("\n| `a` |") == 1
