"""What an attempt at a call takes from the journal of those before it, with the parent's half of it and the child's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import journaled
import pytest
import pytest_asyncio
from pool_bench import APP, POOL, Room, config
from pool_bench import work as asked
from waiting import until

from dspex.bus import subjects
from dspex.bus.errors import BudgetExceeded, RateLimited
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.message import new_id
from dspex.bus.port import StreamConfig
from dspex.bus.records import CallRequest
from dspex.bus.serving import payloads
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.keys.keyring import Keyring
from dspex.workers.answer import Answer
from dspex.workers.answerers.router import Router
from dspex.workers.child.journal import CallJournal
from dspex.workers.config import Profile
from dspex.workers.journal.keeping import Journal, Journals, Outdone, RequestLimits

pytestmark = pytest.mark.asyncio(loop_scope="module")
STEPS = 7  # of an agent, and a request for what it has found: eight


def agent(*tools: str) -> CallSpec:
    refs = tuple(f"journaled:{name}" for name in tools)
    return CallSpec("react", "text -> reply", "text -> reply", tools=refs, max_iters=STEPS)


def work(text: str, **options: Any) -> CallRequest:
    return asked(text, **{"opened": 1e9, **options})


def program(name: str) -> CallSpec:
    return CallSpec("program", f"journaled:{name}", "text -> reply")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router(shared_model: Any) -> AsyncIterator[Router]:
    """What a child runs calls with, in this process."""
    profiles = {n: Profile(n, f"openai/{n}", base_url=shared_model.url, price={"input": 1.0}) for n in ("main", "other")}
    made = Router(config(shared_model.url, profiles=profiles, programs=("journaled:*",), lm="main").for_child())
    yield made
    await made.close()


@pytest.fixture
def model(shared_model: Any) -> Iterator[Any]:
    """The stand-in, as new. Its agents use the tool that they have, until they have used it often enough."""
    shared_model.requests, shared_model.faults, shared_model.replies = 0, {}, {}
    shared_model.kinds.clear()
    shared_model.texts.clear()
    journaled.done.clear()
    journaled.meanwhile.clear()
    yield shared_model
    shared_model.answers = {}


@dataclass
class Lab:
    """Attempts at calls, each with both halves of its journal, and nothing between them."""

    router: Router
    model: Any
    bus: MemoryBus
    outdone: list[Outdone]
    above: int = payloads.ABOVE
    limits: RequestLimits | None = None

    def journals(self, item: CallRequest, at: int = 1) -> tuple[Journal, CallJournal]:
        child = CallJournal(1, lambda frame: parent.take(frame))
        parent = Journal(Journals(self.bus, APP, POOL, self.above), item, at, child.take, self.outdone.append, self.limits)
        return parent, child

    async def attempt(self, item: CallRequest, at: int = 1) -> Answer:
        _, child = self.journals(item, at)
        return await self.router.run(item, None, print, journal=child)

    async def killed(self, item: CallRequest, when: Callable[[Journal], object]) -> None:
        """An attempt that ends as with its process, as soon as `when` is so of its journal."""
        parent, child = self.journals(item)
        running = asyncio.create_task(self.router.run(item, None, print, journal=child))
        await until(lambda: bool(when(parent)) or running.done())
        assert not running.done(), running.result()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    def hangs_after(self, item: CallRequest, name: str, uses: int) -> None:
        """The model does not answer any more, once a tool was used so often."""

        def look(used: str) -> None:
            if used == name and sum(n == name for n, _ in journaled.done) == uses:
                self.model.fault(item.inputs["text"], "hang")

        journaled.meanwhile.append(look)

    async def stored(self, item: CallRequest) -> bytes:
        found = await self.bus.scan(subjects.requests(APP), [subjects.request(APP, POOL, item.call)], start=1, stop=10_000)
        return b"".join(message.data for message in found)


@pytest_asyncio.fixture(loop_scope="module")
async def lab(router: Router, model: Any) -> AsyncIterator[Lab]:
    bus = MemoryServer().connect()
    await bus.ensure_stream(StreamConfig(subjects.requests(APP), [subjects.request_pattern(APP)]))
    yield Lab(router, model, bus, [])
    await bus.close()


def outputs(answer: Answer) -> dict[str, Any]:
    assert answer.outputs is not None, answer.error
    return dict(answer.outputs)


async def test_a_killed_agent_pays_only_for_the_request_that_was_open(lab: Lab) -> None:
    item = work("a trip", spec=agent("look_up"))
    lab.model.answers = {"next_tool_name": "look_up", "next_tool_args": {"city": "Bern"}}
    lab.hangs_after(item, "look_up", 4)
    await lab.killed(item, lambda journal: lab.model.kinds["hang"])
    lab.model.faults = {}
    answer = await lab.attempt(item)
    assert outputs(answer)["reply"] == "reply of a trip"
    assert lab.model.requests == STEPS + 1 + 1
    assert len(journaled.done) == len({key for _, key in journaled.done}) == STEPS  # each use once, under a key of its own
    assert answer.requests == {"made": 4 + 3, "journal": 4 + 4, "missed": 0}


async def test_requests_side_by_side_are_found_by_what_they_ask(lab: Lab) -> None:
    item = work("many", spec=program("Wide"))
    lab.model.fault("many 3", "hang")  # two of them
    one = 135  # tokens that a request has
    await lab.killed(item, lambda journal: journal.paid and journal.paid.input_tokens == 14 * one)
    lab.model.faults = {}
    answer = await lab.attempt(item)
    assert (lab.model.requests, answer.requests) == (16 + 2, {"made": 2, "journal": 14, "missed": 0})
    before = outputs(answer)
    answer = await lab.attempt(item)
    assert (outputs(answer), lab.model.requests) == (before, 16 + 2)


async def test_threads_of_a_program_are_journaled(lab: Lab) -> None:
    item = work("threads", spec=program("Threads"))
    first, second = await lab.attempt(item), await lab.attempt(item)
    assert first.requests == {"made": 8, "journal": 0, "missed": 0}
    assert second.requests == {"made": 0, "journal": 8, "missed": 0}
    assert outputs(second) == outputs(first)
    assert (lab.model.requests, len(journaled.done)) == (4, 4)


async def test_an_answer_that_did_not_fit_is_asked_for_again_and_nothing_else(lab: Lab) -> None:
    item = work("a trip", spec=agent("look_up"))
    lab.model.answers = {"next_tool_name": "finish", "next_tool_args": {}}
    lab.model.replies = {"a trip": "nonsense"}
    journaled.meanwhile.clear()
    unfit = await lab.attempt(item)
    assert unfit.error is not None
    assert unfit.error["type"] == "InvalidOutput"
    before, lab.model.replies = lab.model.requests, {}
    died = await lab.attempt(item)  # another execution of the same request: whoever died had no record
    assert (died.error or {})["type"] == "InvalidOutput"
    assert lab.model.requests == before
    again = replace(item, try_number=2, attempt=2, invalid=1)
    assert outputs(await lab.attempt(again, at=2))["reply"] == "reply of a trip"
    assert lab.model.requests == before + 2
    assert outputs(await lab.attempt(again, at=2))["reply"] == "reply of a trip"  # it is dropped once
    assert lab.model.requests == before + 2


@pytest.mark.parametrize(("name", "uses"), [("look_up", 1), ("read", 1), ("clock", 2)])
async def test_a_tool_is_not_run_again_where_its_result_is_known(lab: Lab, name: str, uses: int) -> None:
    item = work("a trip", spec=agent(name))
    item = replace(item, spec=replace(item.spec, max_iters=1))
    lab.model.answers = {"next_tool_name": name, "next_tool_args": {}}
    await lab.attempt(item)
    await lab.attempt(item)
    assert [n for n, _ in journaled.done] == [name] * uses


async def test_a_tool_that_was_begun_runs_again_under_its_key(lab: Lab) -> None:
    item = work("a trip", spec=agent("look_up"))
    lab.model.answers = {"next_tool_name": "look_up", "next_tool_args": {"city": "Bern"}}
    await _died_in_tool(lab, item)
    outputs(await lab.attempt(item))
    keys = [key for _, key in journaled.done]
    assert keys[0] == keys[1]
    assert len(set(keys)) == len(keys) - 1 == STEPS


async def test_a_tool_that_runs_once_ends_its_call_where_nobody_knows_what_it_did(lab: Lab) -> None:
    item = work("a trip", spec=agent("pay"))
    lab.model.answers = {"next_tool_name": "pay", "next_tool_args": {}}
    await _died_in_tool(lab, item)
    requests = lab.model.requests
    answer = await lab.attempt(item)
    error = answer.error or {}
    assert (error["type"], error["code"], error["retryable"]) == ("OutcomeUnknown", "DX613", False)
    assert "pay was begun" in error["message"]
    assert (len(journaled.done), lab.model.requests) == (1, requests)  # the agent does not even hear of it


async def _died_in_tool(lab: Lab, item: CallRequest) -> None:
    def die(name: str) -> None:
        raise asyncio.CancelledError

    journaled.meanwhile.append(die)
    await lab.attempt(item)
    journaled.meanwhile.clear()


async def test_marked_functions_are_journaled_wherever_a_program_calls_them(lab: Lab) -> None:
    item = work("Bern", spec=program("Trip"))
    first, second = await lab.attempt(item), await lab.attempt(item)
    assert outputs(second) == outputs(first) == {"reply": "pay 2, 7, reply of Bern"}
    assert second.requests == {"made": 0, "journal": 3, "missed": 0}


async def test_an_attempt_that_another_one_came_after_does_nothing_more(lab: Lab) -> None:
    item = work("a trip", spec=agent("look_up"))
    lab.model.answers = {"next_tool_name": "look_up", "next_tool_args": {}}
    _, other = lab.journals(item)
    journaled.meanwhile.append(lambda name: taken.append(asyncio.ensure_future(other.open())))
    taken: list[Any] = []
    answer = await lab.attempt(item)
    assert (answer.error or {})["type"] == "WorkerLost"
    assert lab.outdone == [Outdone(later=False)]
    assert len(journaled.done) == 1
    assert {entry.kind for entry in await taken[0]} == {"model", "tool"}


async def test_an_attempt_at_an_earlier_request_does_not_begin(lab: Lab) -> None:
    item = work("a trip", spec=program("told"))
    outputs(await lab.attempt(replace(item, try_number=2), at=9))
    before = lab.model.requests
    answer = await lab.attempt(item, at=4)
    assert (answer.error or {})["type"] == "WorkerLost"
    assert (lab.outdone, lab.model.requests) == ([Outdone(later=True)], before)


async def test_each_request_waits_for_room_in_the_limits_and_where_there_is_none_it_is_not_paid(lab: Lab) -> None:
    soon, late = RateLimited("full", retry_after=0.01), RateLimited("full", retry_after=3600.0)
    item, lab.limits = work("two", spec=program("told")), Room([soon, soon, None, late])
    answer = await lab.attempt(item)
    assert ((answer.error or {})["type"], (answer.error or {})["retry_after"]) == ("RateLimited", 3600.0)
    assert (lab.model.requests, len(lab.limits.used)) == (1, 1)
    lab.limits = Room([None, BudgetExceeded("spent")])
    outputs(await lab.attempt(item))
    assert (lab.model.requests, len(lab.limits.refusals)) == (2, 1), "what the journal answers needs no room"


async def test_a_request_that_fails_needs_its_room_no_more(lab: Lab) -> None:
    item, lab.limits = work("fails", spec=program("insists")), Room([])
    lab.model.fault("fails", "401")
    await lab.attempt(item)
    await until(lambda: isinstance(lab.limits, Room) and lab.limits.failures == 6)
    assert lab.limits.used == []


async def test_what_a_program_draws_is_the_same_in_every_attempt(lab: Lab) -> None:
    item = work("by the call", spec=program("told"), opened=86_400.0)
    first = outputs(await lab.attempt(item))["reply"]
    assert first.startswith("1970-01-02 00:00:00+00:00 0.")
    second = await lab.attempt(item)
    assert outputs(second)["reply"] == first
    assert second.requests == {"made": 0, "journal": 2, "missed": 0}
    other = outputs(await lab.attempt(replace(item, call=new_id())))["reply"]
    assert other.split()[2:5] != first.split()[2:5]


async def test_requests_that_chance_has_changed_are_counted(lab: Lab) -> None:
    item = work("by chance", spec=program("told"))
    await lab.attempt(item)
    assert (await lab.attempt(item)).requests == {"made": 1, "journal": 1, "missed": 1}


async def test_another_profile_goes_on_where_the_first_one_failed(lab: Lab) -> None:
    item = work("two", spec=replace(program("told"), lm=("main", "other")))
    journaled.meanwhile.append(lambda name: lab.model.fault("two", "503x2"))
    answer = await lab.attempt(item)
    assert (outputs(answer)["reply"].split()[-1], answer.lm) == ("two", "other")
    assert lab.model.kinds == {"ok": 2, "503": 1}
    assert answer.requests == {"made": 3, "journal": 1, "missed": 0}


@pytest.mark.parametrize(("fault", "lms"), [("503x1", ("main", "other")), ("nonsensex1", ("main",))])
async def test_what_an_interactive_call_has_done_it_does_not_do_again_when_its_program_begins_anew(
    lab: Lab, fault: str, lms: tuple[str, ...]
) -> None:
    """It has no journal, and no second attempt; but a second model, and a second chance where a reply does not fit."""
    lab.model.fault("a trip", fault)
    answer = await lab.router.run(work("a trip", spec=replace(program("Trip"), lm=lms), record=None), None, print)
    assert outputs(answer)["reply"] == "pay 2, 7, reply of a trip"
    assert [name for name, _ in journaled.done] == ["fare", "pay"]
    assert lab.model.requests == 2


async def test_where_a_reply_to_an_interactive_call_did_not_fit_all_that_was_asked_beside_it_is_asked_again(lab: Lab) -> None:
    """Which of sixteen it was nobody knows."""
    lab.model.fault("wide 3", "nonsensex1")
    answer = await lab.router.run(work("wide", spec=program("Wide"), record=None), None, print)
    assert len(outputs(answer)["reply"].split("reply of")) == 16 + 1


async def test_a_call_that_is_redriven_begins_anew(lab: Lab) -> None:
    item = work("a trip", spec=program("told"))
    await lab.attempt(item)
    assert item.record is not None
    await lab.attempt(replace(item, record=item.record._replace(number=8)), at=5)
    assert lab.model.requests == 4


async def test_a_journal_is_sealed_where_payloads_are_and_large_parts_lie_elsewhere(lab: Lab) -> None:
    lab.bus.sealing = Keyring(lab.bus, APP, "KEY", {"KEY": "0" * 64})
    await lab.bus.sealing.establish(1)
    item, lab.above = work("a trip", spec=program("told")), 200
    first = outputs(await lab.attempt(item))
    assert b"a trip" not in await lab.stored(item)
    assert len(await (await lab.bus.objects(subjects.objects(APP))).listing()) == 2  # of two requests; a claim is small
    again = await lab.attempt(item)
    assert (outputs(again), again.requests) == (first, {"made": 0, "journal": 2, "missed": 0})


async def test_no_key_header_or_address_is_stored(lab: Lab) -> None:
    item = work("a trip", spec=replace(program("told"), config={"temperature": 0.5}))
    await lab.attempt(item)
    stored = await lab.stored(item)
    assert b"a trip" in stored
    for secret in (b"none", b"127.0.0.1", b"api_", b"header", b"Bearer"):
        assert secret not in stored


async def test_an_execution_without_a_record_is_paid_for_in_the_next_one_of_its_try(lab: Lab) -> None:
    item = work("a trip", spec=program("told"))
    parent, child = lab.journals(item)
    first = await lab.router.run(item, None, print, journal=child)
    assert parent.paid is not None
    assert first.usage is not None
    assert replace(first.usage, finish="") == parent.paid
    parent, child = lab.journals(item)
    second = await lab.router.run(item, None, print, journal=child)
    assert (second.usage and second.usage.input_tokens, parent.paid, parent.inherited) == (
        0,
        None,
        replace(first.usage, finish=""),
    )
    parent, child = lab.journals(replace(item, try_number=2), at=2)
    await lab.router.run(item, None, print, journal=child)
    assert parent.inherited is None  # the first try has a record, which says it


@pytest.mark.parametrize(
    ("reconcile", "known", "steps", "said"),
    [
        (None, False, ["charge", "charge"], "charge 2"),
        ("journaled:charged", False, ["charge", "charged", "charge"], "charge 3"),
        ("journaled:charged", True, ["charge", "charged"], "before"),
    ],
)
async def test_an_effect_of_enrich_has_one_key_and_is_asked_about_after_a_death(
    lab: Lab, reconcile: str | None, known: bool, steps: list[str], said: str
) -> None:
    spec = CallSpec("enrich", "journaled:charge", "", effect=True, reconcile=reconcile)
    item = replace(work("", spec=spec), inputs={"known": known, "sum": 7, "raw": b"\x00\xff"})
    await _died_in_tool(lab, item)
    answer = await lab.attempt(item)
    assert outputs(answer) == {"charged": said}
    assert [name for name, _ in journaled.done] == steps
    assert len({key for _, key in journaled.done}) == 1
    assert outputs(await lab.attempt(item)) == {"charged": said}  # it is known now
    assert len(journaled.done) == len(steps)


async def test_a_tool_with_effects_that_nobody_can_wait_for_is_refused(lab: Lab) -> None:
    answer = await lab.attempt(work("here", spec=program("holds_the_loop")))
    error = answer.error or {}
    assert error["type"] == "ProgramError"
    assert "book has effects" in error["message"]
    assert journaled.done == []
