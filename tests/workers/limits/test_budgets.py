"""What budgets promise, and what is shown and kept of what was used: in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from limits_world import APP, configured, run, world

from dspex.bus import subjects
from dspex.bus.errors import BudgetExceeded, CallError, Cancelled, NoBatchAnswer, RateLimited, WorkerLost
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.serving.limits import DAY, MINUTE, Budget, forget
from dspex.engine.client.status.limits import LimitRow, limit_rows


@pytest.mark.parametrize(
    ("budget", "other"),
    [
        (Budget("team", tenant="acme", tokens=900, per=MINUTE), {"tenant": "globex"}),
        (Budget("team", tenant="*", tokens=900, per=MINUTE), {"tenant": "globex"}),
        (Budget("team", topology="triage", tokens=900, per=MINUTE), {"topology": "billing"}),
        (Budget("team", profile="main", tokens=900, per=MINUTE), {"lm": ("other",)}),
        (Budget("team", tokens=900, per=0.0), {"run": "another"}),
        (Budget("team", tenant="acme", cost=0.0065, per=86400.0), {"tenant": None}),
        (Budget("team", tenant="*", requests=1, per=DAY), {"tenant": "globex"}),
        (Budget("team", profile="main", requests=1, per=0.0), {"run": "another"}),
    ],
)
def test_a_budget_that_is_spent_refuses_by_its_name_and_others_go_on(
    loop: VirtualLoop, budget: Budget, other: dict[str, Any]
) -> None:
    w = world(loop, configured(budget))
    options = {"tenant": "acme", "topology": "triage", "run": "r1"}

    async def main() -> None:
        first, second = await w.process(), await w.process()
        await w.call(first, tokens=500, **options)
        await asyncio.sleep(2)  # until the first has said what it used
        with pytest.raises(BudgetExceeded, match="budget team") as caught:
            await w.call(second, tokens=500, **options)
        assert not caught.value.retryable
        assert (caught.value.node or "").startswith("budgets.team")
        await w.call(second, tokens=500, **{**options, **other})

    run(w, main())


def test_a_call_for_which_a_budget_has_no_room_only_while_others_run_comes_again(loop: VirtualLoop) -> None:
    """What is reserved for them is more than they use: nothing is over yet, and no event need be a dead letter."""
    w = world(loop, configured(Budget("each", tokens=2_000, per=0.0)))

    async def main() -> None:
        first, second = await w.process(), await w.process()
        running = [asyncio.create_task(w.call(first, tokens=100, seconds=5.0)) for _ in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(RateLimited, match=r"calls that run may use up the budget each: .* are used or reserved") as caught:
            await w.call(second)
        assert (caught.value.retryable, caught.value.retry_after) == (True, 2.0)
        await asyncio.gather(*running)
        await asyncio.sleep(3)
        for _ in range(2):
            await w.call(second, tokens=700)
        with pytest.raises(BudgetExceeded):
            await w.call(second)

    run(w, main())


def test_of_several_profiles_those_are_left_out_that_have_no_room(loop: VirtualLoop) -> None:
    w = world(loop, configured(requests=(1, MINUTE)))

    async def main() -> list[str]:
        limits = await w.process()
        return [(await w.call(limits, lm=("main", "other"))).lm for _ in range(3)]

    assert run(w, main()) == ["main", "other", "other"]


def test_what_runs_have_used_is_forgotten_when_nothing_was_heard_of_them_for_long_and_of_tenants_with_its_window(
    loop: VirtualLoop,
) -> None:
    budgets = Budget("run", tokens=9e9, per=0.0), Budget("each", tenant="*", tokens=9e9), Budget("all", tokens=9e9)
    w = world(loop, configured(*budgets))

    async def main() -> list[set[str]]:
        limits, bus = await w.process(), w.server.connect()
        bucket = await bus.bucket(subjects.limits(APP))
        await w.call(limits, run="old", tenant="acme")
        await asyncio.sleep(100)
        await w.call(limits, run="new", tenant="globex")
        await asyncio.sleep(10)
        kept: list[set[str]] = []
        for now, seconds in ((w.now, DAY), (w.now + DAY, DAY + 200.0), (w.now + DAY, DAY + 50.0)):
            await forget(bus, APP, now, seconds)
            kept.append(set(await bucket.items("budget")))
        return kept

    today, tomorrow, later = run(w, main())
    assert today == tomorrow | {"budget.each.tenant.acme", "budget.each.tenant.globex"}
    assert tomorrow == later | {"budget.run.run.old"}
    assert later == {"budget.run.run.new", "budget.all"}


def test_of_tenants_that_strangers_name_a_number_is_remembered_the_ones_that_have_used_most(
    loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dspex.bus.serving.limits.MOST_TENANTS", 3)
    w = world(loop, configured(Budget("each", tenant="*", tokens=2_000)))

    async def main() -> set[str]:
        limits, bus = await w.process(), w.server.connect()
        for _ in range(2):
            await w.call(limits, tenant="acme", tokens=900)
        for n in range(9):
            await w.call(limits, tenant=f"stranger {n}", tokens=100 + n)
        await asyncio.sleep(10)
        await forget(bus, APP, w.now, DAY)
        with pytest.raises(BudgetExceeded):
            await w.call(limits, tenant="acme", tokens=900)
        return set(await (await bus.bucket(subjects.limits(APP))).items("budget"))

    kept = run(w, main())
    assert len(kept) == 3
    assert "budget.each.tenant.acme" in kept


def test_status_shows_what_is_used_of_limits_and_budgets_and_what_is_left(loop: VirtualLoop) -> None:
    w = world(loop, configured(Budget("team", tenant="*", cost=1.0), tokens=(10_000, MINUTE)))

    async def main() -> dict[tuple[str, str], LimitRow]:
        limits = await w.process()
        await w.call(limits, tokens=500, tenant="acme")
        asked = asyncio.create_task(w.call(limits, seconds=60))
        await asyncio.sleep(1)
        rows = await limit_rows(w.server.connect(), APP, w.now)
        asked.cancel()
        return {(row["lm"] or row["budget"] or "", row["what"]): row for row in rows}

    rows = run(w, main())
    tokens, cost, budget = rows["main", "tokens"], rows["main", "cost"], rows["team", "cost"]
    assert (tokens["used"], tokens["most"]) == (500, 10_000)
    assert 0 < tokens["reserved"] < 1500
    assert tokens["left"] == 10_000 - 500 - tokens["reserved"]
    assert (cost["used"], cost["most"], cost["left"]) == (0.00275, None, None)
    assert (budget["tenant"], budget["used"]) == ("acme", 0.00275)
    assert (tokens["ends"] or 0) <= 60 < 86400 - 100 < (budget["ends"] or 0)


def test_what_nobody_used_in_this_window_is_shown_as_nothing(loop: VirtualLoop) -> None:
    w = world(loop, configured(tokens=(10_000, MINUTE)))

    async def main() -> list[LimitRow]:
        await w.call(await w.process())
        await asyncio.sleep(100)
        return [row for row in await limit_rows(w.server.connect(), APP, w.now) if row["per"] == MINUTE]

    assert [(row["what"], row["used"], row["left"]) for row in run(w, main())] == [("tokens", 0.0, 10_000)]


def test_an_interactive_call_leaves_no_value_for_its_run(loop: VirtualLoop) -> None:
    w = world(loop, configured(Budget("each", tokens=9e9, per=0.0)))

    async def main() -> set[str]:
        bucket = await w.server.connect().bucket(subjects.limits(APP))
        await w.call(await w.process(), record=None)
        await asyncio.sleep(5)
        return set(await bucket.items())

    assert run(w, main()) == {"lm.main"}


def test_a_call_that_waits_for_a_batch_counts_in_budgets_when_it_is_answered_and_in_no_limit_of_requests(
    loop: VirtualLoop,
) -> None:
    """A provider's limits are of what is asked live; money is money."""
    budget = Budget("team", tokens=2000, per=MINUTE)
    w = world(loop, configured(budget, requests=(1, MINUTE), tokens=(600, MINUTE), concurrent=(1, 0.0)))

    async def main() -> None:
        limits = await w.process()
        await asyncio.gather(*(w.call(limits, batch=True, seconds=90.0) for _ in range(2)))
        await w.call(limits)  # the only one a minute that is asked live
        with pytest.raises(BudgetExceeded, match="budget team"):  # with what the batch used, in the minute of its answer
            await w.call(limits, batch=True)

    run(w, main())


@pytest.mark.parametrize("error", [NoBatchAnswer(""), WorkerLost(""), Cancelled("")], ids=lambda e: type(e).__name__)
def test_a_call_that_leaves_its_batch_without_an_answer_is_no_request_of_a_budget(loop: VirtualLoop, error: CallError) -> None:
    """It is asked live, goes on in another process, or is over: each restart of a pool would count all that wait."""
    w = world(loop, configured(Budget("team", requests=2)))

    async def main() -> None:
        limits = await w.process()
        for _ in range(3):
            await w.call(limits, batch=True, error=error)
        for _ in range(2):
            await w.call(limits, batch=True)
        with pytest.raises(BudgetExceeded, match="2 of 2 requests a day"):
            await w.call(limits, batch=True)

    run(w, main())
