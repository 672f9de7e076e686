"""`enrich`: what is known and refused before it runs, and what becomes of what its function gives."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from types import ModuleType
from typing import Any, TypedDict

import pytest
from pydantic import BaseModel

import dspex
from dspex.bus.errors import InvalidInput, ProgramError, RetryLater, TopologyError
from dspex.engine.graph.nodes import Retry
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology


class Order(BaseModel):
    customer: str
    since: date = date(2026, 1, 2)


class Found(TypedDict):
    balance: float


class Rich(Order):
    balance: str


async def look_up(order: Order) -> Found:
    raise NotImplementedError


async def untyped(data):  # type: ignore[no-untyped-def]
    raise NotImplementedError


async def gives_a_list(data: Any) -> list[str]:
    raise NotImplementedError


async def wants_two(data: Any, other: Any) -> Found:
    raise NotImplementedError


def blocks(data: Any) -> Found:
    raise NotImplementedError


def problems(fn: Any, type_: Any = Order, **options: Any) -> list[tuple[str, str]]:
    topology = Topology("shop")
    topology.source("in", type_).enrich(fn, name="look", **options).sink("out")
    return [(p.code, f"{p.message} | {p.fix}") for p in topology.check()]


def enriched(**options: Any) -> Topology:
    topology = Topology("shop")
    topology.source("in").enrich("lookups:customer", name="look", **options).sink("out")
    return topology


def test_the_fields_that_a_function_gives_are_added_to_the_data() -> None:
    with Driver(enriched()) as d:
        d.answer("look", lambda data: {"tier": "gold", "asked": sorted(data)})
        d.publish("in", {"customer": "ada", "tier": "none"})
        assert d.outputs("out") == [{"customer": "ada", "tier": "gold", "asked": ["customer", "tier"]}]
        d.crash("all")
        assert len(d.calls("look")) == len(d.outputs("out")) == 1


def test_a_function_gets_all_of_the_data_or_what_inputs_names() -> None:
    order = Order(customer="ada")
    assert dspex.enrich(look_up).to_call().inputs(order) == {"customer": "ada", "since": "2026-01-02"}
    named = dspex.enrich("lookups:customer", inputs={"who": "upper(customer)"}).to_call()
    assert named.inputs(order) == {"who": "ADA"}
    with pytest.raises(InvalidInput, match="named fields"):
        dspex.enrich(look_up).to_call().inputs("ada")
    with pytest.raises(InvalidInput, match="has 7"):
        dspex.enrich(look_up).to_call().inputs({7: "ada"})


def test_a_function_is_tried_again_and_then_its_fallback_stands_in() -> None:
    with Driver(enriched(retry=Retry(attempts=2, backoff="1s"), fallback={"tier": "unknown"})) as d:
        d.answer("look", {"tier": "gold"})
        d.fail("look", RetryLater("closed", after=30))
        d.publish("in", {"customer": "ada"})
        d.advance("29s")
        assert d.outputs("out") == []
        d.advance("2s")
        d.fail("look", ProgramError("a bug"))
        d.publish("in", {"customer": "bob"})
        assert [o["tier"] for o in d.outputs("out")] == ["gold", "unknown"]


def test_into_types_what_comes_out_and_a_misfit_is_a_dead_letter() -> None:
    topology = Topology("shop")
    topology.source("in").enrich("lookups:customer", name="look", into=Rich, order="key").sink("out")
    with Driver(topology) as d:
        d.answer("look", lambda data: {"balance": data["said"]})
        d.publish("in", {"customer": "ada", "said": "12"}, key="k")
        d.publish("in", {"customer": "bob", "said": 12}, key="k")
        d.advance("1m")
        assert [o["balance"] for o in d.outputs("out")] == ["12"]
        assert [letter.reason for letter in d.dead_letters()] == ["InvalidOutput"]


@pytest.mark.parametrize(
    ("fn", "options", "code", "said"),
    [
        (lambda data: data, {}, "DX218", "cannot import <lambda>"),
        (blocks, {}, "DX219", "blocks is no async def | async def blocks(data): …; what blocks goes into a thread"),
        (gives_a_list, {}, "DX219", "gives list[str] | return a mapping"),
        (wants_two, {}, "DX219", "wants two arguments"),
        ("lookups.customer", {}, "DX221", "is not a ref"),
        (look_up, {"into": Rich}, "DX212", "look_up gives balance: float, and Rich wants balance: str"),
        (look_up, {"lm": "main"}, "DX204", "enrich asks no model: there is no option 'lm'"),
        (look_up, {"route": "worker"}, "DX204", "enrich asks no model: there is no option 'route'"),
        (look_up, {"effect": True}, "DX219", "an effect is called with (data, key), and look_up does not take that"),
        (look_up, {"effect": "yes"}, "DX205", "True or False"),
        (look_up, {"reconcile": wants_two}, "DX205", "reconcile tells what an effect did, and there is none"),
        (wants_two, {"effect": True, "reconcile": look_up}, "DX219", "look_up does not take that"),
        (wants_two, {"effect": True, "cache": "1m"}, "DX205", "an answer from the cache would have no effect"),
        (look_up, {"lane": "batch"}, "DX204", "enrich asks no model: there is no option 'lane'"),
        (look_up, {"timeout": "20m"}, "DX205", "longer than deadline"),
        (look_up, {"inputs": {"who": "customer"}}, "DX207", "wants field 'customer', and inputs= gives who"),
        (look_up, {"inputs": {"customer": "custome"}}, "DX207", "did you mean customer?"),
    ],
)
def test_what_cannot_enrich_is_refused_before_it_runs(fn: Any, options: Any, code: str, said: str) -> None:
    found = problems(fn, **options)
    assert [c for c, _ in found] == [code]
    assert said in found[0][1]


def test_what_a_function_wants_of_the_stream_and_gives_to_it_is_known_from_its_annotations() -> None:
    class Other(BaseModel):
        name: str

    assert problems(look_up, Other)[0][0] == "DX207"
    topology = Topology("shop")
    stream = topology.source("in", Order).enrich(look_up, name="look")
    stream.filter("balanc > 3").sink("out")
    assert [p.fix for p in topology.check()] == ["did you mean balance?"]
    assert problems(untyped) == []


def test_options_of_a_spec_are_changed_and_its_digest_with_them() -> None:
    spec = dspex.enrich(look_up)
    assert spec.with_options(timeout="5s").digest != spec.digest
    with pytest.raises(TopologyError, match="lm"):
        spec.with_options(lm="main")
    topology = Topology("shop")
    topology.source("in", Order).call(spec, name="look").sink("out")
    assert topology.describe().programs == [spec.target]


def test_yaml_says_the_same_and_imports_nothing(module: Callable[[str, str], ModuleType], tmp_path: Any) -> None:
    shop = module("shop", "async def find(data): ...")
    topology = Topology("shop")
    topology.source("in").enrich(shop.find, name="look", timeout="5s", inputs={"who": "customer"}).sink("out")
    (tmp_path / "shop.yaml").write_text(topology.to_yaml().replace("shop:find", "nowhere:find"))
    loaded = Topology.load(tmp_path / "shop.yaml")
    assert loaded.describe().programs == ["nowhere:find"]
    (tmp_path / "shop.yaml").write_text(topology.to_yaml())
    assert Topology.load(tmp_path / "shop.yaml").digest == topology.digest
