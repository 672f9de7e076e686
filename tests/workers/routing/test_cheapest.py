"""A list of profiles of which the cheapest is asked first: by price, and by the tokens that calls of a program use."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from pool_bench import SIGNATURE, config, running, work

from dspex import predict
from dspex.bus.errors import DecodeError, TopologyError
from dspex.bus.records import CallRecord, CallRequest, Tried
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.graph.defaults import with_defaults
from dspex.operators.topology import Topology
from dspex.workers.config import PoolConfig, Profile
from dspex.workers.pool.execution import Execution
from dspex.workers.pool.routing.routing import LOOK_AGAIN, Routing
from dspex.workers.pool.routing.spending import ENOUGH

Prices = dict[str, dict[str, float]]
PRICES: Prices = {"dear": {"input": 3.0, "output": 15.0}, "cheap": {"input": 0.1, "output": 0.4}, "unknown": {}}


def priced(prices: Prices, url: str = "") -> dict[str, Profile]:
    return {name: Profile(name, "openai/stand-in", base_url=url, price=price) for name, price in prices.items()}


def spec(*lms: str) -> CallSpec:
    return CallSpec("predict", SIGNATURE, SIGNATURE, route="native", lm=lms, choose="cheapest")


@pytest.mark.asyncio
async def test_the_cheapest_of_a_list_is_asked_first_then_the_next_and_the_record_says_so(model: Any) -> None:
    profiles = priced(PRICES, model.url)
    profiles["gone"] = replace(profiles["cheap"], name="gone", base_url="http://127.0.0.1:9/v1")
    async with running(config(model.url, profiles=profiles, programs=(), lm="dear")) as bench:
        listed = replace(spec("dear", "cheap"), choose="listed")
        specs = (spec("dear", "cheap"), spec("dear", "gone"), listed, spec("cheap", "dear", "unknown"))
        found = [(await bench.ask(work(f"hello {n}", spec=one)))[0] for n, one in enumerate(specs)]
        cheap, next_one, written, refused = found
        assert [(t.lm, t.why) for t in cheap.routing] == [("dear", "dearer"), ("cheap", "answered")]
        assert cheap.usage["cost"] < written.usage["cost"]
        assert [(t.lm, t.why) for t in next_one.routing] == [
            ("dear", "dearer"), ("gone", "LMUnavailable"), ("dear", "answered"),
        ]  # fmt: skip
        assert [(t.lm, t.why) for t in written.routing] == [("dear", "answered")]
        assert ((refused.error or {})["type"], (refused.error or {})["code"]) == ("ConfigError", "DX105")
        assert "lm.unknown has no price" in (refused.error or {})["message"]
        assert {(r["lm"], r["reason"]) for r in bench.pool.status.full()["routes"]} >= {("cheap", "dearer")}  # type: ignore[union-attr]


@dataclass(eq=False)
class Chosen:
    """A call on its way through a pool, as the router sees it."""

    work: CallRequest
    lms: Any = None
    hedge: Any = None
    ran: float = 1.0
    ended_worker: bool = False
    batch: bool = False
    routing: list[Tried] = field(default_factory=list[Tried])


class Market:
    """A router, and models that write as many tokens as is said here."""

    def __init__(self, prices: Prices, writes: dict[str, int]) -> None:
        self.routing = Routing(PoolConfig("app", "pool", profiles=priced(prices)), lambda: 0.0)
        self.writes, self.lms = writes, tuple(prices)

    def asked(self, calls: int, *, signature: str = SIGNATURE) -> list[str]:
        """Which models calls of a program ask, in order."""
        return [self._ask(replace(spec(*self.lms), target=signature, signature=signature)) for _ in range(calls)]

    def _ask(self, wanted: CallSpec) -> str:
        chosen = Chosen(work(spec=wanted))
        self.routing.before(cast(Execution, chosen))
        lm = str(chosen.lms[0])
        usage = {"input_tokens": 100, "output_tokens": self.writes[lm]}
        record = CallRecord(
            "c", 1, 1, "", "", lm=lm, outputs={}, elapsed=0.1, usage=usage, routing=[Tried(lm, "answered", 0.1)]
        )
        self.routing.after(cast(Execution, chosen), record)
        return lm


def test_a_model_of_a_lower_price_that_writes_much_more_is_dearer_once_that_was_measured_of_the_program() -> None:
    prices: Prices = {"brief": {"input": 2.0, "output": 2.0}, "wordy": {"input": 1.0, "output": 1.0}}
    market = Market(prices, {"brief": 20, "wordy": 900})
    learning = market.asked(ENOUGH * LOOK_AGAIN)
    assert learning[0] == "wordy", "nothing is known but the price"
    assert learning.count("brief") == ENOUGH, "one call in so many finds out"
    assert set(market.asked(LOOK_AGAIN + 5)) == {"brief"}
    assert market.asked(1, signature="text -> summary") == ["wordy"], "of another program nothing was measured"


def test_of_equal_prices_the_first_as_written_is_asked_but_for_the_calls_that_find_out() -> None:
    same: Prices = {name: {"input": 1.0, "output": 2.0} for name in ("b", "a", "c")}
    asked = Market(same, dict.fromkeys(same, 50)).asked(40 * LOOK_AGAIN)
    assert (asked.count("a"), asked.count("c")) == (ENOUGH, ENOUGH)
    assert set(asked[-LOOK_AGAIN:]) == {"b"}
    free: Prices = {name: {"input": 0.0} for name in ("b", "a")}
    assert set(Market(free, dict.fromkeys(free, 50)).asked(3 * LOOK_AGAIN)) == {"b"}


def test_no_call_finds_out_what_a_model_writes_that_would_be_dearer_if_it_wrote_nothing() -> None:
    market = Market(
        {"dear": {"input": 50.0, "output": 50.0}, "cheap": {"input": 1.0, "output": 1.0}}, {"dear": 1, "cheap": 100}
    )
    assert set(market.asked(3 * LOOK_AGAIN)) == {"cheap"}


def test_the_cheapest_goes_behind_where_it_fails_much_more_often_than_the_others() -> None:
    market = Market({"dear": {"input": 9.0}, "cheap": {"input": 1.0}}, {"dear": 1, "cheap": 1})
    failed = CallRecord("c", 1, 1, "", "", lm="cheap", error={"type": "LMUnavailable"}, elapsed=0.1)
    answered = CallRecord("c", 1, 1, "", "", lm="cheap", outputs={}, elapsed=0.1)
    assert market.asked(1) == ["cheap"]
    for n in range(40):  # one in three: no breaker opens
        market.routing.after(cast(Execution, Chosen(work(spec=spec(*market.lms)))), failed if n % 3 == 0 else answered)
    chosen = Chosen(work(spec=spec(*market.lms)))
    market.routing.before(cast(Execution, chosen))
    assert list(chosen.lms) == ["dear", "cheap"]
    assert [(t.lm, t.why) for t in chosen.routing] == [("dear", "dearer"), ("cheap", "behind")]


def test_what_leaves_nothing_to_choose_is_refused_or_for_a_default_of_no_effect() -> None:
    for lms in ("main", ["main"], None):
        with pytest.raises(TopologyError, match="nothing to choose from"):
            predict("q -> a", choose="cheapest", **({} if lms is None else {"lm": lms}))
    with pytest.raises(DecodeError, match="choose is one of listed, cheapest"):
        CallSpec.read({**spec("a", "b").plain(), "choose": "fastest"})
    topology = Topology("choosing")
    events = topology.source("in")
    events.predict("q -> a", name="one", lm="a").sink("out.one")
    events.predict("q -> a", name="two", lm=["a", "b"]).sink("out.two")
    events.predict("q -> a", name="listed", lm=["a", "b"], choose="listed").sink("out.listed")
    found = {n.name: n.call.spec.choose for n in with_defaults(topology.graph, {"choose": "cheapest"}).calls}
    assert found == {"one": "listed", "two": "cheapest", "listed": "listed"}


def test_the_answer_is_that_of_an_equal_call_whichever_profile_comes_first() -> None:
    assert spec("a", "b").identity == replace(spec("a", "b"), choose="listed").identity
