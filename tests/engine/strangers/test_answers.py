"""Whoever may listen where a pool is asked can answer instead of it: a caller and `status` read what they get, and go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pytest
from engine_lab import APP, Lab

from dspex.bus import subjects
from dspex.bus.errors import CallTimeout, DecodeError
from dspex.bus.message import Message
from dspex.bus.records import CallRecord, Usage
from dspex.bus.serving.sayings import ACCEPTED, RESULT

MakeLab = Callable[..., Lab]
POOL = "lightweight"
ROW: dict[str, Any] = {
    "pool": POOL, "id": "p", "host": "h", "pid": 1, "size": 1, "slots": 4, "busy": 0, "ready": 1, "restarts": 0,
}  # fmt: skip
STRANGE = {
    "bytes": b"\xffgarbage",
    "nothing": b"",
    "a list": b"[]",
    "nested": b"[" * 5000,
    "no id": orjson.dumps({k: v for k, v in ROW.items() if k != "id"}),
    "text for a number": orjson.dumps({**ROW, "ready": "many"}),
}


def answering(one: Lab, subject: str, *answers: tuple[bytes, str]) -> None:
    """Somebody who answers every request on a subject."""
    bus = one.server.connect()

    async def answer(request: Message) -> None:
        for data, kind in answers:
            await bus.send(request.reply, data, headers={subjects.KIND: kind})

    one.run(bus.subscribe(subject, answer))


@pytest.mark.parametrize("data", STRANGE.values(), ids=STRANGE)
def test_an_answer_that_no_pool_gives_spoils_neither_status_nor_a_call(lab: MakeLab, data: bytes) -> None:
    one = lab()
    answering(one, subjects.control(APP, POOL), (data, ""), (orjson.dumps({**ROW, "newer": 1}), ""))
    assert one.run(one.client.status([POOL]))["pools"] == [{**ROW, "newer": 1}]
    with pytest.raises(CallTimeout):
        one.run(one.client.call("text -> label", {"text": "a"}, timeout=0.3))


@pytest.mark.parametrize("usage", [{"input_tokens": "many"}, {"cost": []}], ids=str)
def test_a_result_whose_usage_is_none_is_refused_and_raises_nothing_else(lab: MakeLab, usage: Mapping[str, Any]) -> None:
    one = lab()
    record = CallRecord("c", 1, 1, "", "", outputs={"label": "a"}, usage=usage)
    answering(one, subjects.call_pattern(APP, POOL), (b"", ACCEPTED), (record.pack(), RESULT))
    with pytest.raises(DecodeError, match="usage"):
        one.run(one.client.call("text -> label", {"text": "a"}, timeout=1.0))


def test_what_a_newer_worker_says_of_its_usage_besides_is_left_out(lab: MakeLab) -> None:
    one = lab()
    record = CallRecord("c", 1, 1, "", "", outputs={"label": "a"}, usage={"input_tokens": 2, "newer": 1})
    answering(one, subjects.call_pattern(APP, POOL), (b"", ACCEPTED), (record.pack(), RESULT))
    assert one.run(one.client.call("text -> label", {"text": "a"}, timeout=1.0)).usage == Usage(2)
