"""Calls that wait for a provider's batch: gathered, found again after a death, and asked live where no batch has an answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
import pytest_asyncio
from broken.batches import BatchServer
from pool_bench import APP, POOL, SIGNATURE, config
from pool_bench import work as asked
from standin import urgency
from waiting import until

from dspex.bus import subjects
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.port import StreamConfig
from dspex.bus.records import CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.workers.answer import Answer
from dspex.workers.answerers.router import Router
from dspex.workers.child.journal import CallJournal
from dspex.workers.config import Profile
from dspex.workers.journal.keeping import Journal, Journals

pytestmark = pytest.mark.asyncio(loop_scope="module")
BATCHED = CallSpec("predict", SIGNATURE, SIGNATURE, lane="batch")
GATHER = 20.0  # seconds: batches of these tests are full before
LONG = 30.0  # seconds that a call may wait: no test takes as long


def work(text: str, **options: Any) -> CallRequest:
    return asked(text, **{"spec": BATCHED, "batch": 3600.0, "opened": 1e9, **options})


@dataclass
class World:
    """A provider, and processes that ask it, one after the other. Between them there is nothing but the journals of calls."""

    model: BatchServer
    bus: MemoryBus
    router: Router
    calls: int = 0  # of a batch of this process
    at: int = 1  # of the request that is served
    over: bool = False  # whether nobody goes on with calls that are cancelled

    async def ask(self, *items: CallRequest, seconds: float = LONG) -> list[Answer]:
        """What this process answers; another one, where batches are to have another number of calls."""
        if self.calls != len(items):
            await self.another(len(items))
        return await asyncio.gather(*(self._ask(item, seconds) for item in items))

    async def _ask(self, item: CallRequest, seconds: float) -> Answer:
        child = CallJournal(1, lambda frame: parent.take(frame))
        parent = Journal(Journals(self.bus, APP, POOL), item, self.at, child.take, print)
        try:
            return await self.router.run(item, None, print, limit=seconds, journal=child, batch=True, over=lambda: self.over)
        finally:
            parent.close()

    async def dies(self, *items: CallRequest, when: str) -> None:
        """Ask, and end as a killed process does, as soon as the provider was asked this."""
        before = self.model.asked[when]
        running = asyncio.create_task(self.ask(*items))
        await until(lambda: self.model.asked[when] > before or running.done())
        await self.killed(running)

    async def killed(self, running: asyncio.Future[Any]) -> None:
        """The end of the process. The next one is another."""
        await self.router.batches.close()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await self.another(self.calls)

    async def noted(self, count: int) -> bool:
        """Whether the journals have so many parts."""
        found = await self.bus.scan(subjects.requests(APP), [subjects.request_pattern(APP)], start=1, stop=10_000)
        return len(found) == count

    async def another(self, calls: int) -> None:
        """Another process."""
        await self.router.close()
        self.router, self.calls = made(self.model, calls), calls


def made(model: BatchServer, calls: int, lm: str = "") -> Router:
    rule = {"gather": GATHER, "poll": 0.01, "calls": calls}
    price = {"input": 1e6, "output": 2e6, "batch": 0.5}
    profile = Profile("main", "openai/stand-in", base_url=model.url, price=price, batch=rule)
    profiles = {"new": replace(profile, name="new", model="openai/newer"), "main": profile}
    return Router(config(model.url, profiles=profiles, programs=(), lm=lm).for_child())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[BatchServer]:
    async with BatchServer() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def world(server: BatchServer) -> AsyncIterator[World]:
    fresh = BatchServer()
    for name in (
        "held",
        "ends",
        "answered",
        "why",
        "refusing",
        "lost",
        "missing",
        "slow",
        "asked",
        "files",
        "batches",
        "texts",
    ):
        setattr(server, name, getattr(fresh, name))
    bus = MemoryServer().connect()
    await bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
    await bus.ensure_stream(StreamConfig(subjects.requests(APP), [subjects.request_pattern(APP)]))
    one = World(server, bus, made(server, 1))
    yield one
    await one.router.close()
    await bus.close()


def error(answer: Answer) -> dict[str, Any]:
    assert answer.error is not None, answer.outputs
    return dict(answer.error)


def types(answers: list[Answer]) -> list[str]:
    return [str(answer.error["type"]) if answer.error else "" for answer in answers]


def right(answers: list[Answer], items: list[CallRequest]) -> bool:
    """Whether each has the outputs that a live call would have."""
    return [(a.outputs or {}).get("urgency") for a in answers] == [urgency(i.inputs["text"]) for i in items]


async def test_calls_are_gathered_into_one_batch_and_cost_what_a_batch_costs(world: World) -> None:
    items = [work(f"message {n}") for n in range(200)]
    answers = await world.ask(*items)
    assert types(answers) == [""] * 200
    assert right(answers, items)
    (id,) = world.model.batches
    assert sorted(world.model.lines(id)) == sorted(f"{item.call}.1" for item in items)
    (first, *_), usage = answers, answers[0].usage
    assert usage is not None
    assert usage.cost == (usage.input_tokens + 2 * usage.output_tokens) * 0.5
    assert (first.route, first.lm, usage.requests, first.program) == ("batch", "main", 1, BATCHED.program)
    assert first.requests == {"made": 1, "journal": 0, "missed": 0}  # so that its engine knows that it has a journal
    assert world.model.requests == 0


async def test_a_batch_has_no_more_calls_than_its_profile_allows(world: World) -> None:
    await world.another(4)
    items = [work(f"message {n}") for n in range(12)]
    world.calls = len(items)
    assert right(await world.ask(*items), items)
    assert [len(world.model.lines(id)) for id in world.model.batches] == [4, 4, 4]


@pytest.mark.parametrize("what", ["upload", "create", "get", "content"])
@pytest.mark.parametrize("how", ["503", "429", "lost"])
async def test_what_a_provider_cannot_do_now_is_tried_again_and_one_batch_is_made(world: World, what: str, how: str) -> None:
    world.model.refusing[what].extend([how, how])
    world.model.refusing["list"].append("503")
    items = [work("one"), work("two")]
    assert right(await world.ask(*items), items)
    assert len(world.model.batches) == 1


@pytest.mark.parametrize("when", ["upload", "create", "get", "content"])
async def test_after_a_death_at_any_moment_nothing_is_paid_twice(world: World, when: str) -> None:
    """A batch that was listed is joined; what was not made is made."""
    world.model.held = when == "get"
    items = [work("one"), work("two"), work("three")]
    await world.dies(*items, when=when)
    before = len(world.model.batches)
    world.model.held = False
    assert right(await world.ask(*items), items)
    assert len(world.model.batches) == max(before, 1) == 1
    assert world.model.texts == {"one": 1, "two": 1, "three": 1}


async def test_a_death_between_making_a_batch_and_noting_it_is_no_second_batch(world: World) -> None:
    """It is found among the provider's, by the key that was noted before."""
    world.model.refusing["create"].append("lost")  # it is made, and nobody here knows
    world.model.refusing["list"].extend(["503"] * 10_000)
    items = [work("one"), work("two")]
    await world.dies(*items, when="list")
    world.model.refusing.clear()
    assert right(await world.ask(*items), items)
    assert (len(world.model.batches), world.model.asked["create"]) == (1, 1)


