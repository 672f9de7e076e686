"""What limits of profiles and budgets promise over many pools: in virtual time, on the memory bus, with processes that die."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import pytest

from dspex.bus import subjects
from dspex.bus.errors import BudgetExceeded, RateLimited
from dspex.bus.memory.server import Faults, MemoryBus, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.port import StreamConfig
from dspex.bus.records import CallRecord, CallRequest, Tried
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.limits import MINUTE, Budget, Ledger
from dspex.bus.serving.server_clock import ServerClock
from dspex.workers.config import PoolConfig, Profile
from dspex.workers.limits.step import Limits
from dspex.workers.pool.execution import Execution

APP = "test"
START = 1_767_225_600.0  # a full minute, and a full day
PRICE = {"input": 1.0, "output": 10.0}


@dataclass(eq=False)
class Asked:
    """A call on its way through a pool, as its step sees it."""

    work: CallRequest
    lms: list[str] | None = None
    ran: float = 1.0
    routing: list[Tried] = field(default_factory=list[Tried])


@dataclass
class World:
    """A server, and the processes of pools at it. `spent`: tokens by the minute in which the model was asked."""

    loop: VirtualLoop
    server: MemoryServer
    config: PoolConfig
    spent: Counter[int] = field(default_factory=Counter[int])
    requests: Counter[int] = field(default_factory=Counter[int])
    running: int = 0
    peak: int = 0
    buses: dict[Limits, MemoryBus] = field(default_factory=dict[Limits, MemoryBus])

    async def process(self, config: PoolConfig | None = None) -> Limits:
        bus = self.server.connect()
        await bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
        clock = ServerClock(bus, subjects.stream(APP))
        await clock.ask()
        limits = Limits(bus, config or self.config, f"p{len(self.buses) + 1}", clock)
        self.buses[limits] = bus
        await limits.start()
        return limits

    async def kill(self, limits: Limits) -> None:
        """Nothing that it does reaches the server any more."""
        await self.buses[limits].close()

    @property
    def now(self) -> float:
        return self.server.now

    async def call(self, limits: Limits, *, tokens: int = 500, seconds: float = 1.0, **options: Any) -> CallRecord:
        """One call of the model. Raises the refusal."""
        asked = Asked(work(**options))
        execution = cast(Execution, asked)
        found = limits.before(execution)
        if isinstance(found, Coroutine):
            await found
        self.spent[int(self.now // MINUTE)] += tokens
        self.requests[int(self.now // MINUTE)] += 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.running -= 1
        lm = asked.lms[0] if asked.lms else "main"
        cost = (tokens // 2 * PRICE["input"] + (tokens - tokens // 2) * PRICE["output"]) / 1e6
        usage = {"input_tokens": tokens // 2, "output_tokens": tokens - tokens // 2, "requests": 1, "cost": cost}
        record = CallRecord("c", 1, 1, "", "", outputs={}, lm=lm, usage=usage)
        limits.after(execution, record)
        return record

    async def ledger(self, key: str) -> Ledger:
        found = await (await self.server.connect().bucket(subjects.limits(APP))).get(key)
        assert found is not None
        return Ledger.read(found[0])


def work(text: str = "x" * 400, *, run: str = "r", lm: tuple[str, ...] = (), **options: Any) -> CallRequest:
    spec = CallSpec("predict", "text -> reply", "text -> reply", lm=lm, config={"max_tokens": 600})
    known: dict[str, Any] = {"topology": "", "node": "", "run": run, "spec": spec, "inputs": {"text": text}}
    return CallRequest("c", 1, 1, **{**known, **options})


def configured(*budgets: Budget, **limits: tuple[float, float]) -> PoolConfig:
    profiles = {
        "main": Profile("main", "openai/a", price=PRICE, limits=cast("Any", limits)),
        "other": Profile("other", "openai/b", price=PRICE),
    }
    return PoolConfig(APP, "light", slots=1, profiles=profiles, budgets=budgets)


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.close()


def world(loop: VirtualLoop, config: PoolConfig, **options: Any) -> World:
    return World(loop, MemoryServer(**options), config)


def run(w: World, main: Coroutine[Any, Any, Any], seconds: float = 3600.0) -> Any:
    task = w.loop.create_task(main)
    w.loop.settle()
    for _ in range(int(seconds)):
        if task.done():
            break
        w.loop.advance(1.0)
    return task.result()


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


# -- budgets
@pytest.mark.parametrize(
    ("budget", "other"),
    [
        (Budget("team", tenant="acme", tokens=900, per=MINUTE), {"tenant": "globex"}),
        (Budget("team", tenant="*", tokens=900, per=MINUTE), {"tenant": "globex"}),
        (Budget("team", topology="triage", tokens=900, per=MINUTE), {"topology": "billing"}),
        (Budget("team", profile="main", tokens=900, per=MINUTE), {"lm": ("other",)}),
        (Budget("team", tokens=900, per=0.0), {"run": "another"}),
        (Budget("team", tenant="acme", cost=0.0065, per=86400.0), {"tenant": None}),
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
        with pytest.raises(BudgetExceeded, match="budget team") as caught:
            await w.call(second, tokens=500, **options)
        assert not caught.value.retryable
        assert (caught.value.node or "").startswith("budgets.team")
        await w.call(second, tokens=500, **{**options, **other})

    run(w, main())


def test_of_several_profiles_those_are_left_out_that_have_no_room(loop: VirtualLoop) -> None:
    w = world(loop, configured(requests=(1, MINUTE)))

    async def main() -> list[str]:
        limits = await w.process()
        return [(await w.call(limits, lm=("main", "other"))).lm for _ in range(3)]

    assert run(w, main()) == ["main", "other", "other"]


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
        await bucket.put("lm.main", b'{"about":{},"limits":{},"seen":{},"tallies":{"tokens":{"window":-1}}}')
        assert (await w.call(await w.process())).error is None

    run(w, main())
