"""Limits in a real pool with a stand-in for the model: what is refused is not asked, what is used is what the model said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pool_bench import APP, SIGNATURE, config, running, work

from dspex.bus import subjects
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.limits import DAY, Budget, Ledger
from dspex.workers.config import PoolConfig


def limited(url: str, *budgets: Budget, **options: Any) -> PoolConfig:
    plain = config(url, **options)
    profiles = {name: replace(profile, limits={"requests": (3.0, DAY)}) for name, profile in plain.profiles.items()}
    return replace(plain, profiles=profiles, budgets=budgets)


def native(text: str) -> Any:
    return work(text, spec=CallSpec("predict", SIGNATURE, SIGNATURE, route="native"))


@pytest.mark.asyncio
async def test_a_pool_asks_no_model_beyond_a_limit_and_counts_what_the_model_has_said(model: Any) -> None:
    async with running(limited(model.url, programs=())) as bench:
        first = await bench.ask(*[native(f"hello {n}") for n in range(3)])
        (refused,) = await bench.ask(native("one more"))
        assert [record.error for record in first] == [None] * 3
        assert (refused.error or {})["type"] == "RateLimited"
        assert 0 < (refused.error or {})["retry_after"] <= DAY
        assert model.requests == 3
        tokens = sum(r.usage["input_tokens"] + r.usage["output_tokens"] for r in first)
        bucket = await bench.bus.bucket(subjects.limits(APP))

        async def used() -> dict[str, float]:
            found = await bucket.get("lm.main")
            assert found is not None
            return {str(what): counted.used for what, counted in Ledger.read(found[0]).tallies.items()}

        await bench.pool.limits.stop()
        seen = await used()
        assert seen["requests"] == 3
        assert seen["tokens"] in (0, tokens), "in its minute"
        assert seen["cost"] == pytest.approx(sum(r.usage["cost"] for r in first))


@pytest.mark.long
@pytest.mark.asyncio
async def test_an_agent_is_counted_by_all_of_its_requests_and_a_pause_refuses_without_asking(model: Any) -> None:
    async with running(limited(model.url)) as bench:
        agent = CallSpec("react", "text -> reply", "text -> reply", tools=("sample:echo",), max_iters=2)
        (record,) = await bench.ask(work(spec=agent))
        assert record.usage["requests"] == model.requests > 1
        (busy, refused) = [(await bench.ask(work("standin:429=30", spec=_of("busy1"))))[0] for _ in range(2)]
        assert [(r.error or {})["type"] for r in (busy, refused)] == ["RateLimited"] * 2
        assert model.kinds["429"] == 1
        assert "its provider asked for a pause" in (refused.error or {})["message"]
        assert bench.pool.limits.cooling.pauses["busy1"] > 20
        (slowed,) = await bench.ask(work("standin:429=30", spec=replace(agent, lm=("busy2",))))
        assert (slowed.error or {})["type"] == "RateLimited"
        assert bench.pool.limits.cooling.pauses["busy2"] > 20, "of an agent, too"


@pytest.mark.asyncio
async def test_a_model_that_is_asked_because_another_is_down_has_room_for_it_first(model: Any) -> None:
    plain = limited(model.url, Budget("second", profile="busy1", tokens=3.0), programs=())
    down = replace(plain.profiles["main"], base_url="http://127.0.0.1:9/v1")
    spent = replace(plain.profiles["busy2"], limits={"requests": (1.0, DAY)})
    async with running(replace(plain, profiles={**plain.profiles, "main": down, "busy2": spent})) as bench:
        asked = [replace(_of("main"), lm=("main", "busy2")), replace(_of("main"), lm=("main", "busy2", "busy1"))]
        first, third = [(await bench.ask(work("hello", spec=spec)))[0] for spec in asked]
        assert ([tried.why for tried in first.routing], first.lm) == (["LMUnavailable", "answered"], "busy2")
        assert [(t.lm, t.why) for t in third.routing][1:] == [("busy2", "limited"), ("busy1", "answered")]
        (refused,) = await bench.ask(work("hello", spec=asked[1]))
        assert ((refused.error or {})["type"], model.requests) == ("BudgetExceeded", 2)
        assert "the budget second" in (refused.error or {})["message"]


@pytest.mark.asyncio
async def test_an_agent_makes_no_more_requests_than_the_budget_of_its_run_allows(model: Any) -> None:
    agent = CallSpec("react", "text -> reply", "text -> reply", tools=("sample:echo",), max_iters=6, lm=("busy1",))
    plain = limited(model.url, Budget("run", requests=2.0, per=0.0))
    free = {name: replace(profile, limits={}) for name, profile in plain.profiles.items()}
    async with running(replace(plain, profiles=free)) as bench:
        (record,) = await bench.ask(work(spec=agent))
        assert ((record.error or {})["type"], (record.error or {})["retryable"]) == ("BudgetExceeded", False)
        assert "the budget run is reached: budgets.run of run" in (record.error or {})["message"]
        assert "2 of 2 requests a run" in (record.error or {})["message"]
        assert model.requests == 2


def _of(lm: str) -> CallSpec:
    return CallSpec("predict", SIGNATURE, SIGNATURE, lm=(lm,), route="native")
