"""Jobs of optimizers as a client asks for them, on virtual time: what is submitted, and what is refused before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import APP, Lab

import dspex
from dspex.bus import subjects
from dspex.bus.errors import ConfigError, InvalidInput, NotStored, RunNotFound, Saturated
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.submitted import NODE, submitted

MakeLab = Callable[..., Lab]
SPEC = dspex.predict("text -> intent: Literal['card', 'loan'], sure: bool", lm=("a", "b"), config={"temperature": 0.5})
ROWS = [{"text": f"t{n}", "intent": "card", "sure": True, "more": n} for n in range(10)]


class Optimizes:
    """As an engine with `engine.submit = true` and a pool of optimizers hosts it."""

    graph: Graph = submitted(APP, ("optimizer",))


def inputs_of(data: Any, **options: Any) -> Any:
    return SPEC.optimize("exact_match", **options).to_call().inputs(data)


def test_a_job_is_submitted_as_a_call_of_a_kind_of_its_own_and_its_result_is_the_runs(lab: MakeLab) -> None:
    one = lab(Optimizes())
    one.start()
    one.answers[NODE] = lambda inputs, request: {"before": 1.0, "after": 2.0, "state": {}}
    job = SPEC.optimize("f1", using="MIPROv2", options={"auto": "light"}, requests=100, timeout="2h")
    run = one.run(one.client.submit(job, {"rows": ROWS}, id="job-1"))
    one.loop.settle()
    one.work("optimizer")
    assert one.run(run.result("1m")).data == {"before": 1.0, "after": 2.0, "state": {}}
    (asked,) = one.asked
    spec = asked.spec
    assert (spec.kind, spec.lm, spec.config, spec.journaled) == ("optimize", ("a",), {"temperature": 0.5}, True)
    assert spec.optimized == CallSpec.read(SPEC.to_call().spec.plain())
    assert (spec.arguments["metric"], spec.arguments["requests"]) == ("f1", 100)
    assert (asked.timeout, round(asked.left)) == (7200.0, 4 * 7200)
    assert {row["text"] for part in ("train", "test") for row in asked.inputs[part]} == {row["text"] for row in ROWS}
    assert {tuple(row) for row in asked.inputs["train"]} == {("text", "intent", "sure")}, "of a row, what the signature names"
    assert one.differences() == []


def test_rows_are_parted_in_the_same_way_for_the_same_seed() -> None:
    first, again, other = (inputs_of({"rows": ROWS}, seed=seed) for seed in (1, 1, 2))
    assert (len(first["train"]), len(first["test"])) == (7, 3)
    assert first == again != other
    assert len(inputs_of({"rows": ROWS}, held_back=0.01)["test"]) == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"rows": [*ROWS, {"text": "x"}]}, "the rows, row 11: it has none of the outputs intent, sure"),
        ({"train": ROWS, "test": [{"intent": "card"}]}, "test, row 1: .*text"),
        ({"train": ["a"], "test": ROWS}, "train, row 1: it is str, and a row is an object of fields"),
        ({"rows": [{"text": "x", "intent": "car", "sure": True}]}, "the rows, row 1: .*intent"),
        ({"rows": ROWS[:1]}, "there are no rows to be scored with"),
        ({"rows": "text"}, "rows is str, and a job takes a list of rows"),
        ({"text": "x"}, "a job takes rows"),
    ],
)
def test_rows_that_do_not_fit_are_named_before_anything_is_submitted(data: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        inputs_of(data)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"using": "Mipro"}, "there is no optimizer 'Mipro'"),
        ({"options": {"k": 1}}, "BootstrapFewShot takes no option 'k'"),
        ({"options": {"max_rounds": 0}}, "max_rounds of BootstrapFewShot is 0"),
        ({"using": "MIPROv2", "options": {"auto": "huge"}}, "auto of MIPROv2 is 'huge'"),
        ({"using": "MIPROv2", "options": {"num_trials": 3}}, "num_trials of MIPROv2 cannot stand so"),
        ({"threads": 0}, "0 programs side by side cannot be"),
        ({"requests": -1}, "a budget of -1 is none"),
        ({"requests": 1.5}, "not the arguments of a job .*requests"),
        ({"seed": -1}, "-1 is no seed"),
        ({"seed": 1 << 32}, "4294967296 is no seed"),
        ({"seed": "9"}, "not the arguments of a job .*seed"),
        ({"held_back": 1.0}, "held_back is a part"),
    ],
)
def test_a_job_that_cannot_be_is_refused_where_it_is_made(options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as e:
        SPEC.optimize("exact_match", **options)
    assert e.value.code == "DX105"


def test_a_job_for_a_spec_of_the_batch_lane_asks_live() -> None:
    """Each request of an optimizer waits for those before it, and no batch answers a call that makes many."""
    nightly = dspex.predict("text -> intent", lane="batch", deadline="26h")
    assert nightly.optimize("exact_match").to_call().spec.lane == "live"


def test_an_unknown_metric_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="there is no metric 'exactmatch'") as e:
        SPEC.optimize("exactmatch")
    assert "exact_match" in e.value.fix
    assert SPEC.optimize("mine:score").to_call().spec.refs == ("dspy:BootstrapFewShot", "mine:score")


def test_where_no_process_of_the_pool_is_there_nobody_can_be_asked_or_told(lab: MakeLab) -> None:
    one = lab()
    with pytest.raises(Saturated, match="no process of pool optimizer is running") as e:
        one.run(one.client.job_status("optimizer/1"))
    assert "dspex worker optimizer" in e.value.fix
    with pytest.raises(NotStored):
        one.run(one.client.cancel_job("optimizer/1"))
    with pytest.raises(RunNotFound, match="does not name a submitted call"):
        one.run(one.client.job_status("01a22680-b7a7-7f77-a26a-100000000001"))


def test_a_job_can_be_cancelled_while_no_process_of_its_pool_is_there(lab: MakeLab) -> None:
    one = lab(Optimizes())
    one.start()
    for _ in range(2):
        assert one.run(one.client.cancel_job("optimizer/1")) is False
    found = one.messages(subjects.job_end(APP, "optimizer", "1"), subjects.requests(APP))
    assert len(found) == 1
    for run in ("optimizer/", "optimizer/a.b", "optimizer/>", "a.b/1"):
        with pytest.raises(RunNotFound):
            one.run(one.client.cancel_job(run))


def test_rows_that_no_message_holds_reach_the_worker(lab: MakeLab) -> None:
    one = lab(Optimizes())
    one.start()
    large = [{**row, "text": f"{row['text']} {'x' * 300_000}"} for row in ROWS]
    run = one.run(one.client.submit(SPEC.optimize("f1"), {"rows": large}))
    one.loop.settle()
    one.work("optimizer")
    one.run(run.result("1m"))
    assert sum(len(row["text"]) for part in ("train", "test") for row in one.asked[0].inputs[part]) > 3_000_000