async def test_a_batch_is_joined_by_its_id_where_its_provider_lists_none(world: World) -> None:
    world.model.held = True
    world.model.refusing["list"].extend(["404"] * 10)
    items = [work("one"), work("two")]
    running = asyncio.ensure_future(world.ask(*items))
    await until(lambda: world.noted(6))  # of each call a claim, a key and an id
    await world.killed(running)
    world.model.held = False
    assert right(await world.ask(*items), items)
    assert len(world.model.batches) == 1


async def test_another_try_after_a_lost_worker_joins_the_batch_of_the_try_before(world: World) -> None:
    world.model.held = True
    item = work("one")
    await world.dies(item, when="get")
    world.model.held, world.at = False, 2
    again = replace(item, try_number=2, record=item.record and item.record._replace(id="another"))
    assert right(await world.ask(again), [again])
    assert [world.model.lines(id) for id in world.model.batches] == [[f"{item.call}.1"]]


async def test_a_call_stays_in_its_batch_when_its_pool_asks_another_profile_by_now(world: World) -> None:
    """Its answer is paid for; only what is not in a batch goes to the new one."""
    world.model.held = True
    items = [work("one"), work("two")]
    await world.dies(*items, when="get")
    world.model.held = False
    await world.router.close()
    world.router = made(world.model, 2, lm="new")
    answers = await world.ask(*items)
    assert right(answers, items)
    assert ([answer.lm for answer in answers], len(world.model.batches)) == (["main"] * 2, 1)
    assert [answer.lm for answer in await world.ask(work("three"), work("four"))] == ["new"] * 2


