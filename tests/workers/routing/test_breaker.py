"""Breakers of profiles and of programs, and lists of profiles: on a pool with a real child, and models that fail for real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from pool_bench import APP, POOL, SIGNATURE, Bench, config, running, work
from structlog.testing import capture_logs
from waiting import until

from dspex.bus.records import CallRecord, CallRequest, Tried
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.cli.figures import blocks
from dspex.engine.client.status.status import status
from dspex.workers.config import Profile
from dspex.workers.pool.routing.breaker import Breaker, BreakerRule
from dspex.workers.pool.routing.routes import Routes
from dspex.workers.pool.routing.routing import TOO_LONG

OPEN = 3600.0  # seconds for which the breakers of these tests are open, but for SOON
SOON = ("half", "patient")  # profiles that are tried again at once
FAILURES = 3
NAMES = (*SOON, "shut", "down", "limited", "hung", "good", "slow", "fast", "cut", "told")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def many(shared_model: Any) -> AsyncIterator[Bench]:
    """A pool with a profile for each test, all of them of one model, but for "down", behind which nobody listens."""
    rule = {"failures": FAILURES, "within": 3600.0, "open": OPEN}
    profiles = {name: Profile(name, "openai/stand-in", base_url=shared_model.url, breaker=rule) for name in NAMES}
    profiles |= {name: replace(profiles[name], breaker={**rule, "open": 0.1}) for name in SOON}
    profiles["down"] = Profile("down", "openai/stand-in", base_url="http://127.0.0.1:9/v1", breaker=rule)
    async with running(config(shared_model.url, profiles=profiles, lm="good", programs=("lookups:*",))) as found:
        yield found


def call(text: str, *lms: str, **options: Any) -> CallRequest:
    return work(text, spec=CallSpec("predict", SIGNATURE, SIGNATURE, route="native", lm=lms), **options)


def error(record: CallRecord) -> str:
    return str((record.error or {}).get("type", ""))


def breaker(bench: Bench, name: str) -> Any:
    rows: Any = bench.pool.status.full()["lms"]
    return next((row for row in rows if name in (row.get("lm"), row.get("program"))), {"breaker": "closed"})


async def state(bench: Bench, name: str, wanted: str) -> None:
    await until(lambda: breaker(bench, name)["breaker"] == wanted)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_profile_that_fails_often_in_a_row_is_not_asked(many: Bench, shared_model: Any) -> None:
    for n in range(FAILURES - 1):
        assert error((await many.ask(call(f"standin:500 first {n}", "shut")))[0]) == "LMUnavailable"
    assert error((await many.ask(call("an answer in between", "shut")))[0]) == ""
    for n in range(FAILURES):
        assert error((await many.ask(call(f"standin:500 then {n}", "shut")))[0]) == "LMUnavailable"
    before = shared_model.requests
    (refused,) = await many.ask(call("while it is open", "shut"))
    assert error(refused) == "CircuitOpen"
    assert refused.error is not None
    assert refused.error["retryable"]
    assert 0 < refused.error["retry_after"] <= OPEN
    assert shared_model.requests == before, "the model is not asked"
    assert error((await many.ask(call("another profile", "good")))[0]) == ""


@pytest.mark.asyncio(loop_scope="module")
async def test_when_its_time_is_over_one_call_tries_it_and_all_may_ask_it_that_this_one_found_well(
    many: Bench, shared_model: Any
) -> None:
    await many.ask(*(call(f"standin:500 half {n}", "half") for n in range(FAILURES)))
    await state(many, "half", "half-open")
    shared_model.gate.clear()
    first = asyncio.create_task(many.ask(call("standin:gate the one that tries", "half")))
    await until(lambda: shared_model.texts["standin:gate the one that tries"])
    others = await many.ask(call("one more", "half"), call("and one more", "half"))
    assert [error(r) for r in others] == ["CircuitOpen"] * 2
    shared_model.gate.set()
    assert error((await first)[0]) == ""
    assert breaker(many, "half")["breaker"] == "closed"
    assert error((await many.ask(call("one more", "half")))[0]) == ""


@pytest.mark.asyncio(loop_scope="module")
async def test_the_call_that_tries_opens_it_again_where_it_fails_and_lets_another_try_where_it_tells_nothing(
    many: Bench, shared_model: Any
) -> None:
    await many.ask(*(call(f"standin:500 patient {n}", "patient") for n in range(FAILURES)))
    await state(many, "patient", "half-open")
    with capture_logs() as logs:
        assert error((await many.ask(call("standin:500 once more", "patient")))[0]) == "LMUnavailable"
    assert [line["state"] for line in logs if line["event"] == "breaker"] == ["open"]
    await state(many, "patient", "half-open")
    assert error((await many.ask(call("standin:400 tells nothing", "patient")))[0]) == "LMRefused"
    assert error((await many.ask(call("the next one tries", "patient")))[0]) == ""


@pytest.mark.asyncio(loop_scope="module")
async def test_a_call_that_waits_for_a_moment_only_does_not_close_a_model_to_others(many: Bench) -> None:
    for n in range(FAILURES + 1):
        assert error((await many.ask(call(f"standin:hang {n}", "cut", timeout=0.05)))[0]) == "CallTimeout"
    assert breaker(many, "cut")["breaker"] == "closed"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_program_that_hangs_is_not_run_for_a_while_and_what_it_raises_counts_nothing(many: Bench) -> None:
    def enrich(name: str, **inputs: Any) -> CallRequest:
        limit = TOO_LONG + 0.5 if name == "hangs" else 60.0
        return work(spec=CallSpec("enrich", f"lookups:{name}", ""), inputs=inputs, timeout=limit)

    raised = await many.ask(*(enrich("raises") for _ in range(8)))
    assert {error(r) for r in raised} == {"ProgramError"}
    hung = await many.ask(*(enrich("hangs") for _ in range(5)))
    assert {error(r) for r in hung} == {"CallTimeout"}
    (refused,) = await many.ask(enrich("hangs"))
    assert error(refused) == "CircuitOpen"
    assert breaker(many, "lookups:hangs")["breaker"] == "open"
    assert error((await many.ask(enrich("raises")))[0]) == "ProgramError", "others run"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_program_that_ends_its_process_by_call_after_call_is_not_run_for_a_while_and_others_are(many: Bench) -> None:
    def enrich(name: str, **options: int) -> CallRequest:
        return work(spec=CallSpec("enrich", f"lookups:{name}", ""), inputs={"name": "x"}, **options)

    for _ in range(BreakerRule().failures):
        for number in (2, 1):  # of one call the first attempt alone counts: an event is no program
            assert error((await many.ask(enrich("ends_its_process", try_number=number)))[0]) == "WorkerLost"
    assert error((await many.ask(enrich("ends_its_process")))[0]) == "CircuitOpen"
    assert error((await many.ask(enrich("raises")))[0]) == "ProgramError", "others run"
    assert not many.pool.children.failed


# -- lists ----------------------------------------------------------------------------------------------------------------
def routes(record: CallRecord) -> list[tuple[str, str]]:
    return [(t.lm, t.why) for t in record.routing]


@pytest.mark.asyncio(loop_scope="module")
async def test_of_a_list_the_next_profile_answers_at_once_and_one_that_is_down_is_soon_left_out(many: Bench) -> None:
    for n in range(FAILURES):
        (record,) = await many.ask(call(f"list {n}", "down", "good"))
        assert (error(record), record.lm) == ("", "good")
        assert routes(record) == [("down", "LMUnavailable"), ("good", "answered")]
    (record,) = await many.ask(call("list", "down", "good"))
    assert routes(record) == [("down", "open"), ("good", "answered")]
    (record,) = await many.ask(call("alone", "down"))
    assert error(record) == "CircuitOpen"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_model_that_limits_its_callers_is_left_for_the_next_of_the_list(many: Bench) -> None:
    (record,) = await many.ask(call("standin:429=9x1 the first time", "limited", "good"))
    assert routes(record) == [("limited", "RateLimited"), ("good", "answered")]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_model_that_hangs_leaves_the_next_one_its_part_of_the_time(many: Bench) -> None:
    (record,) = await many.ask(call("standin:hangx1 once", "hung", "good", timeout=6.0))
    assert routes(record) == [("hung", "CallTimeout"), ("good", "answered")]
    assert 2900 <= record.routing[0].ms < 6000
    assert record.elapsed < 6.0


@pytest.mark.asyncio(loop_scope="module")
async def test_a_profile_that_is_much_slower_is_asked_behind_the_others_and_looked_at_now_and_then(many: Bench) -> None:
    await many.ask(*(call(f"standin:slow=3 {n}", "slow") for n in range(12)))
    await many.ask(*(call(f"quick {n}", "fast") for n in range(12)))
    records = await many.ask(*(call(f"either {n}", "slow", "fast") for n in range(20)))
    assert {r.lm for r in records} == {"fast", "slow"}
    assert sum(r.lm == "slow" for r in records) == 1, "one in twenty takes the list as it is written"
    behind = next(r for r in records if r.lm == "fast")
    assert [Tried(t.lm, t.why) for t in behind.routing] == [Tried("slow", "behind"), Tried("fast", "answered")]


def test_once_a_breaker_is_closed_again_no_further_call_is_the_one_that_tries() -> None:
    one = Breaker(BreakerRule(failures=1, open=1.0))
    assert one.failed(0.0)
    assert not one.begin(0.5), "open: nobody tries"
    assert one.begin(2.0)
    assert one.succeeded(2.0)
    assert not one.begin(2.0)


def test_a_call_that_its_first_profile_answered_went_no_other_way_whatever_was_left_out_behind_that() -> None:
    routes, lists = (
        Routes(),
        {"a": [Tried("b", "open"), Tried("a", "answered")], "b": [Tried("a", "limited"), Tried("b", "answered")]},
    )
    for lm, routing in lists.items():
        routes.count(call("either", "a", "b"), CallRecord("c", 1, 1, "", "", outputs={}, lm=lm, routing=routing))
    assert {row["lm"]: row["reason"] for row in routes.rows()} == {"a": "ok", "b": "limited"}


@pytest.mark.asyncio(loop_scope="module")
async def test_status_tells_the_state_of_each_profile_and_which_way_calls_went(many: Bench) -> None:
    await many.ask(*(call("standin:500 of status", "told") for _ in range(FAILURES)))
    await many.ask(call("of status", "told", "good"))
    found = await status(many.bus, APP, {}, [POOL])
    told = next(row for row in found["lms"] if row.get("lm") == "told")
    assert (told["breaker"], told["calls"], told["errors"]) == ("open", FAILURES, FAILURES)
    assert 0 < told["retry_after"] <= OPEN
    mine = {(r["node"], r["route"], r["lm"], r["reason"]): r["calls"] for r in found["routes"] if r["lm"] in ("told", "good")}
    assert mine["classify", "native", "told", "LMUnavailable"] == FAILURES
    assert mine["classify", "native", "good", "open"] >= 1
    shown = [row for block in blocks(found, routes=True) for row in block.rows]
    assert any(row.get("model") == "lm.told" and row.get("breaker") == "open" for row in shown)
    assert any(row.get("calls of") == "triage/classify" and row.get("reason") == "open" for row in shown)
    quiet = [row.get("model") for block in blocks(found) for row in block.rows]
    assert "lm.told" in quiet, "one that is open is always shown"
    assert "lm.good" not in quiet
