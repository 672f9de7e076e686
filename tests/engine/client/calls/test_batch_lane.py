"""Calls that may wait for a provider's batch, as the engine makes them: how long they may, and when they are asked live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from engine_lab import APP, Lab
from pool_bench import work

import dspex
from dspex.bus.errors import ConfigError, DecodeError, NoBatchAnswer, TopologyError
from dspex.bus.records import CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.submitted import NODE, submitted

MakeLab = Callable[..., Lab]
HOUR = 3600.0
LIVE = CallSpec("predict", "text -> reply", "text -> reply", route="auto")


class Submits:
    """As an engine with `engine.submit = true` hosts it."""

    graph: Graph = submitted(APP, ("lightweight",))


def topology(**options: Any) -> dspex.Topology:
    made = dspex.Topology("nightly")
    made.source("in").predict("text -> reply", name="ask", lane="batch", **options).sink("out")
    return made


def test_a_call_waits_for_a_batch_until_a_tenth_of_its_deadline_is_left_and_then_is_asked_live(lab: MakeLab) -> None:
    one = lab(topology(deadline="20h", timeout="1m"))
    one.start()
    one.work()
    asked: list[float] = []

    def answers(inputs: dict[str, Any], request: Any) -> dict[str, Any]:
        asked.append(round(request.batch / HOUR, 1))
        if request.batch:
            raise NoBatchAnswer("its batch expired")
        return {"reply": "live"}

    one.answers["ask"] = answers
    one.publish("in", {"text": "hi"})
    one.advance(5)
    assert asked == [18.0, 0.0]
    assert [(r.try_number, r.attempt) for r in one.asked] == [(1, 1), (2, 1)]
    assert [event["reply"] for event in one.outputs("out")] == ["live"]
    assert one.differences() == []


def test_other_errors_of_a_batch_are_tried_again_in_the_lane(lab: MakeLab) -> None:
    one = lab(topology(deadline="20h", timeout="1m"))
    one.start()
    one.work()
    asked: list[bool] = []

    def answers(inputs: dict[str, Any], request: Any) -> dict[str, Any]:
        asked.append(request.batch > 0)
        if len(asked) == 1:
            raise dspex.errors.RateLimited("a line was limited")
        return {"reply": "cheap"}

    one.answers["ask"] = answers
    one.publish("in", {"text": "hi"})
    one.advance(10)
    assert asked == [True, True]


def test_a_submitted_call_may_wait_for_a_batch_and_one_that_somebody_waits_for_may_not(lab: MakeLab) -> None:
    one = lab(Submits())
    one.start()
    one.work()
    one.answers[NODE] = lambda inputs, request: {"reply": request.spec.lane, "left": request.batch}
    spec = dspex.predict("text -> reply", lane="batch", deadline="20h", timeout="1m")
    run = one.run(one.client.submit(spec, {"text": "hi"}))
    assert one.run(run.result("1m")).data["left"] == pytest.approx(18 * HOUR, abs=60)
    with pytest.raises(ConfigError, match="lane"):
        one.run(one.client.call(spec, {"text": "hi"}))


@pytest.mark.parametrize(
    "wrong",
    [{"record": None}, {"batch": -1.0}, {"batch": float("nan")}, {"spec": LIVE}],
    ids=["interactive", "below nothing", "no number", "live"],
)
def test_only_a_durable_call_of_the_lane_has_time_for_a_batch(wrong: dict[str, Any]) -> None:
    asked = {"spec": replace(LIVE, lane="batch"), "batch": 60.0}
    assert CallRequest.unpack(work(**asked).pack()).batch == 60.0
    with pytest.raises(DecodeError, match="waits for a batch"):
        CallRequest.unpack(work(**{**asked, **wrong}).pack())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda **o: dspex.react("q -> a", tools=["shop:look"], **o), "runs in DSPy only"),
        (lambda **o: dspex.program("shop:Draft", "q -> a", **o), "runs in DSPy only"),
        (lambda **o: dspex.predict("q -> a", state="draft@4", **o), "DSPy loads saved states"),
        (lambda **o: dspex.chain_of_thought("q -> reasoning", **o), "which chain_of_thought adds"),
        (lambda **o: dspex.predict("q -> a", route="worker", **o), 'route="worker" lets DSPy answer'),
        (lambda **o: dspex.predict("q -> a", hedge="p95", **o), "hedge= has no meaning"),
        (lambda **o: dspex.predict("q -> a", lm=["a", "b"], choose="cheapest", **o), "choose= has no meaning"),
        (lambda **o: dspex.predict("q -> a", affinity="require", **o), 'affinity="require" has no meaning'),
        (lambda **o: dspex.predict("q -> a", first_token_timeout="2s", **o), "first_token_timeout= has no meaning"),
        (lambda **o: dspex.predict("q -> a", **{**o, "deadline": "2m"}), 'leaves lane="batch" no time'),
        (lambda **o: dspex.predict("q -> a", lane=o["lane"]), "needs a deadline= of its own"),
    ],
)
def test_what_no_batch_can_answer_is_refused_where_it_is_built(make: Callable[..., Any], said: str) -> None:
    with pytest.raises(TopologyError, match=said):
        make(lane="batch", deadline="26h")
