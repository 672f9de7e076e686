"""Whoever may ask a worker can write anything into a call: what a worker takes from it, and what it refuses."""

from __future__ import annotations

import asyncio
import math
import struct
from typing import Any

import msgpack
import pytest
import standin
from pool_bench import APP, POOL, RECORDS, SIGNATURE, Bench, program, received, work
from waiting import until

from dspex.bus import codecs, subjects
from dspex.bus.errors import DecodeError, InvalidInput
from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRecord, RecordTo, Tried, Usage
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.sayings import RESULT
from dspex.engine.client.call import ask
from dspex.engine.client.resolve import Resolved
from dspex.workers import frames
from dspex.workers.answer import Answer
from dspex.workers.processes.link import Link


def spec(route: str = "worker", **options: Any) -> CallSpec:
    return CallSpec("predict", SIGNATURE, SIGNATURE, route=route, **options)


def error(record: CallRecord) -> Any:
    assert record.error is not None
    return record.error


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("route", ["worker", "auto"])
@pytest.mark.parametrize("name", ["api_base", "base_url", "api_key", "model", "headers", "custom_llm_provider", "timeout"])
async def test_a_call_chooses_neither_the_server_nor_the_key_of_a_model(
    quick: Bench, shared_model: Any, name: str, route: str
) -> None:
    before = shared_model.requests
    async with standin.StandIn() as foreign:
        value = {"X": "1"} if "headers" in name else foreign.url
        (record,) = await quick.ask(work(spec=spec(route=route, config={name: value})))
        assert foreign.requests == 0
    assert error(record)["type"] == "InvalidInput"
    assert f"config.{name}" in error(record)["message"]
    assert shared_model.requests == before


@pytest.mark.asyncio(loop_scope="module")
async def test_a_refusal_of_a_parameter_does_not_repeat_a_long_name(quick: Bench) -> None:
    (record,) = await quick.ask(work(spec=spec(config={"x" * 50_000: 1})))
    assert error(record)["type"] == "InvalidInput"
    assert len(error(record)["message"]) < 1000


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("config", [{"temperature": "hot"}, {"stop": 5}, {"max_tokens": 1.5}, {"n": [1]}])
async def test_parameters_of_wrong_types_are_refused_before_a_model_is_asked(
    quick: Bench, shared_model: Any, config: dict[str, Any]
) -> None:
    before = shared_model.requests
    (record,) = await quick.ask(work(spec=spec(config=config)))
    assert error(record)["type"] == "InvalidInput"
    assert shared_model.requests == before


WRONG: list[dict[str, Any]] = [
    {"spec": wrong} for wrong in (
        {}, {"tools": 5}, {"tools": [5]}, {"lm": "main"}, {"lm": [["main"]]}, {"lm": 5}, {"kind": 7}, {"target": None},
        {"fields": [1]}, {"config": []}, {"max_iters": "many"}, {"adapter": 1}, {"route": {}}, {"state": 3},
        {"signature": b"x"}, {"fields": {"reply": 5}},
    )
] + [
    {"timeout": math.nan}, {"timeout": 1e300}, {"timeout": -1.0}, {"timeout": math.inf}, {"timeout": "x"}, {"timeout": None},
    {"left": math.nan}, {"left": 1e300}, {"left": -math.inf}, {"inputs": 5},
    {"try_number": "1"}, {"attempt": None}, {"alone": "yes"}, {"run": 5}, {"call": b"c"}, {"session": 7}, {"spec": 5},
]  # fmt: skip


