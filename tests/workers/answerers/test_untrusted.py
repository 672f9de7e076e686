"""Whoever may ask a worker can write anything into a call: what a worker takes from it, and what it refuses."""

from __future__ import annotations

import struct
from dataclasses import asdict, replace
from typing import Any

import msgpack
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


# -- what a program does to its worker ------------------------------------------------------------------------------------
def framed(body: bytes) -> str:
    return (struct.pack(">I", len(body)) + body).hex()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "written",
    [
        framed(b"nonsense"), framed(b""), framed(msgpack.packb([1])), framed(msgpack.packb({"id": 1})), "ffffffff" + "00" * 64,
        framed(msgpack.packb({"type": "done", "id": [], "answer": {}})), framed(msgpack.packb({"type": ["done"]})),
        framed(msgpack.packb({"type": "status", "id": 1, "text": 5})), framed(msgpack.packb({"type": "done", "id": 1})),
        framed(msgpack.packb({"type": "done", "id": 1, "answer": {"started": "x", "usage": None}})),
        framed(msgpack.packb({"type": "done", "id": 1, "answer": {"started": 1.0, "usage": {"input_tokens": "many"}}})),
        framed(msgpack.packb({"type": "hello", "found": 5})), framed(msgpack.packb({"type": "start", "parent": 1})),
    ],
)  # fmt: skip
async def test_what_is_no_frame_ends_the_process_that_sent_it_and_the_pool_goes_on(mortal: Bench, written: str) -> None:
    process = await mortal.answering()
    (lost,) = await mortal.ask(work(spec=program("writes_frames"), text=written))
    assert error(lost)["type"] == "WorkerLost"
    assert await mortal.answering() != process


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "line",
    [
        '{"event":"x","pid":1}', '{"event":"x","self":1}', '{"event":5}', '{"event":"x","level":5}',
        '{"event":"x","level":"msg"}',
        '{"event":"x","exc_info":true}', '{"event":"x","stack_info":1}', '{"event":"x","event":null}', '{"event":["x"]}',
        '{"event":"x","level":"bind"}', '{"event":' + "[" * 100_000, '{"event":"x","_record":1,"_from_structlog":1}',
        '{"event":"\\ud800","\\ud800":"\\ud800"}', '{"event":"x","exception":["y"],"logger":1,"timestamp":[]}', '{"event"',
    ],
    ids=range(15),
)  # fmt: skip
async def test_no_line_that_a_program_prints_stops_the_reading_of_what_it_prints_next(mortal: Bench, line: str) -> None:
    process = await mortal.answering()
    (printed,) = await mortal.ask(work(spec=program("prints_lines"), text=line))
    assert (printed.error, printed.outputs) == (None, {"reply": "printed"})
    assert await mortal.answering() == process
