"""Programs that are DSPy's own modules, and saved states, as a topology has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspex.bus.errors import TopologyError
from dspex.bus.serving.call_spec import CallSpec
from dspex.operators.recorded.calls import chain_of_thought, predict, program, react
from dspex.operators.topology import Topology

SHORT = "text -> reply"


@pytest.mark.parametrize(
    ("wrong", "why", "fix"),
    [
        (lambda: program("dspy:RML", SHORT), "DSPy has no module 'RML'", "did you mean RLM?"),
        (lambda: program("dspy:RLM", SHORT, arguments={"M": 3}), "takes no argument 'M'", "it takes: max_iters"),
        (lambda: program("dspy:RLM", SHORT, arguments={"max_iters": 0}), "max_iters of dspy:RLM is 0", "give a number of 1"),
        (lambda: program("dspy:Refine", SHORT, arguments={"N": 2}), "needs module, reward_fn, threshold", "arguments="),
        (lambda: program("dspy:Predict", SHORT, tools=["a:b"]), "takes no tools", "dspy:ReAct"),
        (lambda: program("dspy:MultiChainComparison", SHORT), "is called with completions", "add completions"),
        (lambda: program("mine:Draft", SHORT, arguments={"M": 3}), "a program of yours", "in a class"),
    ],
)
def test_a_module_that_cannot_be_built_so_is_refused_before_anything_runs(wrong, why, fix):
    with pytest.raises(TopologyError) as e:
        wrong()
    assert e.value.code == "DX247"
    assert why in e.value.message
    assert fix in e.value.fix


def test_what_runs_code_of_a_model_or_of_a_user_has_to_be_in_the_allow_list():
    def refs(ref: str, signature: str = SHORT, **options: object) -> tuple[str, ...]:
        spec: CallSpec = program(ref, signature, **options).to_call().spec
        return spec.refs

    assert refs("dspy:ChainOfThought") == ()
    assert refs("dspy:RLM", tools=["mine:find"]) == ("dspy:RLM", "mine:find")
    best = {"module": "Predict", "N": 2, "threshold": 1.0, "reward_fn": "mine:reward"}
    assert refs("dspy:BestOfN", arguments=best) == ("mine:reward",)
    assert refs("mine:Draft") == ("mine:Draft",)


def test_states_arguments_and_tools_are_the_same_in_yaml(tmp_path: Path):
    t = Topology("saved")
    s = t.source("in").predict(SHORT, name="a", state="a@1").chain_of_thought("reply -> b", name="b", state="b@prod")
    s = s.react("b -> c", tools=["mine:find"], name="c", state="c")
    s = s.program("dspy:CodeAct", "c -> d", arguments={"max_iters": 2}, tools=["mine:find"], name="d", state="d@2")
    s.sink("out")
    (tmp_path / "saved.yaml").write_text(t.to_yaml())
    assert Topology.load(tmp_path / "saved.yaml").digest == t.digest
    one, other = (program("dspy:RLM", SHORT, arguments={"max_iters": n}) for n in (1, 2))
    assert one.digest != other.digest
    assert one.to_call().spec.program != other.to_call().spec.program


def test_a_state_has_a_name_and_is_loaded_by_dspy():
    for kind in (predict, chain_of_thought, lambda s, **o: react(s, tools=["a:b"], **o), lambda s, **o: program("a:B", s, **o)):
        assert kind(SHORT, state="draft@3").to_call().spec.state == "draft@3"
        with pytest.raises(TopologyError, match="state"):
            kind(SHORT, state="Draft 3")
    with pytest.raises(TopologyError, match="DSPy loads saved states") as e:
        predict(SHORT, state="draft", route="native")
    assert e.value.code == "DX236"
