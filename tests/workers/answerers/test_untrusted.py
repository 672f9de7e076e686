"""Whoever may ask a worker can write anything into a call: what a worker takes from it, and what it refuses."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import standin
from pool_bench import SIGNATURE, Bench, program, work

from dspex.bus.records import CallRecord, CallSpec


def spec(route: str = "worker", **options: Any) -> CallSpec:
    return CallSpec("predict", SIGNATURE, SIGNATURE, route=route, **options)


def error(record: CallRecord) -> Any:
    assert record.error is not None
    return record.error


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("route", ["worker", "auto"])
@pytest.mark.parametrize("name", ["api_base", "base_url", "api_key", "model", "headers", "custom_llm_provider", "timeout"])
async def test_a_call_chooses_neither_the_server_nor_the_key_of_a_model(
    shared: Bench, shared_model: Any, name: str, route: str
) -> None:
    before = shared_model.requests
    async with standin.StandIn() as foreign:
        value = {"X": "1"} if "headers" in name else foreign.url
        (record,) = await shared.ask(work(spec=spec(route=route, config={name: value})))
        assert foreign.requests == 0
    assert error(record)["type"] == "InvalidInput"
    assert f"config.{name}" in error(record)["message"]
    assert shared_model.requests == before


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("config", [{"temperature": "hot"}, {"stop": 5}, {"max_tokens": 1.5}, {"n": [1]}])
async def test_parameters_of_wrong_types_are_refused_before_a_model_is_asked(
    shared: Bench, shared_model: Any, config: dict[str, Any]
) -> None:
    before = shared_model.requests
    (record,) = await shared.ask(work(spec=spec(config=config)))
    assert error(record)["type"] == "InvalidInput"
    assert shared_model.requests == before


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "wrong",
    [
        {"tools": 5}, {"tools": [5]}, {"lm": "main"}, {"lm": [["main"]]}, {"kind": 7}, {"target": None}, {"fields": [1]},
        {"config": []}, {"max_iters": "many"}, {"adapter": 1}, {"route": {}}, {"state": 3}, {"signature": b"x"},
        {"fields": {"reply": 5}}, {"fields": {"reply": {"type": 5}}},
    ],
)  # fmt: skip
async def test_a_request_of_wrong_types_ends_neither_the_process_nor_its_neighbours(shared: Bench, wrong: Any) -> None:
    process = await shared.answering()
    await shared.put(replace(work(), spec={**asdict(spec()), **wrong}))
    (beside,) = await shared.ask(work(spec=program("echo")))
    assert beside.error is None
    assert await shared.answering() == process