def wrongly(wrong: dict[str, Any], **options: Any) -> bytes:
    """A packed call with what is wrong in it, by the names of its fields; of its spec, where that is a map, by those."""
    whole = vars(work(spec=spec(), **options))
    inner = wrong.get("spec")
    packed = codecs.msgpack_bytes({**spec().plain(), **inner} if isinstance(inner, dict) and inner else inner)
    return codecs.msgpack_bytes({**whole, **wrong, "spec": packed if "spec" in wrong else spec().packed})


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("wrong", WRONG)
async def test_a_durable_call_of_wrong_types_is_refused_once_and_ends_neither_the_process_nor_its_neighbours(
    quick: Bench, shared_model: Any, wrong: dict[str, Any]
) -> None:
    process, refused, asked = await quick.answering(), quick.pool.work.refused, shared_model.requests
    subject = subjects.work(APP, POOL, "triage", "classify")
    neighbour = asyncio.create_task(quick.ask(work(spec=program("echo"), text="before")))
    await quick.bus.publish(NewMessage(subject, wrongly(wrong)))
    (beside,) = await quick.ask(work(spec=program("echo")))
    assert [beside.error, (await neighbour)[0].error] == [None, None]
    assert await quick.answering() == process
    assert quick.pool.work.refused == refused + 1
    assert shared_model.requests == asked


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "wrong", [*WRONG, {"record": RecordTo(RECORDS, "id", 1, b"")}, {"call": "a\nb"}, {"run": "x" * 5000}], ids=str
)
async def test_an_interactive_call_of_wrong_types_is_answered_at_once(quick: Bench, wrong: dict[str, Any]) -> None:
    await until(lambda: quick.joined)
    process = await quick.answering()
    record = await asked(quick, wrongly(wrong, record=None))
    assert error(record)["type"] == "InvalidInput"
    assert error(record)["retryable"] is False
    assert await quick.answering() == process


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_without_a_subject_for_its_answer_takes_no_slot(quick: Bench) -> None:
    await until(lambda: quick.joined)
    item, refused = work(spec=spec(), record=None), quick.pool.work.refused
    for _ in range(40):
        await quick.bus.send(item.called_on(APP, POOL), item.pack())
    await until(lambda: quick.pool.work.refused == refused + 40)
    assert (await quick.ask(work(spec=program("echo"))))[0].error is None
    assert quick.pool.status.full()["refused"] == quick.pool.work.refused


@pytest.mark.asyncio(loop_scope="module")
async def test_a_caller_hears_of_a_refusal_at_once(quick: Bench) -> None:
    await until(lambda: quick.joined)
    with pytest.raises(InvalidInput, match="times"):
        async with asyncio.timeout(30):
            await ask(quick.bus, APP, Resolved(spec(), POOL), {"text": "x"}, timeout=1e11)


async def asked(bench: Bench, data: bytes) -> CallRecord:
    """The record of an interactive call with these bytes."""
    frames = asyncio.Queue[Message]()
    inbox = bench.bus.inbox(frames.put_nowait)
    await bench.bus.send(subjects.ad_hoc_call(APP, POOL, "predict"), data, reply=inbox.subject)
    async with asyncio.timeout(30):
        while (frame := await frames.get()).headers[subjects.KIND] != RESULT:
            pass
    inbox.close()
    return CallRecord.unpack(frame.data)


# -- what a program does to its worker ------------------------------------------------------------------------------------
def framed(body: bytes) -> str:
    return (struct.pack(">I", len(body)) + body).hex()


def done(*answer: object) -> str:
    return framed(msgpack.packb(["done", 1, [*answer]]))


STARTED = (1.0, 0.0, None, None, "worker", "", "", "")  # an answer up to its usage
NO_FRAMES = [
    framed(b"nonsense"), framed(b""), framed(msgpack.packb([1])), framed(msgpack.packb({"id": 1})), "ffffffff" + "00" * 64,
    framed(msgpack.packb([])), framed(msgpack.packb(["done", [], [*STARTED, None]])), framed(msgpack.packb([["done"]])),
    framed(msgpack.packb(["done", 1])), framed(msgpack.packb(["done", 1, 5])), framed(msgpack.packb(["done", 1, "none"])),
    done("x", *STARTED[1:], None), done(*STARTED, ["many"]), done(*STARTED, 5), done(1.0, math.nan, *STARTED[2:], None),
    done(math.inf, *STARTED[1:], None), done(1.0, 0.0, None, {}, *STARTED[4:], None), done(*STARTED),
    framed(msgpack.packb(["done", True, [*STARTED, None]])), framed(msgpack.packb(["call"])),
    framed(msgpack.packb(["call", 1, b"", None, None, None, 5])), framed(msgpack.packb(["status", 1, 5])),
    framed(msgpack.packb(["hello", 1, "", "", 5])), framed(msgpack.packb(["start", 1])),
]  # fmt: skip


@pytest.mark.parametrize("written", NO_FRAMES)
def test_what_is_no_frame_is_refused_by_who_reads_it(written: str) -> None:
    with pytest.raises(DecodeError):
        received(bytes.fromhex(written))


