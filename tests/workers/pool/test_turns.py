"""Turns of sessions by a pool with real children: what the model is told of the turns before."""

from __future__ import annotations

from typing import Any

import pytest
from pool_bench import APP, POOL, Bench, work
from waiting import until

import dspex
from dspex.bus.records import CallRecord
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.client.client import Client


@pytest.mark.asyncio(loop_scope="module")
async def test_the_model_sees_the_turns_before_as_messages_of_the_conversation(quick: Bench, shared_model: Any) -> None:
    session = Client(bus=quick.bus, app=APP).session("history")
    chat = dspex.predict("history: dspy.History, text -> reply", pool=POOL)
    shared_model.bodies = []
    for text in ("first", "second"):
        async with session.stream(chat, {"text": text}, timeout=60) as answer:
            assert (await answer.result()).data["reply"] == f"reply of {text}"
    roles = [[message["role"] for message in body["messages"]] for body in shared_model.bodies]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"]]
    assert "reply of first" in shared_model.bodies[1]["messages"][2]["content"]


@pytest.mark.asyncio(loop_scope="module")
async def test_the_model_sees_them_in_a_durable_call_and_its_turn_is_made_once(quick: Bench, shared_model: Any) -> None:
    session = Client(bus=quick.bus, app=APP).session("durable")
    async with session:
        pass
    signature = "history: dspy.History, text -> reply"
    shared_model.bodies = []
    chat = CallSpec("predict", signature, signature)
    for text, call in (("first", "c1"), ("second", "c2"), ("second", "c2")):  # the last one as if no record were there
        (record,) = await quick.ask(work(text, call=call, session="durable", turn=text, spec=chat))
        assert (record.outputs or {})["reply"] == f"reply of {text}"
    roles = [[message["role"] for message in body["messages"]] for body in shared_model.bodies]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"]]
    assert [turn.outputs["reply"] async for turn in session.history()] == ["reply of first", "reply of second"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_turn_of_no_session_is_refused_and_counted(quick: Bench) -> None:
    before, asked = quick.pool.work.refused, work(record=None, turn="t")
    await until(lambda: quick.joined)
    answer = await quick.bus.request(asked.called_on(APP, POOL), asked.pack(), timeout=60)
    assert "of which session" in (CallRecord.unpack(answer.data).error or {})["message"]
    assert quick.pool.work.refused == before + 1
