"""What anybody could write where engines read: it stops nothing, and nothing of somebody else's is read for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.codecs import msgpack_bytes
from dspex.bus.memory.server import MemoryBus
from dspex.bus.port import BusEvents, NewMessage, StreamConfig
from dspex.bus.records import NodeEvent, Origin, pack_frame, unpack_event
from dspex.engine.client import letters
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
EDGE = subjects.edge(APP, "asking", "s1", 0)
JUNK: list[Any] = [None, True, -1, 1e308, float("nan"), float("inf"), 2**63, "soon", "", [], {}, [[]], {"a": 1}, b"\xff"]


def asking(lab: MakeLab) -> Lab:
    topology = Topology("asking")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    one = lab(topology)
    one.start()
    return one


def goes_on(one: Lab) -> None:
    """The engine processes what comes behind, also after a restart."""
    one.work()
    one.publish("in", {"text": "last"})
    one.advance(1)
    assert "last" in [o["text"] for o in one.outputs("out")]
    one.kill()
    one.start()
    one.publish("in", {"text": "after a restart"})
    one.advance(1)
    assert "after a restart" in [o["text"] for o in one.outputs("out")]


@pytest.mark.parametrize("field", ["type", "message", "code", "fix", "node", "retry_after", "retryable", "traceback"])
@pytest.mark.parametrize("type", ["RetryLater", "RateLimited", "ProgramError", "TopologyError", "ConfigError", "nothing"])
def test_a_record_whose_error_holds_anything_fails_its_call_and_nothing_else(lab: MakeLab, field: str, type: str) -> None:
    one = asking(lab)
    for junk in JUNK:
        one.publish("in", {"text": "first"})
        (*_, request) = one.requests()
        one.store(one.result(request, outputs=None, error={"type": type, "message": "no", field: junk}))
    goes_on(one)


@pytest.mark.parametrize("field", ["outputs", "event", "number", "attempt", "try_number", "usage", "elapsed"])
def test_a_record_with_anything_in_its_fields_stops_nothing(lab: MakeLab, field: str) -> None:
    one = asking(lab)
    for junk in JUNK:
        one.publish("in", {"text": "first"})
        (*_, request) = one.requests()
        record = vars(one.record(request)) | {"number": request.record.number, "event": request.record.event, field: junk}
        one.store(NewMessage(request.record.subject, msgpack_bytes(record)))
    goes_on(one)


@pytest.mark.parametrize(
    "place",
    ["SECRET:1", f"{STREAM}:{'9' * 5000}", "nowhere:1", ">:1", "a b\r\nPUB x:1", f"{STREAM}:-1", ":1", f"{STREAM}:١"],
)
def test_an_event_that_refers_to_what_its_stage_does_not_read_is_a_dead_letter_without_it(lab: MakeLab, place: str) -> None:
    one = asking(lab)
    one.run(one.client.bus.ensure_stream(StreamConfig("SECRET", ["secret"])))
    one.store(NewMessage("secret", b'{"text": "secret"}'))
    frame = pack_frame([NodeEvent("in", Origin("id", "in", "run"), "application/json", b"")])
    one.store(NewMessage(EDGE, frame, {subjects.STORED: place.replace("\r\n", "")}))
    one.advance(1)
    assert [request.inputs for request in one.requests()] == []
    assert [letter.reason for letter in one.letters()] == ["DecodeError"]
    goes_on(one)


@pytest.mark.parametrize("data", [b"", b"\xc1", msgpack_bytes([[]]), msgpack_bytes([["in"]]), msgpack_bytes({"a": 1}), b"\x90"])
def test_what_is_no_frame_is_passed_over(lab: MakeLab, data: bytes) -> None:
    one = asking(lab)
    one.store(NewMessage(EDGE, data))
    one.store(NewMessage(EDGE, pack_frame([NodeEvent("in", Origin("id", "in", "run"), "application/json", b'{"text": "b"}')])))
    one.advance(1)
    assert [request.inputs["text"] for request in one.requests()] == ["b"]
    goes_on(one)


class Unheard(MemoryBus):
    """A server whose answers to commits with requests come late."""

    def __init__(self, one: Lab) -> None:
        super().__init__(one.server, BusEvents())
        self.answer = asyncio.Event()

    async def commit(self, drafts: Any, *, timeout: float = 5.0) -> int:
        last = await super().commit(drafts, timeout=timeout)
        if any(".work." in d.subject for d in drafts):
            await self.answer.wait()
        return last


def test_a_record_with_another_event_that_comes_before_the_commits_answer_costs_the_event_nothing(lab: MakeLab) -> None:
    topology = Topology("asking")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    one = lab(topology)
    bus = Unheard(one)
    one.start(bus=bus)
    one.publish("in", {"text": "mine"})
    (request,) = one.requests()
    assert request.record is not None
    other = unpack_event(request.record.event)._replace(data=b'{"text": "theirs"}')
    one.store(one.result(request, event=other.pack()))
    one.advance(2)
    bus.answer.set()
    one.advance(3)
    assert (one.outputs("out"), one.letters()) == ([{"text": "mine", "answer": "yes"}], [])


@pytest.mark.parametrize("name", [subjects.RUN, subjects.KEY, subjects.SESSION, subjects.TRACEPARENT])
def test_an_event_whose_headers_no_output_could_repeat_is_a_dead_letter(lab: MakeLab, name: str) -> None:
    one = asking(lab)
    one.store(NewMessage("in", b'{"text": "a"}', {name: "x" * 60_000}))
    one.advance(1)
    (letter,) = one.letters()
    assert (letter.node, letter.reason) == ("in", "InvalidInput")
    assert "60,000 characters" in letter.message
    goes_on(one)


def test_a_frame_whose_event_has_an_id_that_no_output_could_repeat_is_a_dead_letter(lab: MakeLab) -> None:
    one = asking(lab)
    long = Origin("i" * 40_000, "in", "r" * 40_000, key="k" * 40_000)
    one.store(NewMessage(EDGE, pack_frame([NodeEvent("in", long, "application/json", b'{"text": "a"}')])))
    one.advance(1)
    assert [letter.reason for letter in one.letters()] == ["InvalidInput"]
    goes_on(one)


def test_a_record_on_the_subject_of_another_pool_settles_no_call(lab: MakeLab) -> None:
    one = asking(lab)
    one.publish("in", {"text": "a"})
    (request,) = one.requests()
    forged = one.result(request, outputs={"answer": "forged"})
    one.store(forged._replace(subject=subjects.record(APP, "other", "asking", "s1", 0), headers={}))
    one.advance(1)
    assert one.outputs("out") == []
    one.work()
    one.advance(1)
    assert one.outputs("out") == [{"text": "a", "answer": "yes"}]


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 18, "0", "x", "", "٣"])
def test_a_record_without_its_payload_may_name_any_call(lab: MakeLab, number: str) -> None:
    one = asking(lab)
    headers = {subjects.CLAIM_CHECK: "a" * 64, subjects.MESSAGE_ID: f"asking.s1.0.{number}.1.nonce"}
    one.store(NewMessage(subjects.record(APP, "lightweight", "asking", "s1", 0), b"", headers))
    one.advance(100)  # its payload is waited for
    goes_on(one)


@pytest.mark.parametrize("run", ["a\nb", "a\rb", "\0", "r" * 70_000, "r" * 900_000, " ", "é\u2028"])
def test_an_event_of_any_run_stops_nothing(lab: MakeLab, run: str) -> None:
    one = asking(lab)
    frame = pack_frame([NodeEvent("in", Origin("id", "in", run), "application/json", b'{"text": "a"}')])
    one.store(NewMessage(EDGE, frame))
    one.advance(5)
    goes_on(one)
    assert len(one.outputs("out")) + len(one.letters()) == 3


def test_a_letter_of_any_run_can_be_redriven_and_holds_up_no_other(lab: MakeLab) -> None:
    topology = Topology("asking")
    topology.source("in").sink("out")
    one = lab(topology)
    one.start()
    for run in ("a\nb", "c"):
        frame = pack_frame([NodeEvent("in", Origin("id", "in", run), "application/json", b"none")])
        one.store(NewMessage(EDGE, frame))
    one.advance(5)
    before = one.letters()
    assert [letter.run for letter in before] == ["a\nb", "c"]
    assert one.run(letters.redrive(one.client.bus, APP, before)) == 2
    one.advance(5)
    assert [letter.attempts for letter in one.letters()] == [2, 2]


@pytest.mark.parametrize("node", ["", ".", "a..b", "a b", "*", ">", "n" * 5000, "é"])
def test_an_event_at_a_node_of_any_name_is_a_dead_letter(lab: MakeLab, node: str) -> None:
    one = asking(lab)
    one.store(NewMessage(EDGE, pack_frame([NodeEvent(node, Origin("id", "in", "run"), "application/json", b"{}")])))
    one.advance(1)
    assert [letter.reason for letter in one.letters()] == ["TopologyError"]
    assert all(len(m.subject) < 1000 for m in one.messages(subjects.dead_pattern(APP, "asking")))
    goes_on(one)
