"""A second request where an answer takes longer than usual, and a limit for its beginning: on a pool with a real child."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import pytest_asyncio
from pool_bench import SIGNATURE, Bench, config, running, work
from waiting import until

from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.records import CallRecord, CallRequest, Outputs, Tried
from dspex.bus.serving.call_spec import CallSpec
from dspex.workers.answerers.attempt import Attempt
from dspex.workers.answerers.hedging import Hedging
from dspex.workers.config import Profile
from dspex.workers.pool.execution import Execution
from dspex.workers.pool.routing.routing import Routing

NAMES = ("usual", "few", "late", "never", "other")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def many(shared_model: Any) -> AsyncIterator[Bench]:
    """A pool with profiles that tests ask apart, so that each has measured what it measures."""
    known = config(shared_model.url, programs=())
    main = known.profiles["main"]
    profiles: dict[str, Profile] = {"main": main, **{name: replace(main, name=name) for name in NAMES}}
    profiles |= {n: replace(main, name=n, limits={"concurrent": (most, 0.0)}) for n, most in (("one", 1.0), ("two", 2.0))}
    async with running(replace(known, profiles=profiles)) as found:
        yield found


def call(text: str, *lms: str, timeout: float = 30.0, **of_spec: Any) -> CallRequest:
    spec = CallSpec("predict", SIGNATURE, SIGNATURE, lm=lms, **{"route": "native", **of_spec})
    return work(text, spec=spec, timeout=timeout)


def routes(record: CallRecord) -> list[tuple[str, str]]:
    assert record.error is None, record.error
    return [(t.lm, t.why) for t in record.routing]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_call_that_takes_longer_than_usual_is_asked_twice_and_the_first_answer_counts(
    many: Bench, shared_model: Any
) -> None:
    (before,) = await many.ask(call("nothing is measured yet", "usual", hedge="p95"))
    assert routes(before) == []
    await many.ask(*(call(f"usual {n}", "usual") for n in range(20)))
    (found,) = await many.ask(call("standin:hangx1 longer", "usual", hedge="p95"))
    assert routes(found) == [("usual", "hedged")]
    assert found.elapsed < 25.0, "it does not wait for its timeout, 30"
    assert shared_model.texts["standin:hangx1 longer"] == 2
    await until(lambda: shared_model.running == 0)  # the request that hung was ended
    (alone,) = await many.ask(call("it is paid for", "usual"))
    assert found.usage["requests"] == 2
    assert found.usage["input_tokens"] > 1.8 * alone.usage["input_tokens"], "the prompt was read twice"
    assert found.usage["output_tokens"] < 1.5 * alone.usage["output_tokens"]
    assert found.usage["cost"] == (found.usage["input_tokens"] + 2 * found.usage["output_tokens"]) / 1e6


@pytest.mark.asyncio(loop_scope="module")
async def test_a_second_request_that_fails_harms_nothing(many: Bench, shared_model: Any) -> None:
    await many.ask(*(call(f"late {n}", "late") for n in range(12)))
    text = "the second one fails"
    shared_model.fault(text, "gate")
    shared_model.gate.clear()
    asked = asyncio.create_task(many.ask(call(text, "late", hedge="p50")))
    await until(lambda: shared_model.texts[text] == 1)
    shared_model.fault(text, "500")
    await until(lambda: shared_model.texts[text] == 2)
    shared_model.gate.set()
    (record,) = await asked
    assert routes(record) == [("late", "hedged")]
    assert shared_model.texts[text] == 2


@pytest.mark.asyncio(loop_scope="module")
async def test_a_model_is_asked_a_second_time_only_where_its_limits_have_room_for_that(many: Bench, shared_model: Any) -> None:
    for name in ("one", "two"):
        for n in range(12):  # one after the other: it is one at once that has room
            await many.ask(call(f"limited {name} {n}", name))
    for name, requests in (("one", 1), ("two", 2)):
        text = f"as many as {name} at once"
        shared_model.fault(text, "gate")
        shared_model.gate.clear()
        asked = asyncio.create_task(many.ask(call(text, name, hedge="p50")))
        await until(lambda: shared_model.running == requests)  # noqa: B023
        await many.ask(call("standin:slow=0.5 longer than usual", "other"))
        (third,) = await many.ask(call("one more", name))
        assert (third.error or {})["type"] == "RateLimited"
        shared_model.gate.set()
        (record,) = await asked
        assert (shared_model.texts[text], record.usage["requests"]) == (requests, requests)
        assert (await many.ask(call("its places are free again", name)))[0].error is None


@pytest.mark.asyncio(loop_scope="module")
async def test_few_calls_are_asked_twice_however_slow_the_model_has_become(many: Bench, shared_model: Any) -> None:
    await many.ask(*(call(f"few {n}", "few") for n in range(20)))
    calls = [call(f"standin:slow=0.2 now {n}", "few", hedge="p50") for n in range(40)]
    records = await many.ask(*calls)
    assert sum(bool(routes(r)) for r in records) <= 1 + 0.05 * len(calls) + 1
    assert sum(shared_model.texts[c.inputs["text"]] for c in calls) <= len(calls) + 4


def test_a_model_that_was_quick_for_long_is_not_asked_twice_for_all_once_it_is_slow() -> None:
    loop, asked = VirtualLoop(), [0]
    hedging, profile = Hedging(), Profile("main", "openai/stand-in")

    async def calls(number: int, seconds: float) -> None:
        async def ask(attempt: Attempt) -> Outputs:
            asked[0] += 1
            await asyncio.sleep(seconds)
            return {}

        for _ in range(number):
            await hedging.ask(ask, Attempt(call("hello"), None, lm="main"), 0.5, profile)

    for number, seconds in ((2000, 0.1), (100, 2.0)):
        asked[0] = 0
        task = loop.create_task(calls(number, seconds))
        loop.advance(1000.0)
        assert task.done()
    loop.close()
    assert 100 < asked[0] <= 100 + 5 + 5 + 1


@dataclass(eq=False)
class Asked:
    """A call on its way through a pool, as the router sees it."""

    work: CallRequest
    lms: Any = None
    hedge: Any = None
    ran: float = 1.0
    ended_worker: bool = False
    batch: bool = False
    routing: list[Tried] = field(default_factory=list[Tried])


def test_how_long_agents_take_says_nothing_of_how_long_a_model_does() -> None:
    """Else a model would be asked again, and blamed for a call that hung, after as long as an agent takes in all."""
    routing = Routing(config("", programs=()), lambda: 0.0)

    def made(kind: str, seconds: float, error: str = "") -> Any:
        spec = CallSpec(kind, "text -> reply", "text -> reply", hedge="p95")
        asked = Asked(work(spec=spec))
        execution = cast(Execution, asked)
        routing.before(execution)
        failed = {"type": error} if error else None
        routing.after(execution, CallRecord("c", 1, 1, "", "", lm="main", elapsed=seconds, error=failed))
        return asked.hedge

    for _ in range(12):
        made("predict", 0.1)
        made("react", 60.0)
    assert made("predict", 0.1) == {"main": 0.1}
    for _ in range(3):
        made("predict", 5.0, "CallTimeout")
    assert routing.lms["main"].measured.errors == 3
    (row,) = [row for row in routing.rows() if row["lm"] == "main"]
    assert (row["calls"], row["errors"], row["p50"]) == (28, 3, 0.1)


@pytest.mark.parametrize(("seconds", "state"), [(0.5, "open"), (0.01, "closed")], ids=["as usual", "a moment only"])
def test_a_model_that_begins_no_answer_is_not_asked_however_long_its_answers_take(seconds: float, state: str) -> None:
    """Its answers begin after 0.2 s, and take 30. Who waits for a moment only does not close it to others."""
    known = config("", programs=())
    routing = Routing(replace(known, profiles={"main": replace(known.profiles["main"], breaker={})}), lambda: 0.0)

    def made(*tried: Tried, error: str = "") -> None:
        execution = cast(Execution, Asked(work(spec=CallSpec("predict", "a -> b", "a -> b", first_token_timeout=seconds))))
        routing.before(execution)
        failed = {"type": error} if error else None
        routing.after(execution, CallRecord("c", 1, 1, "", "", lm="main", error=failed, routing=list(tried)))

    for _ in range(12):
        made(Tried("main", "began", 200.0), Tried("main", "answered", 30_000.0))
    for _ in range(5):
        made(Tried("main", "silent", seconds * 1000), error="CallTimeout")
    (row,) = [row for row in routing.rows() if row["lm"] == "main"]
    assert (row["breaker"], row["calls"], row["p95"]) == (state, 17 if state == "open" else 12, 30.0)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_model_that_does_not_begin_in_time_is_left_for_the_next(many: Bench, shared_model: Any) -> None:
    (found,) = await many.ask(call("standin:hangx1 begin", "never", "other", first_token_timeout=3.0))
    assert routes(found) == [("never", "silent"), ("other", "began"), ("other", "answered")]
    assert 3000 <= found.routing[0].ms < 30_000
    (alone,) = await many.ask(call("standin:hang begin", "never", first_token_timeout=0.1))
    assert (alone.error or {})["type"] == "CallTimeout"
    assert "did not begin to answer" in (alone.error or {})["message"]
    await until(lambda: shared_model.running == 0)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_model_that_began_in_time_may_take_as_long_as_the_call(many: Bench, shared_model: Any) -> None:
    (found,) = await many.ask(call("standin:trickle=0.3 it takes its time", "other", first_token_timeout=3.0))
    assert found.error is None
    assert found.elapsed > 3.0
    assert routes(found) == [("other", "began"), ("other", "answered")]
    assert found.routing[0].ms < 3000 < found.routing[1].ms


@pytest.mark.asyncio(loop_scope="module")
async def test_what_dspy_must_answer_has_no_limit_for_its_beginning_and_says_so(many: Bench) -> None:
    spec = CallSpec("predict", "text, past: dspy.History -> reply", "text, past: dspy.History -> reply", route="auto")
    asked = work(spec=replace(spec, first_token_timeout=1.0), inputs={"text": "a", "past": {"messages": []}})
    (record,) = await many.ask(asked)
    assert "first_token_timeout cannot be" in (record.error or {})["message"]
