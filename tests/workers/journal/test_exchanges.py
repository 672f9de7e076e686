"""What the record of a call keeps of the requests in it: what models and tools were asked, and what they said."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import journaled
import pytest
import pytest_asyncio
from pool_bench import config
from pool_bench import work as asked

from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.programs.exchanges import Exchange, KeptExchanges, read_exchanges
from dspex.workers.answerers.router import Router
from dspex.workers.config import PoolConfig, Profile

pytestmark = pytest.mark.asyncio(loop_scope="module")
AGENT = CallSpec("react", "text -> reply", "text -> reply", tools=("journaled:look_up",), max_iters=1)


@pytest.fixture
def model(shared_model: Any) -> Iterator[Any]:
    shared_model.requests, shared_model.faults, shared_model.replies = 0, {}, {}
    journaled.done.clear()
    journaled.meanwhile.clear()
    yield shared_model
    shared_model.answers, shared_model.replies = {}, {}


@pytest.fixture(scope="module")
def pool(shared_model: Any) -> PoolConfig:
    profiles = {"main": Profile("main", "openai/main", base_url=shared_model.url, price={"input": 1.0})}
    made = config(shared_model.url, profiles=profiles, programs=("journaled:*",), lm="main")
    return replace(made, keep_exchanges=64 << 10).for_child()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router(pool: PoolConfig) -> AsyncIterator[Router]:
    made = Router(pool)
    yield made
    await made.close()


async def kept(router: Router, item: CallRequest) -> KeptExchanges:
    """What the record of an attempt has, through all that it goes through."""
    answer = await router.run(item, None, print)
    return read_exchanges(CallRecord.unpack(answer.record(item, "w").pack()).exchanges)


def durable(text: str, spec: CallSpec | None = None) -> CallRequest:
    return asked(text, opened=1e9, **({"spec": spec} if spec is not None else {}))


@pytest.mark.parametrize("route", ["native", "worker"])
async def test_the_reply_of_a_model_is_kept_as_it_came(router: Router, model: Any, route: Any) -> None:
    spec = CallSpec("predict", "text -> reply", "text -> reply", route=route)
    (one,) = (await kept(router, durable("a card", spec))).exchanges
    assert (one.kind, one.name, one.journaled) == ("model", "main", False)
    assert "[[ ## reply ## ]]" in one.said
    assert "reply of a card" in one.said
    assert (one.usage["input_tokens"] > 0, one.usage["cost"] > 0, one.seconds > 0) == (True, True, True)
    assert (one.asked is None) == (route == "native")  # its inputs tell it
    if route == "worker":
        assert "a card" in one.asked["messages"][-1]["content"]


@pytest.mark.parametrize("route", ["native", "worker"])
async def test_a_reply_that_does_not_fit_is_kept_with_the_error(router: Router, model: Any, route: Any) -> None:
    model.replies = {"a card": "nonsense"}
    spec = CallSpec("predict", "text -> reply", "text -> reply", route=route)
    item = durable("a card", spec)
    answer = await router.run(item, None, print)
    assert (answer.error or {})["type"] == "InvalidOutput"
    assert {one.said for one in read_exchanges(answer.exchanges).exchanges} == {"nonsense"}


async def test_of_an_agent_each_request_and_each_use_of_a_tool_is_kept(router: Router, model: Any) -> None:
    model.answers = {"next_tool_name": "look_up", "next_tool_args": {"city": "Bern"}}
    found = await kept(router, durable("a trip", AGENT))
    assert [(one.kind, one.name) for one in found.exchanges] == [("model", "main"), ("tool", "look_up"), ("model", "main")]
    tool = found.exchanges[1]
    assert (tool.asked, tool.said) == ({"city": "Bern"}, "look_up 1")
    assert found.left_out == 0
    assert all(one.asked["messages"] for one in found.exchanges if one.kind == "model")


async def test_what_has_no_room_is_counted_and_the_replies_come_first(pool: PoolConfig, model: Any) -> None:
    model.answers = {"next_tool_name": "look_up", "next_tool_args": {"city": "Bern"}}
    small = Router(replace(pool, keep_exchanges=500))
    found = await kept(small, durable("a trip", AGENT))
    await small.close()
    assert found.left_out + len(found.exchanges) == 3
    assert found.exchanges[0].asked is None
    assert "next_tool_name" in found.exchanges[0].said
    none = Router(replace(pool, keep_exchanges=0))
    assert await kept(none, durable("a trip", AGENT)) == KeptExchanges()
    await none.close()


async def test_the_answer_to_an_interactive_call_carries_none(router: Router, model: Any) -> None:
    answer = await router.run(replace(durable("a card"), record=None), None, print)
    assert (answer.exchanges, answer.error) == (b"", None)


async def test_what_earlier_attempts_have_paid_is_told_as_theirs(router: Router, model: Any) -> None:
    class Journal:
        def __init__(self) -> None:
            self.entries: list[Any] = []

        async def open(self) -> list[Any]:
            return [entry._replace(asked=None) for entry in self.entries]

        async def append(self, entry: Any) -> None:
            self.entries.append(entry)

        async def room(self) -> None: ...

        def failed(self) -> None: ...

    model.answers = {"next_tool_name": "look_up", "next_tool_args": {"city": "Bern"}}
    journal, item = Journal(), durable("a trip", AGENT)
    first = read_exchanges((await router.run(item, None, print, journal=journal)).exchanges)
    again = read_exchanges((await router.run(item, None, print, journal=journal)).exchanges)
    assert [one.journaled for one in again.exchanges] == [True] * 3

    def plain(one: Exchange) -> Exchange:
        return one._replace(journaled=False, seconds=0.0)

    assert [plain(one) for one in again.exchanges] == [plain(one) for one in first.exchanges]
