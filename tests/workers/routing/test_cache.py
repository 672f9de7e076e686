"""Answers that are given again: on pools with real children, a model that counts its requests, and the bucket they share."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from pool_bench import APP, POOL, SIGNATURE, Bench, config, running, work
from sealed_app import CARD, KEYS
from waiting import until

from dspex.bus import subjects
from dspex.bus.memory.server import Faults, MemoryServer
from dspex.bus.message import new_id
from dspex.bus.port import Bus, StreamConfig
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.keys.keyring import Keyring
from dspex.bus.serving.server_clock import ServerClock
from dspex.engine.log.housekeeping import forget_answers
from dspex.workers.config import PoolConfig
from dspex.workers.pool.cache.kept import CachedAnswer
from dspex.workers.pool.cache.shared import SharedAnswers

HOUR = 3600.0


def cached(url: str, **options: Any) -> PoolConfig:
    return config(url, programs=("lookups:*",), **options)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one(shared_model: Any) -> AsyncIterator[Bench]:
    """A pool of an application with a bucket for answers."""
    server = MemoryServer()
    await server.connect().bucket(subjects.cache(APP))
    async with running(cached(shared_model.url), server.connect()) as found:
        yield found


def call(text: str, cache: float = HOUR, **options: Any) -> CallRequest:
    of_spec = {name: options.pop(name) for name in ("config", "adapter", "lm", "route") if name in options}
    spec = CallSpec("predict", SIGNATURE, SIGNATURE, **{"route": "native", "cache": cache, **of_spec})
    return work(text, spec=spec, **options)


def error(record: CallRecord) -> str:
    return str((record.error or {}).get("type", ""))


@pytest.mark.asyncio(loop_scope="module")
async def test_an_equal_call_gets_the_answer_again_and_costs_nothing(one: Bench, shared_model: Any) -> None:
    (first,) = await one.ask(call("a card was stolen"))
    (again,) = await one.ask(call("a card was stolen"))
    assert (first.route, first.cached_from) == ("native", "")
    assert first.usage["input_tokens"] > 0
    assert (again.route, again.cached_from, again.outputs) == ("cache", first.call, first.outputs)
    assert (again.lm, again.program, again.dspy_version) == (first.lm, first.program, first.dspy_version)
    assert (again.usage["input_tokens"], again.usage["output_tokens"], again.usage["cost"]) == (0, 0, 0.0)
    assert (again.call, again.number, again.event) != (first.call, None, b""), "it is a record of its own"
    assert shared_model.texts["a card was stolen"] == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_a_call_that_differs_in_anything_that_matters_is_made(one: Bench, shared_model: Any) -> None:
    text = "what differs"
    different = [
        call(text),
        call(text, config={"temperature": 0.5}),
        call(text, adapter="json"),
        call(text, lm=("main", "main")),
        call(f"{text} "),
        work(text, spec=CallSpec("predict", "text -> urgency: int", "text -> urgency: int", route="native", cache=HOUR)),
        work(text, spec=CallSpec("chain_of_thought", SIGNATURE, SIGNATURE, route="native", cache=HOUR)),
        work(text, spec=CallSpec("predict", SIGNATURE, SIGNATURE, "Be kind.", route="native", cache=HOUR)),
    ]
    records = [(await one.ask(each))[0] for each in different]
    assert [(error(r), r.route) for r in records] == [("", "native")] * len(different)
    assert [(await one.ask(replace(each, call=new_id())))[0].route for each in different] == ["cache"] * len(different)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_call_without_cache_is_made_and_so_is_one_that_wants_a_younger_answer(one: Bench, shared_model: Any) -> None:
    await one.ask(call("how old"))
    assert [r.route for r in await one.ask(call("how old", cache=0.0), call("how old", cache=1e-6))] == ["native"] * 2
    assert shared_model.texts["how old"] == 3
    (again,) = await one.ask(call("how old"))
    assert again.route == "cache"


@pytest.mark.asyncio(loop_scope="module")
async def test_equal_calls_at_once_are_one_request(one: Bench, shared_model: Any) -> None:
    records = await one.ask(*(call("standin:slow=0.1 at once") for _ in range(50)))
    assert [error(r) for r in records] == [""] * 50
    assert sum(r.route == "native" for r in records) == 1
    assert shared_model.texts["standin:slow=0.1 at once"] == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_what_ends_the_call_that_others_wait_for_does_not_end_them(one: Bench, shared_model: Any) -> None:
    text = "standin:gate given up"
    shared_model.gate.clear()
    first = call(text, record=None)
    inbox = one.bus.inbox(lambda message: None)
    await one.send(first, inbox.subject)
    await until(lambda: shared_model.texts[text] == 1)
    async with asyncio.TaskGroup() as group:
        others = group.create_task(one.ask(*(call(text) for _ in range(3))))
        await until(lambda: one.pool.executions.preparing == 3)
        one.pool.executions.cancel(first.call)
        await until(lambda: shared_model.texts[text] == 2)
        shared_model.gate.set()
    assert [error(r) for r in others.result()] == [""] * 3
    assert shared_model.texts[text] == 2, "one of them is made, and the others get its answer"
    inbox.close()


@pytest.mark.asyncio
async def test_a_worker_that_dies_with_the_call_that_others_wait_for_costs_one_request_more(model: Any) -> None:
    server, text = MemoryServer(), "standin:gate killed"
    await server.connect().bucket(subjects.cache(APP))
    async with running(cached(model.url, slots=8), server.connect()) as bench:
        first, *others = [call(text) for _ in range(5)]
        await bench.put(first)
        await until(lambda: model.texts[text] == 1)
        await bench.put(*others)
        await until(lambda: bench.pool.executions.preparing == 4)
        os.kill(bench.pool.children.children[0].pid, signal.SIGKILL)
        await until(lambda: model.texts[text] == 2)
        model.gate.set()
        records = await bench.records(5)
    assert sorted(error(r) for r in records) == [""] * 4 + ["WorkerLost"]
    assert model.texts[text] == 2


@pytest.mark.asyncio(loop_scope="module")
async def test_an_error_is_never_given_again(one: Bench) -> None:
    (failed,) = await one.ask(call("standin:500x1 once"))
    assert error(failed) == "LMUnavailable"
    (made,) = await one.ask(call("standin:500x1 once"))
    assert (error(made), made.route) == ("", "native")
    (unfit,) = await one.ask(call("standin:nonsensex1 never right"))
    assert error(unfit) == "InvalidOutput"
    assert (await one.ask(call("standin:nonsensex1 never right")))[0].route == "native"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_function_that_enriches_is_not_run_again_while_its_answer_is_young(one: Bench) -> None:
    def enrich(route: str = "auto") -> CallRequest:
        return work(spec=CallSpec("enrich", "lookups:imported", "", route=route, cache=HOUR), inputs={"n": 1})

    (first,) = await one.ask(enrich())
    (again,) = await one.ask(enrich())
    assert (again.route, again.cached_from, again.program) == ("cache", first.call, first.program)
    (made,) = await one.ask(enrich(route="worker"))
    assert made.route != "cache", "route=worker asks the worker"


# -- the bucket -----------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_processes_of_a_pool_share_their_answers(model: Any) -> None:
    server = MemoryServer()
    await server.connect().bucket(subjects.cache(APP))
    async with running(cached(model.url), server.connect()) as first:
        (made,) = await first.ask(call("shared"))
    async with running(cached(model.url), server.connect()) as second:
        await until(lambda: second.pool.work.clock.known)
        (found,) = await second.ask(call("shared"))
    assert (found.route, found.cached_from, found.outputs) == ("cache", made.call, made.outputs)
    assert model.texts["shared"] == 1


@pytest.mark.asyncio
async def test_a_call_that_a_pool_gives_up_as_it_rests_holds_up_no_equal_one_later(model: Any) -> None:
    server = MemoryServer()
    await server.connect().bucket(subjects.cache(APP))
    async with running(cached(model.url), server.connect()) as bench:
        await until(lambda: bench.pool.work.clock.known)
        server.luck.faults = Faults(delay=0.3)  # so that it still looks into the bucket when the pool rests
        started = bench.pool.executions.start(first := call("rested"), first.pack(), lambda record: None)
        assert bench.pool.executions.preparing == 1
        await bench.pool.executions.drain(0.0)
        await bench.pool.executions.stop()
        assert (started.over, bench.pool.executions.preparing) == (True, 0)
        server.luck.faults = Faults()
        (made,) = await bench.ask(call("rested"))
    assert (error(made), made.route) == ("", "native")


async def answers(bus: Bus, *, keys: Sequence[bytes] = (), sealing: Keyring | None = None, pool: str = POOL) -> SharedAnswers:
    bus.sealing = sealing
    clock = ServerClock(bus, subjects.stream(APP))
    await clock.ask()
    return SharedAnswers(bus, APP, pool, clock, keys)


@pytest_asyncio.fixture
async def shelf() -> AsyncIterator[MemoryServer]:
    server = MemoryServer()
    await server.connect().bucket(subjects.cache(APP))
    await server.connect().ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
    yield server


KEY = b"k" * 16
ANSWER = CachedAnswer({"intent": "lost_card", "card": CARD}, "main", "predict#1", "3.4", "call-1", 0.0, 100)


async def put(shared: SharedAnswers, session: str | None = None) -> None:
    shared.put(KEY, HOUR, session, ANSWER)
    await shared.drain(5.0)


async def got(shared: SharedAnswers, session: str | None = None, key: bytes = KEY, ttl: float = HOUR) -> str | None:
    found = await shared.get(key, ttl, session)
    return None if found is None else found[0].call


@pytest.mark.asyncio
async def test_what_is_no_answer_to_this_call_is_not_given(shelf: MemoryServer) -> None:
    shared, bucket = await answers(shelf.connect()), await shelf.connect().bucket(subjects.cache(APP))
    await put(shared)
    assert await got(shared) == "call-1"
    assert await got(shared, ttl=HOUR / 2) is None, "it lies where answers of another age are"
    assert await got(await answers(shelf.connect(), pool="other")) is None
    (key,) = await bucket.items()
    assert key.split(".")[:2] == ["12", POOL], "answers of less than 2^12 s lie together"
    right = (await bucket.items())[key][0]
    await bucket.put(subjects.cache_key(POOL, HOUR, b"x" * 16), right)
    assert await got(shared, key=b"x" * 16) is None, "an answer to another call"
    for value in (b"", b"\xff", b"\x80", right[:-1], right.replace(b"lost_card", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff")):
        await bucket.put(key, value)
        assert await got(shared) is None, value


@pytest.mark.asyncio
async def test_a_pool_that_signs_its_records_believes_no_answer_without_its_signature(shelf: MemoryServer) -> None:
    await put(await answers(shelf.connect()))
    mine = await answers(shelf.connect(), keys=[b"1" * 32])
    assert await got(mine) is None
    await put(mine)
    assert await got(mine) == "call-1"
    assert await got(await answers(shelf.connect(), keys=[b"2" * 32])) is None


@pytest.mark.asyncio
async def test_where_payloads_are_sealed_answers_are_too_and_go_with_their_session(shelf: MemoryServer) -> None:
    bus = shelf.connect()
    ring = Keyring(bus, APP, "KEY", KEYS)
    await ring.establish(1)
    await put(await answers(shelf.connect()), session="s1")
    sealing = await answers(bus, sealing=ring)
    assert await got(sealing, "s1") is None, "in clear text nobody who seals wrote it"
    await put(sealing, session="s1")
    bucket = await bus.bucket(subjects.cache(APP))
    assert not any(CARD.encode() in value for value, _ in (await bucket.items()).values())
    assert await got(sealing, "s1") == "call-1"
    assert await got(sealing, "s2") is None
    await ring.forget("s1")
    assert await got(sealing, "s1") is None


@pytest.mark.asyncio
async def test_the_answers_of_a_forgotten_session_are_given_to_nobody_whichever_process_has_made_them(
    shelf: MemoryServer, model: Any
) -> None:
    bus = shelf.connect()
    bus.sealing = ring = Keyring(bus, APP, "KEY", KEYS)
    await ring.establish(1)
    sessions, bucket = ("s1", "s2", None), await bus.bucket(subjects.cache(APP))

    async def shared(answers: int) -> bool:
        return len(await bucket.items()) == answers

    async with running(config(model.url, programs=()), bus) as bench:
        await until(lambda: bench.pool.work.clock.known)
        for number, session in enumerate(sessions, 1):
            (first,) = await bench.ask(call("a card was stolen", session=session))
            await until(lambda: shared(number))  # noqa: B023
            (again,) = await bench.ask(call("a card was stolen", session=session))
            assert (first.route, again.route) == ("native", "cache"), session
        await ring.forget("s1")
        after = [(await bench.ask(call("a card was stolen", session=session)))[0].route for session in sessions]
    assert after == ["native", "cache", "cache"]


@pytest.mark.asyncio
async def test_answers_that_no_call_may_be_given_are_removed_from_the_bucket() -> None:
    server = MemoryServer()
    bus = server.connect()
    bucket = await bus.bucket(subjects.cache(APP))
    await bucket.put(subjects.cache_key(POOL, HOUR, b"a" * 16), b"")
    await bucket.put(subjects.cache_key(POOL, 30 * 86400.0, b"b" * 16), b"")
    await forget_answers(bus, APP, server.now + HOUR)
    assert len(await bucket.items()) == 2
    await forget_answers(bus, APP, server.now + 2 * HOUR)
    (left,) = await bucket.items()
    assert left.startswith("22.")