async def test_near_the_deadline_a_call_is_asked_live_and_a_batch_without_calls_is_cancelled(world: World) -> None:
    world.model.held = True
    answers = await world.ask(work("one"), work("two"), seconds=1.0)
    assert types(answers) == ["NoBatchAnswer"] * 2
    await until(lambda: world.model.cancelled == list(world.model.batches) != [])
    assert answers[0].usage is not None
    assert answers[0].usage.requests == 0


async def test_a_batch_that_its_provider_has_not_looked_at_is_cancelled_when_its_calls_are_asked_live(world: World) -> None:
    """It may look at it for hours, and would then answer what nobody waits for."""
    world.model.refusing["get"] = deque(["500"] * 1000)
    assert types(await world.ask(work("one"), work("two"), seconds=1.0)) == ["NoBatchAnswer"] * 2
    await until(lambda: world.model.cancelled == list(world.model.batches) != [])


@pytest.mark.parametrize("over", [False, True], ids=["deadline", "cancelled"])
@pytest.mark.parametrize("when", ["upload", "create", "lost", "full"])
async def test_a_batch_all_of_whose_calls_leave_while_it_is_made_is_not_paid_for(world: World, when: str, over: bool) -> None:
    """It is not made, or cancelled when it is known that it was."""
    step, said, world.over, world.model.held = {"upload": "upload"}.get(when, "create"), asyncio.Event(), over, True
    world.model.slow[step] = said
    if when == "lost":
        world.model.refusing["create"].append("lost")
    if when == "full":  # and is made again
        world.model.ends, world.model.why = deque(["failed"]), "token_limit_exceeded"
        world.model.slow = {}
    running = asyncio.ensure_future(world.ask(work("one"), work("two"), seconds=LONG if over else 1.5))
    if when == "full":
        await until(lambda: [b["status"] for b in world.model.batches.values()] == ["failed"])
        world.model.slow[step] = said
    await until(lambda: world.model.asked[step] == 1 + (when == "full"))
    if over:
        running.cancel()
    await asyncio.wait([running])
    assert world.model.cancelled == []
    said.set()
    made = [] if when == "upload" else [list(world.model.batches)[-1]]
    await until(lambda: world.model.cancelled == made)
    world.over, world.model.held, world.model.slow = False, False, {}
    other = work("three")
    assert right(await world.ask(other), [other])
    assert [batch["status"] for batch in world.model.batches.values()].count("completed") == 1


async def test_a_batch_is_cancelled_as_soon_as_its_provider_can_and_says_how_many_calls_it_has(world: World) -> None:
    """A process that joined it, and that the provider did not answer yet, does not know whether others wait for it, too."""
    world.model.held = True
    items = [work("one"), work("two")]
    await world.dies(*items, when="get")
    world.model.refusing["get"], world.model.refusing["cancel"] = deque(["500"] * 10_000), deque(["503"])
    running = asyncio.ensure_future(world.ask(*items, seconds=1.0))
    assert types(await running) == ["NoBatchAnswer"] * 2
    assert world.model.cancelled == []
    world.model.refusing["get"].clear()
    await until(lambda: world.model.cancelled == list(world.model.batches) != [])


