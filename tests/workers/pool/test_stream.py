"""Streamed calls: a real pool with a real child, and a stand-in model that sends its answer in pieces."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from pool_bench import APP, POOL, Bench, program
from waiting import until

from dspex.bus.errors import CallError, InvalidOutput, LMRefused, LMUnavailable
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.client.call import ask
from dspex.engine.client.calls.events import Accepted, Chunk, Progress
from dspex.engine.client.calls.stream import Answer
from dspex.engine.client.resolve import Resolved

pytestmark = pytest.mark.asyncio(loop_scope="module")
REPLY = "text -> reply"


def spec(route: str, kind: str = "predict", signature: str = REPLY, **options: Any) -> CallSpec:
    return CallSpec(kind, signature, signature, route=route, **options)


def stream(bench: Bench, asked: CallSpec, text: str, timeout: float = 60.0) -> Answer[dict[str, Any]]:
    async def begin(told: Any) -> Any:
        record, _ = await ask(bench.bus, APP, Resolved(asked, POOL), {"text": text}, timeout=timeout, told=told)
        told.ended(record.outputs or {})
        return record

    return Answer(begin)


async def texts(answer: Answer[Any]) -> dict[str, str]:
    found: dict[str, str] = defaultdict(str)
    async for chunk in answer:
        found[chunk.field] += chunk.text
    return dict(found)


@pytest.mark.parametrize("route", ["native", "worker"])
@pytest.mark.parametrize("adapter", ["chat", "json", "xml"])
async def test_the_fields_arrive_while_the_model_still_writes_and_make_up_the_result(
    shared: Bench, shared_model: Any, route: str, adapter: str
) -> None:
    shared_model.gate.clear()
    asked = spec(route, "chain_of_thought", "text -> reply, urgency: int", adapter=adapter)
    text = f"standin:gate a text that is long enough for pieces {route} {adapter}"
    async with stream(shared, asked, text) as answer:
        events = answer.events()
        accepted, chunk = await anext(events), await anext(events)
        assert isinstance(accepted, Accepted)
        assert accepted.worker == shared.pool.worker
        assert isinstance(chunk, Chunk)
        assert (chunk.field, chunk.sequence) == ("reasoning", 1)
        assert shared_model.running == 1, "the model has not sent the rest"
        shared_model.gate.set()
        found = await texts(answer)
        found["reasoning"] = chunk.text + found["reasoning"]
        record: Any = await answer.result()
        assert found == {**record.outputs, "urgency": str(record.outputs["urgency"])}
        assert (record.route, record.call, record.usage["finish"]) == (route, accepted.call, "stop")
        assert record.usage["output_tokens"] > 0


@pytest.mark.parametrize("name", ["Draft", "Slow", "Side", "Blocking", "Twice", "pydantic_answer"])
async def test_whatever_a_program_does_its_pieces_are_there_and_its_result_is(shared: Bench, name: str) -> None:
    """Blocking asks on the loop, where DSPy cannot stream."""
    signature = "text, intent -> reply" if name == "Draft" else REPLY
    inputs = {"text": "a text of some length", "intent": "x"} if name == "Draft" else {"text": "a text of some length"}

    async def begin(told: Any) -> Any:
        asked = Resolved(program(name, signature=signature), POOL)
        record, _ = await ask(shared.bus, APP, asked, inputs, timeout=60, told=told)
        told.ended(record.outputs or {})
        return record

    async with Answer[Any](begin) as answer:
        found = await texts(answer)
        record: Any = await answer.result()
        assert record.error is None
        first = {"reply of a text of some length"} if name == "Twice" else set()  # the reply that came first
        assert found["reply"] in {record.outputs["reply"], *first}


async def test_what_a_program_says_arrives_in_order_and_tools_are_named(shared: Bench) -> None:
    async with stream(shared, program("Chatty"), "x") as answer:
        events = [e async for e in answer.events()]
    assert events[1:] == [Progress("half of it"), Progress("nearly ? there"), Chunk("reply", "x", 1)]


@pytest.mark.parametrize("name", ["Slow", "Side"])
async def test_a_synchronous_program_is_streamed_from_its_threads(shared: Bench, shared_model: Any, name: str) -> None:
    shared_model.gate.clear()
    async with stream(shared, program(name), "standin:gate a text that is long enough for pieces") as answer:
        chunk = await anext(aiter(answer))
        assert shared_model.running > 0, "the model has not sent the rest"
        shared_model.gate.set()
        assert chunk.text + (await texts(answer))["reply"] == "reply of standin:gate a text that is long enough for pieces"


@pytest.mark.parametrize("route", ["native", "worker"])
async def test_leaving_the_block_ends_the_request_to_the_model(shared: Bench, shared_model: Any, route: str) -> None:
    shared_model.gate.clear()
    async with stream(shared, spec(route), f"standin:gate left in the middle by {route}") as answer:
        async for _ in answer:
            break
        assert shared_model.running == 1
    await until(lambda: shared_model.running == 0, 30.0)  # half the time that the call had
    assert shared.pool.children.restarts == 0


@pytest.mark.parametrize("route", ["native", "worker"])
async def test_a_model_that_breaks_off_and_was_heard_is_not_asked_again(shared: Bench, shared_model: Any, route: str) -> None:
    before = shared_model.requests
    text = f"standin:cut and something that is long enough {route}"
    async with stream(shared, spec(route, lm=("main", "main")), text) as answer:
        with pytest.raises(LMUnavailable):
            await texts(answer)
        with pytest.raises(LMUnavailable):
            await answer.result()
    assert shared_model.requests == before + 1


@pytest.mark.parametrize("route", ["native", "worker"])
@pytest.mark.parametrize(("fault", "raised"), [("length", InvalidOutput), ("refusal", LMRefused), ("nonsense", InvalidOutput)])
async def test_a_streamed_reply_that_is_no_whole_answer_fails_as_any_other(
    shared: Bench, shared_model: Any, route: str, fault: str, raised: type[CallError]
) -> None:
    """But that DSPy drops the words of a refusal from a stream: what is left is an empty reply."""
    before = shared_model.requests
    raised = InvalidOutput if route == "worker" else raised
    async with stream(shared, spec(route), f"standin:{fault} of a text that is long enough {route}") as answer:
        with pytest.raises(raised):
            await texts(answer)
    assert shared_model.requests - before in (1, 2), "asked once more only where nothing was heard"
