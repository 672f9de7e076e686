"""What `tenant=` and `cost=` promise: whose call comes first, and how many slots it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus import subjects
from dspex.bus.errors import RateLimited, TopologyError
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.graph.defaults import with_defaults
from dspex.engine.runtime.walk.request import TENANT
from dspex.operators.recorded.calls import predict
from dspex.operators.topology import Topology


def triage(**options: Any) -> Topology:
    t = Topology("triage")
    t.source("in").predict("text -> answer", name="classify", **options).sink("out")
    return t


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab(triage(tenant="customer"))
    yield lab
    lab.close()


def test_a_tenant_with_hundreds_of_waiting_calls_does_not_hold_up_the_ten_of_another(lab: Lab) -> None:
    lab.start()

    async def publish() -> None:
        for n in range(110):
            await lab.client.publish("in", {"customer": "few" if n >= 100 else "many", "text": f"{n}"})

    lab.run(publish())
    lab.work(slots=4)
    lab.advance(60)
    asked = [request.tenant for request in lab.asked]
    assert (len(asked), asked.count("few")) == (110, 10)
    last = max(at for at, tenant in enumerate(asked) if tenant == "few")
    assert last < 40, "behind the first of the other, and not behind all"
    assert lab.differences() == []


def asked_by(lab: Lab, calls: dict[str | None, int], tokens: dict[str | None, int]) -> list[str | None]:
    """Whose calls were answered, in that order, where so many of each tenant's were stored at once."""
    lab.start()
    lab.work(slots=4)
    lab.advance(3)  # until the worker takes from all side queues
    lab.tokens.update(tokens)

    async def publish() -> None:
        for n in range(max(calls.values())):
            for tenant in [one for one, number in calls.items() if n < number]:
                await lab.client.publish("in", {"customer": tenant, "text": f"{n}"})

    lab.run(publish())
    lab.advance(30)
    assert lab.differences() == []
    return [request.tenant for request in lab.asked]


@pytest.mark.parametrize("first", ["long", "short"])
def test_two_tenants_with_many_calls_share_tokens_and_not_calls(lab: Lab, first: str) -> None:
    tokens: dict[str | None, int] = {"long": 500, "short": 100}
    assert len({subjects.band(5, behind=str(tenant)) for tenant in tokens}) == 2
    asked = asked_by(lab, dict.fromkeys([first, *tokens], 60), tokens)
    assert len(asked) == 120
    both = asked[2 * TENANT : len(asked) - asked[::-1].index("short")]  # both have calls that wait
    used = {tenant: both.count(tenant) * tokens[tenant] for tenant in tokens}
    assert 0.8 < used["short"] / used["long"] < 1.25, used


def test_a_tenant_with_many_calls_goes_on_while_others_always_have_some(lab: Lab) -> None:
    """Those of nobody come from the front, which has no more than a share for each whose calls were in it lately: two here."""
    asked = asked_by(lab, {None: 60, "many": 40}, {None: 100, "many": 100})
    assert len(asked) == 100
    assert 20 <= asked[:60].count("many") <= 30


def test_a_tenant_that_is_alone_is_not_slowed_down_and_a_call_keeps_its_place_when_it_is_tried_again(lab: Lab) -> None:
    lab.start()
    failed: list[str] = []

    def answer(inputs: dict[str, Any], request: Any) -> dict[str, Any]:
        if request.try_number == 1:
            failed.append(request.call)
            raise RateLimited("later", retry_after=1.0)
        return {"answer": "yes"}

    lab.answers["classify"] = answer
    for n in range(50):
        lab.publish("in", {"customer": "many", "text": f"{n}"})
    lab.work(slots=4)
    lab.advance(60)
    assert (len(failed), len(lab.outputs("out"))) == (50, 50)
    assert {request.tenant for request in lab.asked} == {"many"}


def test_a_call_of_no_tenant_waits_behind_nobody(lab: Lab) -> None:
    lab.start()
    for n in range(50):
        lab.publish("in", {"customer": None, "text": f"{n}"})
    lab.work()
    lab.advance(10)
    assert [request.tenant for request in lab.asked] == [None] * 50
    assert [request.inputs["text"] for request in lab.asked] == [f"{n}" for n in range(50)]


@pytest.mark.parametrize(("customer", "why"), [([1], "gives list"), ("", "0 characters"), ("x" * 201, "201 characters")])
def test_what_names_no_tenant_is_a_dead_letter(lab: Lab, customer: object, why: str) -> None:
    lab.start()
    lab.work()
    lab.publish("in", {"customer": customer, "text": "hello"})
    lab.publish("in", {"text": "hello"})
    first, second = lab.letters()
    assert (first.reason, second.reason) == ("InvalidInput", "ExpressionError")
    assert why in first.message


def test_a_tenant_is_an_expression_over_the_data_alone() -> None:
    for tenant, code in (("event.key", "DX208"), ("no such(", "DX208")):
        with pytest.raises(TopologyError) as caught:
            triage(tenant=tenant).freeze()
        assert caught.value.problems[0].code == code


def test_a_cost_is_in_what_workers_get_and_settings_can_set_it() -> None:
    (call,) = triage(cost=3).freeze().graph.calls
    assert call.call.spec.cost == 3
    (call,) = with_defaults(triage().freeze().graph, {"cost": 2}).calls
    assert call.call.spec.cost == 2
    assert CallSpec.unpack(predict("a -> b", cost=5).to_call().spec.packed).cost == 5
    with pytest.raises(TopologyError):
        predict("a -> b", cost=0)