async def test_a_batch_that_others_wait_for_elsewhere_is_not_cancelled(world: World) -> None:
    world.model.held = True
    items = [work("one"), work("two")]
    await world.dies(*items, when="get")
    assert types(await world.ask(items[0], seconds=0.5)) == ["NoBatchAnswer"]
    world.model.held = False
    assert right(await world.ask(items[1]), items[1:])
    assert world.model.cancelled == []


async def test_a_batch_whose_calls_are_handed_back_is_not_cancelled(world: World) -> None:
    world.model.held = True
    running = asyncio.ensure_future(world.ask(work("one"), work("two")))
    await until(lambda: any(row.status == "in_progress" for row in world.router.batches.rows()))
    running.cancel()
    await until(lambda: world.router.batches.rows() == [])
    await world.killed(running)
    assert world.model.cancelled == []


@pytest.mark.parametrize("end", ["expired", "cancelled"])
async def test_what_a_batch_did_not_come_to_is_asked_live(world: World, end: str) -> None:
    world.model.ends, world.model.answered = deque([end]), 2
    answers = await world.ask(*(work(f"message {n}") for n in range(4)))
    assert sorted(types(answers)) == ["", "", "NoBatchAnswer", "NoBatchAnswer"]
    assert len(world.model.batches) == 1


async def test_a_batch_that_its_provider_finds_wrong_says_why(world: World) -> None:
    world.model.ends = deque(["failed"])
    (answer,) = await world.ask(work("one"))
    assert error(answer)["type"] == "NoBatchAnswer"
    assert "the stand-in says invalid_request" in error(answer)["message"]


async def test_a_batch_for_which_there_is_no_room_is_made_again_later(world: World) -> None:
    world.model.ends, world.model.why = deque(["failed", "failed"]), "token_limit_exceeded"
    item = work("one")
    assert right(await world.ask(item), [item])
    assert [batch["status"] for batch in world.model.batches.values()] == ["failed", "failed", "completed"]


async def test_answers_that_are_lost_are_asked_for_live(world: World) -> None:
    world.model.lost = {"output"}
    assert types(await world.ask(work("one"), work("standin:400 two"))) == ["NoBatchAnswer", "LMRefused"]
    world.model.lost, world.model.missing = set(), {0}
    assert sorted(types(await world.ask(work("three"), work("four")))) == ["", "NoBatchAnswer"]


@pytest.mark.parametrize(
    ("fault", "type_"), [("429", "RateLimited"), ("500", "LMUnavailable"), ("400", "LMRefused"), ("nonsense", "InvalidOutput")]
)
async def test_a_line_fails_as_a_live_call_does_and_the_next_try_is_in_another_batch(
    world: World, fault: str, type_: str
) -> None:
    item, other = work(f"standin:{fault}x1 one"), work("two")
    answers = await world.ask(item, other)
    assert types(answers) == [type_, ""]
    world.at = 2
    again = replace(
        item, try_number=2, invalid=int(type_ == "InvalidOutput"), record=item.record and item.record._replace(id="x")
    )
    assert right(await world.ask(again), [again])
    assert [sorted(world.model.lines(id)) for id in world.model.batches][1] == [f"{item.call}.2"]


async def test_a_provider_without_a_batch_api_is_told_by_name(world: World) -> None:
    world.model.refusing["upload"].append("404")
    (answer,) = await world.ask(work("one"))
    assert (error(answer)["type"], "has no batch API" in error(answer)["message"]) == ("LMRefused", True)
    (answer,) = await world.ask(work("one", spec=replace(BATCHED, config={"n": 2})))
    assert 'lane="batch" cannot be: n=2' in error(answer)["message"]


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_fails_and_dies_each_call_has_one_answer_and_is_paid_for_once(world: World, seed: int) -> None:
    chance, items = Random(seed), [work(f"message {n}") for n in range(5)]
    for what in ("upload", "create", "get", "list", "content"):
        world.model.refusing[what].extend(chance.choices(["503", "429", "lost", ""], [1, 1, 1, 2], k=6))
    for _ in range(chance.randint(1, 4)):
        await world.dies(*items, when=chance.choice(["upload", "create", "get", "content"]))
    assert right(await world.ask(*items), items)
    assert set(world.model.texts.values()) == {1}
    assert len(world.model.batches) == 1