@pytest.mark.parametrize(
    "said",
    [
        {"usage": Usage(-5, 1)}, {"usage": Usage(1, 1, math.nan)}, {"usage": Usage(1, 1, -0.1)}, {"usage": Usage(requests=-1)},
        {"elapsed": math.nan}, {"elapsed": -1.0}, {"routing": [Tried("main", "answered", math.nan)]},
        {"routing": [Tried("main", "RateLimited", 1.0, math.inf)]},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_worker_says_that_it_used_is_reckoned_with_only_where_it_can_be(said: dict[str, Any]) -> None:
    """One NaN among the amounts of a limit would refuse all calls until its window ends; tokens below 0 would make room."""
    with pytest.raises(DecodeError, match=r"usage|times"):
        received(frames.pack(frames.DoneFrame(1, Answer(1.0, **said))))


def test_what_a_newer_worker_says_besides_is_left_out() -> None:
    found = received(bytes.fromhex(framed(msgpack.packb(["status", 1, "going on", "news"]))))
    assert found == frames.StatusFrame(1, "going on")


ERROR = {"type": "RateLimited", "message": "wait", "retry_after": 1.5}
SET = Answer(
    1.0,
    2.0,
    {"reply": ["a", None]},
    ERROR,
    "native",
    "main",
    "predict#1",
    "3.4",
    Usage(1, 2, 0.5),
    routing=[Tried("a", "open", 1.5)],
)


@pytest.mark.parametrize(
    "frame",
    [
        frames.CallFrame(7, b"work", "http://x", ["a", "b"], 2.5, frames.StateTag("draft@4", "d1", "3.4"), {"a": 0.5}, True),
        frames.CallFrame(7, b"work", None), frames.StateFrame("d1", b"body"), frames.CancelFrame(7, True),
        frames.JournalledFrame(7, 2, [b"entry"], True, ERROR), frames.FurtheredFrame(7, ERROR), frames.StopFrame(),
        frames.HelloFrame(9, "3.4", "3.11", ["a:b"], {"c:*": "why"}, True), frames.FatalFrame(ERROR),
        frames.StatusFrame(7, "on it"), frames.ChunkFrame(7, "reply", "text"), frames.JournalFrame(7, 2, b"entry", True, True),
        frames.FurtherFrame(7, "main", vars(Usage(1, 2)), True),
        frames.BatchesFrame([frames.BatchRow("main", "b", "new", 1, 2, 3)]),
        frames.DoneFrame(7, SET), frames.DoneFrame(7, Answer(1.0)),
    ],
    ids=lambda frame: type(frame).__name__,
)  # fmt: skip
def test_a_frame_comes_out_as_it_went_in_with_all_its_fields(frame: frames.Frame) -> None:
    assert received(frames.pack(frame)) == frame


@pytest.mark.parametrize("size", [1, 3, 4, 5, 1000])
def test_frames_come_out_whole_however_they_are_cut_on_their_way(size: int) -> None:
    sent: list[frames.Frame] = [frames.StatusFrame(n, "x" * 300 * n) for n in range(5)]
    data = b"".join(map(frames.pack, sent))
    got: list[frames.Frame] = []
    link = Link(got.append, print)
    for at in range(0, len(data), size):
        link.data_received(data[at : at + size])
    assert got == sent


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("written", [NO_FRAMES[0], NO_FRAMES[4], NO_FRAMES[-3]], ids=["nonsense", "too large", "wrong type"])
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
        '{"event":"x","level":"msg","method_name":1}', '{"event":"x","method_name":1,"positional_args":5,"_name":1}',
        '{"event":"x","exc_info":true}', '{"event":"x","stack_info":1}', '{"event":"x","event":null}', '{"event":["x"]}',
        '{"event":"x","level":"bind"}', '{"event":' + "[" * 100_000, '{"event":"x","_record":1,"_from_structlog":1}',
        '{"event":"\\ud800","\\ud800":"\\ud800"}', '{"event":"x","exception":["y"],"logger":1,"timestamp":[]}', '{"event"',
    ],
    ids=range(16),
)  # fmt: skip
async def test_no_line_that_a_program_prints_stops_the_reading_of_what_it_prints_next(mortal: Bench, line: str) -> None:
    process = await mortal.answering()
    (printed,) = await mortal.ask(work(spec=program("prints_lines"), text=line))
    assert (printed.error, printed.outputs) == (None, {"reply": "printed"})
    assert await mortal.answering() == process


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("cancelled", ["call-", ""], ids=["all calls", "all tasks"])
async def test_calls_that_a_program_cancels_beside_its_own_are_tried_again(mortal: Bench, cancelled: str) -> None:
    """Their events would be dead letters, had the calls ended as if their callers had given them up."""
    process = await mortal.answering()
    innocent = [work(spec=program("sleeps"), timeout=300) for _ in range(3)]
    waiting = asyncio.create_task(mortal.ask(*innocent))
    await until(lambda: mortal.pool.children.slots.busy == 3)
    (guilty,) = await mortal.ask(work(spec=program("cancels_others"), text=cancelled))
    for record in (guilty, *await waiting):
        assert (error(record)["type"], error(record)["retryable"]) == ("WorkerLost", True)
    if not cancelled:  # what runs the process was cancelled, too: the next test would meet its end
        await until(lambda: process not in [child.pid for child in mortal.pool.children.children])
