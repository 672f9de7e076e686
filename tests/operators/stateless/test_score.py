"""score: a metric of dspex.metrics, or a function, over two fields."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from dspex import Topology, metrics
from dspex.bus.errors import DataError, ExpressionError, InvalidInput, TopologyError
from dspex.operators.stateless import score

DATA = {"said": "The Eiffel Tower in Paris", "gold": "Eiffel Tower"}
TEXTS = dict.fromkeys(metrics.METRICS, DATA) | {"json_match": {"said": '{"a": 1}', "gold": '{"a": 1.0}'}}


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_every_metric_gives_what_its_function_gives(run, name):
    data = TEXTS[name]
    (result,) = run(score.build(name, expected="gold", actual="said"), data)
    assert result == {**data, "score": metrics.METRICS[name](data["said"], data["gold"])}
    assert isinstance(result["score"], float)


def test_precision_knows_which_text_is_the_answer(run):
    (result,) = run(score.build("precision", expected="gold", actual="said"), DATA)
    assert result["score"] == pytest.approx(0.5)  # two of the four words that were said
    (result,) = run(score.build("recall", expected="gold", actual="said"), DATA)
    assert result["score"] == 1.0


def test_expected_and_actual_are_expressions(run):
    data = {"reply": {"text": " Paris"}, "refs": ["Paris", "Rome"]}
    (result,) = run(score.build("exact_match", expected="refs", actual="strip(reply.text)", field="em"), data)
    assert result["em"] == 1.0


def test_a_function_gets_the_answer_and_then_the_reference(run):
    def longer(actual: str, expected: str) -> bool:
        return len(actual) > len(expected)

    (result,) = run(score.build(longer, expected="gold", actual="said"), DATA)
    assert (result["score"], type(result["score"])) == (1.0, float)


def test_a_metric_that_gives_no_number_is_a_data_error(run):
    with pytest.raises(DataError, match="the metric <lambda> gave str"):
        run(score.build(lambda a, e: "good", expected="gold", actual="said"), DATA)


def test_a_value_that_a_metric_cannot_compare_is_a_data_error(run):
    with pytest.raises(InvalidInput):
        run(score.build("f1", expected="gold", actual="said"), {"gold": "a", "said": 5})
    with pytest.raises(ExpressionError, match="no field 'said'"):
        run(score.build("f1", expected="gold", actual="said"), {"gold": "a"})


class Scored(BaseModel):
    gold: str
    score: float


def test_score_types_its_result_by_into(run):
    assert run(score.build("f1", expected="gold", actual="said", into=Scored), DATA) == [
        Scored(gold="Eiffel Tower", score=2 / 3)
    ]


@pytest.mark.parametrize(
    ("metric", "code", "message", "fix"),
    [
        ("exact", "DX205", "there is no metric 'exact'", "did you mean exact_match?"),
        ("bleu_rouge_meteor", "DX205", "there is no metric", "one of: exact_match"),
        (5, "DX219", "score takes a metric", "a function of"),
    ],
)
def test_an_unknown_metric_is_refused_at_build(metric, code, message, fix):
    with pytest.raises(TopologyError) as e:
        score.build(metric, expected="a", actual="b")
    assert e.value.code == code
    assert message in e.value.message
    assert fix in e.value.fix


class Said(BaseModel):
    said: str
    gold: str


def test_score_refuses_wrong_arguments_at_build():
    topology = Topology("t")
    scored = topology.source("a.b", Said).score("f1", expected="golden", actual="said +", field="x", name="one")
    scored.score("f1", expected="x", actual="y", name="two").sink("c.d")
    assert sorted((p.code, p.node) for p in topology.check()) == [("DX207", "one"), ("DX207", "two"), ("DX208", "one")]


YAML = """
dspex: 1
topology: t
sources:
  a.b: {}
nodes:
  f1: { from: a.b, score: f1, expected: gold, actual: "lower(said)" }
  own: { from: f1, score: "own:metric", expected: gold, actual: said, field: own }
sinks:
  c.d: { from: own }
"""


def test_score_in_yaml_and_python_gives_the_same_graph(module, tmp_path):
    own = module("own", "def metric(actual, expected):\n    return len(actual)\n")
    topology = Topology("t")
    scored = topology.source("a.b").score("f1", expected="gold", actual="lower(said)", name="f1")
    scored.score(own.metric, expected="gold", actual="said", field="own", name="own").sink("c.d")
    (tmp_path / "t.yaml").write_text(YAML)
    loaded = Topology.load(tmp_path / "t.yaml")
    assert loaded.check() == []
    assert loaded.digest == topology.digest
    (tmp_path / "again.yaml").write_text(topology.to_yaml())
    assert Topology.load(tmp_path / "again.yaml").digest == topology.digest
    assert "score<br/>" not in topology.to_mermaid()
    assert "f1<br/>score" in topology.to_mermaid()


def test_an_impure_metric_gives_a_warning(module):
    own = module("impure", "import time\ndef metric(actual, expected):\n    return time.time()\n")
    topology = Topology("t")
    topology.source("a.b").score(own.metric, expected="a", actual="b").sink("c.d")
    assert [p.code for p in topology.check()] == ["DX310"]
