"""What limits of profiles and budgets promise over many pools: in virtual time, on the memory bus, with processes that die."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random
from typing import Any, cast

import pytest
from limits_world import APP, Asked, World, configured, run, work, world

from dspex.bus import subjects
from dspex.bus.errors import RateLimited
from dspex.bus.memory.server import Faults
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.records import CallRecord, Usage
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.limits import MINUTE, Budget, Ledger, Limit, Metered
from dspex.workers.limits.step import Limits
from dspex.workers.pool.execution import Execution


async def slot(w: World, calls: Random, until: float, refused: list[float]) -> None:
    """One slot that has always something to do, in a process that is killed now and then."""
    while w.now < until:
        limits = await w.process()
        killed = w.now + calls.uniform(5, 40)

        async def live(limits: Limits = limits) -> None:
            while w.now < until:
                try:
                    await w.call(limits, tokens=calls.randint(200, 900), seconds=calls.uniform(0.2, 2))
                except RateLimited as error:
                    refused.append(error.retry_after or 0.0)
                    await asyncio.sleep(error.retry_after or 0.1)

        try:
            async with asyncio.timeout(killed - w.now):
                await live()
        except TimeoutError:
            await w.kill(limits)


@pytest.mark.parametrize("seed", range(2))
def test_a_limit_over_four_pools_that_are_killed_is_overshot_by_at_most_the_calls_in_flight(
    loop: VirtualLoop, seed: int
) -> None:
    w = world(loop, configured(tokens=(10_000, MINUTE)), seed=seed, faults=Faults(delay=0.01))
    refused: list[float] = []

    async def main() -> None:
        end = w.now + 3 * MINUTE
        await asyncio.gather(*(slot(w, Random(seed * 10 + n), end, refused) for n in range(4)))

    run(w, main())
    full = [w.spent[minute] for minute in sorted(w.spent)[:3]]
    assert max(full) <= 10_000 + 4 * 900
    assert min(full) >= 7_000, "nor is much of it left"
    assert refused
    assert max(refused) <= MINUTE


def test_what_a_killed_process_held_counts_until_the_window_ends(loop: VirtualLoop) -> None:
    w = world(loop, configured(tokens=(1_500, MINUTE)))

    async def main() -> None:
        first, second = await w.process(), await w.process()
        dying = asyncio.create_task(w.call(first, seconds=100))
        await asyncio.sleep(0.1)
        with pytest.raises(RateLimited, match=r"lm\.main: .* of 1,500 tokens a minute are used or reserved"):
            await w.call(second)
        dying.cancel()
        await w.kill(first)
        await asyncio.sleep(30)
        with pytest.raises(RateLimited) as caught:
            await w.call(second)
        assert (caught.value.retry_after or 0) <= 30
        await asyncio.sleep(30)
        await w.call(second)

    run(w, main())


def test_what_was_reserved_and_not_used_can_be_used_by_another_pool_a_moment_later(loop: VirtualLoop) -> None:
    w = world(loop, configured(tokens=(1_500, MINUTE)))

    async def main() -> None:
        first, second = await w.process(), await w.process()
        await w.call(first, tokens=300)
        await asyncio.sleep(2)
        await w.call(second, tokens=300)
        ledger = await w.ledger("lm.main")
        assert 300 <= ledger.tallies["tokens"].used <= 600
        await asyncio.sleep(3)
        assert (await w.ledger("lm.main")).tallies["tokens"].used == 600
        assert (await w.ledger("lm.main")).tallies["tokens"].shares == {}

    run(w, main())


def test_requests_cost_and_calls_at_once_are_limited_too(loop: VirtualLoop) -> None:
    for limits, most in (({"requests": (3, MINUTE)}, 3), ({"cost": (0.02, 86400.0)}, 3), ({"concurrent": (2, 0.0)}, 2)):
        w = world(loop, configured(**cast("Any", limits)))

        async def main(w: World = w) -> list[object]:
            pools = [await w.process() for _ in range(2)]
            return await asyncio.gather(*(w.call(pools[n % 2]) for n in range(6)), return_exceptions=True)

        outcomes = run(w, main())
        assert sum(isinstance(outcome, CallRecord) for outcome in outcomes) == most, limits
        assert {type(o) for o in outcomes} == {CallRecord, RateLimited}


def test_calls_at_once_of_a_dead_process_are_free_again_a_while_later(loop: VirtualLoop) -> None:
    w = world(loop, configured(concurrent=(1, 0.0)))

    async def main() -> None:
        first, second = await w.process(), await w.process()
        dying = asyncio.create_task(w.call(first, seconds=1000))
        await asyncio.sleep(10)
        dying.cancel()
        await w.kill(first)
        with pytest.raises(RateLimited):
            await w.call(second)
        await asyncio.sleep(20)
        await w.call(second)

    run(w, main())


def test_a_call_that_is_estimated_over_the_whole_limit_is_made_alone(loop: VirtualLoop) -> None:
    w = world(loop, configured(tokens=(400, MINUTE)))

    async def main() -> None:
        first, second = await w.process(), await w.process()
        asked = asyncio.create_task(w.call(first, tokens=300))
        await asyncio.sleep(0.1)
        with pytest.raises(RateLimited):
            await w.call(second)
        await asked

    run(w, main())


def test_a_large_call_that_finds_no_room_holds_up_no_small_one(loop: VirtualLoop) -> None:
    w = world(loop, configured(tokens=(4_000, MINUTE)))

    async def main() -> None:
        limits = await w.process()
        running = [asyncio.create_task(w.call(limits, seconds=30.0)) for _ in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(RateLimited):
            await w.call(limits, text="x" * 12_000)
        assert (await w.call(limits, seconds=0.0)).error is None
        await asyncio.gather(*running)

    run(w, main())


def test_a_lost_answer_to_a_write_settles_nothing_twice(loop: VirtualLoop) -> None:
    w = world(loop, configured(tokens=(1e9, MINUTE * 60)), faults=Faults(unsettled=0.3, duplicate=0.1))

    async def main() -> None:
        pools = [await w.process() for _ in range(3)]
        for n in range(60):
            await w.call(pools[n % 3], tokens=100, seconds=0.4)
        await asyncio.sleep(30)
        tally = (await w.ledger("lm.main")).tallies["tokens"]
        assert (tally.settled, tally.shares) == (6000.0, {})

    run(w, main())


# -- a pause that a provider asks for
def test_after_a_429_no_pool_asks_the_profile_until_the_pause_ends(loop: VirtualLoop) -> None:
    w = world(loop, configured())

    async def main() -> None:
        first, second = await w.process(), await w.process()
        asked = cast(Execution, Asked(work()))
        assert first.before(asked) is None
        error = RateLimited("slow down", retry_after=20.0).as_dict()
        first.after(asked, CallRecord("c", 1, 1, "", "", error=error, lm="main"))
        await asyncio.sleep(0.1)
        for limits in (first, second):
            with pytest.raises(RateLimited, match="pause") as caught:
                await w.call(limits)
            assert caught.value.retry_after == pytest.approx(19.9)
            await w.call(limits, lm=("other",), seconds=0.0)
        await asyncio.sleep(20)
        await w.call(first)
        await w.call(second)

    run(w, main())


def test_what_a_program_says_of_a_service_of_its_own_is_no_pause_of_its_model(loop: VirtualLoop) -> None:
    w = world(loop, configured())

    async def main() -> None:
        limits = await w.process()
        spec = CallSpec("program", "shop:Agent", "text -> reply")
        for node, paused in ((None, False), ("ask", True)):
            asked = cast(Execution, Asked(work(node="ask", topology="shop", spec=spec)))
            assert limits.before(asked) is None
            error = RateLimited("slow down", node=node, retry_after=20.0).as_dict()
            limits.after(asked, CallRecord("c", 1, 1, "shop", "ask", error=error, lm="main"))
            assert ("main" in limits.cooling.pauses) == paused

    run(w, main())


def test_what_is_no_pause_stops_nobody(loop: VirtualLoop) -> None:
    w = world(loop, configured())

    async def main() -> None:
        limits, bus = await w.process(), w.server.connect()
        for said in (b"", b"[]", b'{"lm":"main","seconds":-1}', b'{"lm":"main"}', b'{"lm":"main","seconds":NaN}'):
            await bus.send(subjects.cooling(APP), said)
        await asyncio.sleep(0.1)
        assert (await w.call(limits)).lm == "main"

    run(w, main())


def test_a_value_that_no_pool_wrote_is_counted_anew(loop: VirtualLoop) -> None:
    w = world(loop, configured(tokens=(2_000, MINUTE)))

    async def main() -> None:
        bucket = await w.server.connect().bucket(subjects.limits(APP))
        await bucket.put("lm.main", b'{"about":{},"limits":{},"seen":{},"at":0,"tallies":{"tokens":{"window":-1}}}')
        assert (await w.call(await w.process())).error is None

    run(w, main())


# -- what no call may do to a limit
def test_a_call_that_wants_less_than_nothing_makes_no_room_for_others(loop: VirtualLoop) -> None:
    w = world(loop, configured(tokens=(1_500, MINUTE)))

    async def main() -> None:
        limits = await w.process()
        spec = replace(work().spec, config={"max_tokens": -1_000_000})
        asked = asyncio.create_task(w.call(limits, seconds=30.0, spec=spec, tokens=0))
        await asyncio.sleep(0.1)
        outcomes = await asyncio.gather(*(w.call(limits, tokens=700) for _ in range(10)), return_exceptions=True)
        assert sum(isinstance(outcome, CallRecord) for outcome in outcomes) <= 2
        await asked

    run(w, main())


def test_the_next_profile_of_a_list_is_asked_when_its_part_is_reserved_and_what_the_first_had_is_free(
    loop: VirtualLoop,
) -> None:
    """`main` is down. `other` has room for two such calls, and then `third` is asked; its provider wants a pause."""
    plain = configured(tokens=(1_000.0, MINUTE))
    other = replace(plain.profiles["other"], limits={"tokens": (2_000.0, MINUTE)})
    third = replace(plain.profiles["other"], name="third")
    w = world(loop, replace(plain, profiles={**plain.profiles, "other": other, "third": third}))

    async def begun(limits: Limits, lm: str) -> Execution:
        asked = cast(Execution, Asked(work(lm=("main", "other", "third"))))
        found = limits.before(asked)
        assert found is None or await found is None
        await limits.further(asked, lm, None)
        return asked

    async def refused(limits: Limits, asked: Execution, lm: str) -> str:
        with pytest.raises(RateLimited) as raised:
            await limits.further(asked, lm, Usage(5, 5, 0.0, requests=1))
        return raised.value.message

    async def main() -> None:
        limits = await w.process()
        first, second = [await begun(limits, "other") for _ in range(2)]  # each has all of `main`, and gives it back
        with pytest.raises(RateLimited, match=r"lm\.other"):
            await begun(limits, "other")
        asked = await begun(limits, "third")
        pause = CallRecord("c", 1, 1, "", "", error=RateLimited("slow", retry_after=500.0).as_dict(), lm="third")
        limits.after(asked, pause)
        assert "lm.third" in await refused(limits, first, "third")
        used = {"input_tokens": 300, "output_tokens": 300, "requests": 2, "cost": 0.0}
        for one in (first, second):
            limits.after(one, CallRecord("c", 1, 1, "", "", outputs={}, lm="other", usage=used if one is second else None))
        await asyncio.sleep(3.0)
        taken = {lm: (await w.ledger(f"lm.{lm}")).tallies["tokens"].settled for lm in ("main", "other")}
        assert taken == {"main": 0.0, "other": 610.0}

    run(w, main())


def test_of_costs_that_are_over_nothing_is_left(loop: VirtualLoop) -> None:
    """Sums of costs are not exact: what is left of them would have been written again each second, for ever."""
    w = world(loop, configured(Budget("each", cost=5.0, per=0.0)))

    async def main() -> list[bool]:
        limits = await w.process()
        texts = ["x" * length for length in (1101, 4663, 517, 2090, 966, 4059)]
        calls = (w.call(limits, text=text, seconds=n + 1) for n, text in enumerate(texts))
        await asyncio.gather(*calls)
        await asyncio.sleep(10)
        return [account.idle for account in limits._accounts.values()]  # pyright: ignore[reportPrivateUsage]

    assert all(run(w, main()))


def test_a_window_that_was_begun_by_a_clock_that_is_ahead_holds_up_nobody(loop: VirtualLoop) -> None:
    w = world(loop, configured(tokens=(1_500, MINUTE)))

    async def main() -> None:
        bucket = await w.server.connect().bucket(subjects.limits(APP))
        window = int(w.now // MINUTE) + 60
        tallies = {"tokens": Metered(window, settled=1_400.0)}
        ahead = Ledger({"lm": "main"}, {"tokens": Limit(1_500, MINUTE)}, cast("Any", tallies), {}, w.now)
        await bucket.put(ahead.key, ahead.pack())
        assert (await w.call(await w.process())).error is None
        assert (await w.ledger("lm.main")).tallies["tokens"].window == window - 60

    run(w, main())
