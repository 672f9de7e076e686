"""Limits of a call that makes many requests, such as an agent or the job of an optimizer: each is counted by itself."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from limits_world import Asked, configured, run, work, world

from dspex.bus.errors import RateLimited
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.records import CallRecord, Usage
from dspex.bus.serving.limits import MINUTE
from dspex.workers.pool.execution import Execution


def test_what_a_long_call_has_used_counts_while_it_runs_and_holds_it_and_others(loop: VirtualLoop) -> None:
    """An agent, or the job of an optimizer: each of its requests is journaled, and is counted by itself."""
    w = world(loop, configured(tokens=(3_000.0, MINUTE)))
    one = Usage(400, 100, 0.001, requests=1)

    async def main() -> None:
        limits, other = await w.process(), await w.process()
        job = cast(Execution, Asked(work()))
        found = limits.before(job)
        assert found is None or await found is None
        for _ in range(6):
            await limits.room(job)
            await asyncio.sleep(1.0)
            limits.spent(job, one)
        with pytest.raises(RateLimited, match=r"lm\.main") as refused:
            await limits.room(job)
        assert 0 < (refused.value.retry_after or 0) < MINUTE
        with pytest.raises(RateLimited):
            await w.call(other)
        await asyncio.sleep(refused.value.retry_after or 0.0)
        for _ in range(2):
            await limits.room(job)
            limits.spent(job, one)
        usage = {"input_tokens": 8 * 400, "output_tokens": 8 * 100, "requests": 8, "cost": 0.008}
        limits.after(job, CallRecord("c", 1, 1, "", "", outputs={}, lm="main", usage=usage))
        await asyncio.sleep(3.0)
        tallies = (await w.ledger("lm.main")).tallies
        assert (tallies["tokens"].used, tallies["requests"].used) == (1_000.0, 2.0)
        assert tallies["cost"].used == pytest.approx(0.008)

    run(w, main())


def test_requests_that_fail_reserve_nothing_for_those_behind_them(loop: VirtualLoop) -> None:
    """A program that asks again where its model fails: it makes one request at a time."""
    w = world(loop, configured(tokens=(3_000.0, MINUTE)))
    one = Usage(400, 100, 0.001, requests=1)

    async def main() -> None:
        limits = await w.process()
        job = cast(Execution, Asked(work()))
        found = limits.before(job)
        assert found is None or await found is None
        await limits.room(job)
        limits.spent(job, one)
        for _ in range(20):
            await limits.room(job)
            limits.failed(job)
        await limits.room(job)
        limits.spent(job, one)

    run(w, main())


def test_what_was_counted_where_it_was_spent_is_not_counted_by_who_goes_on(loop: VirtualLoop) -> None:
    """An agent that is handed on goes on from its journal, and its record has what all have cost."""
    w = world(loop, configured(tokens=(1e9, MINUTE * 60)))

    async def main() -> None:
        pools = [await w.process() for _ in range(2)]
        parts = [Usage(400, 100, 0.01, requests=3), Usage(700, 200, 0.02, requests=5)]
        for limits, usage, inherited in zip(pools, parts, [None, parts[0]]):
            asked = cast(Execution, Asked(work(), inherited=inherited))
            found = limits.before(asked)
            assert found is None or await found is None
            limits.after(asked, CallRecord("c", 1, 1, "", "", outputs={}, lm="main", usage=dict(vars(usage))))
        await asyncio.sleep(5)
        tallies = (await w.ledger("lm.main")).tallies
        assert (tallies["tokens"].used, tallies["requests"].used) == (900, 5)
        assert tallies["cost"].used == pytest.approx(0.02)

    run(w, main())


def test_a_long_call_that_waits_for_room_asks_for_no_more_than_one_request(loop: VirtualLoop) -> None:
    """However often it has asked: else it would go on only once it can have the whole limit."""
    w = world(loop, configured(tokens=(3_000.0, 60 * MINUTE)))
    one = Usage(400, 100, 0.001, requests=1)

    async def main() -> None:
        limits = await w.process()
        job = cast(Execution, Asked(work()))
        found = limits.before(job)
        assert found is None or await found is None
        await limits.room(job)
        limits.spent(job, one)
        other = asyncio.create_task(w.call(limits, tokens=10, seconds=20.0, text="x" * 5_000))
        await asyncio.sleep(0)
        refused = 0
        while not other.done():
            with pytest.raises(RateLimited):
                await limits.room(job)
            refused += 1
            await asyncio.sleep(1.0)
        await limits.room(job)
        assert refused > 10

    run(w, main())
