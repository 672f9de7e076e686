"""Work that is delivered again: its worker died, perhaps behind the record and before the ack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import pytest

from dspex.bus import codecs, subjects
from dspex.bus.memory.handles import MemoryDelivery, MemoryWorkQueue
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.message import Message
from dspex.bus.port import BusEvents, Delivery, NewMessage, StreamConfig
from dspex.bus.records import AnswerTo, CallRecord, CallRequest, RecordTo
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.record_store import RecordStore
from dspex.bus.serving.work_consumers import ACK_WAIT, WorkConsumers
from dspex.bus.serving.work_loop import Job, WorkLoop

APP = "lab"
STREAM = subjects.stream(APP)
RECORDS = subjects.record(APP, "lightweight", "t", "s", 0)
WORK = subjects.work(APP, "lightweight", "t", "n")


def request(name: str, kind: str = "predict", lane: str = "live") -> CallRequest:
    spec = CallSpec(kind, "a -> b", "a -> b", lane=lane)
    to = RecordTo(RECORDS, f"t.s.0.{name}.1.nonce", 5, b"event")
    return CallRequest(name, 1, 1, "t", "n", spec, {}, "run", record=to)


def record(name: str, **changes: object) -> CallRecord:
    return replace(CallRecord(name, 1, 1, "t", "n", outputs={"a": "paid"}), **changes)


class _Counting(MemoryBus):
    """A connection that counts what its worker looks at."""

    looks = 0

    async def next(self, stream: str, subject: str, sequence: int) -> Message | None:
        self.looks += 1
        return await super().next(stream, subject, sequence)


class Lab:
    """Work that a worker took which died, and the worker that is given it then. `made`: the calls that this one makes."""

    def __init__(self) -> None:
        self.loop, self.server, self.made = VirtualLoop(), MemoryServer(), list[str]()
        self.bus = self.server.connect()
        self.other = _Counting(self.server, BusEvents())
        self.records = RecordStore(self.bus, APP, "lightweight")
        for name, taken in ((STREAM, subjects.own_subjects(APP)), (subjects.answers(APP), [subjects.answer_pattern(APP)])):
            self.loop.run(self.bus.ensure_stream(StreamConfig(name, taken)))
        self.loop.run(WorkConsumers(self.bus, APP, [("lightweight", 1)]).look())
        self.worker = WorkLoop(self.other, APP, "lightweight", self._accept, free=lambda: 9, failed=lambda error: None)

    def _accept(self, request: CallRequest, delivery: Delivery) -> Job:
        self.made.append(request.call)
        return partial(self._answer, request)

    async def _answer(self, request: CallRequest) -> CallRecord:
        return record(request.call)

    async def _taken(self, count: int) -> None:
        queue = await self.bus.work(STREAM, name=subjects.work_consumer("lightweight", 1), free=lambda: count)
        assert queue is not None
        for _ in range(count):
            assert (await queue.next()).delivered == 1
        await queue.close()

    def die_with(self, asked: Sequence[CallRequest], stored: Sequence[tuple[CallRecord, CallRequest]]) -> None:
        """A worker takes what is asked, stores these records and dies; `ack_wait` later another one begins."""
        for one in asked:
            self.loop.run(self.bus.publish(NewMessage(WORK, one.pack())))
        self.loop.run(self._taken(len(asked)))
        for made, of in stored:
            self.loop.run(self.records.store(made, of))
        self.loop.advance(ACK_WAIT + 300.0)  # longer than the server knows ids

        async def start() -> None:
            self.worker.start()

        self.loop.run(start())
        self.loop.advance(ACK_WAIT)

    def stored(self, stream: str, subject: str) -> list[Message]:
        return self.loop.run(self.bus.scan(stream, [subject], start=1, stop=1000))


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.loop.run(lab.worker.drain(0.0))
    lab.loop.close()


@pytest.mark.parametrize(
    ("kind", "lane"),
    [("predict", "live"), ("chain_of_thought", "live"), ("predict", "batch"), ("react", "live"), ("program", "live")],
)
def test_a_call_that_has_its_record_is_not_paid_again_when_it_is_delivered_again(lab: Lab, kind: str, lane: str) -> None:
    one = request("one", kind, lane)
    lab.die_with([one], [(record("one"), one)])
    assert (lab.made, lab.worker.served, len(lab.stored(STREAM, RECORDS))) == ([], 1, 1)
    lab.loop.advance(3 * ACK_WAIT)
    assert lab.worker.served == 1


def test_who_submitted_a_call_whose_worker_died_behind_its_record_gets_its_answer(lab: Lab) -> None:
    one = replace(request("one"), answer=AnswerTo("user", "token"))
    lab.die_with([one], [(record("one"), one)])
    (answer,) = lab.stored(subjects.answers(APP), subjects.answer(APP, "lightweight", "user", "token"))
    assert codecs.decode(answer.data, codecs.MSGPACK)["outputs"] == {"a": "paid"}
    assert lab.made == []


def test_work_that_came_before_its_process_stood_still_is_not_made_where_another_one_has_made_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process finds it in its socket when it goes on, as if it had just come."""
    one, late, time = request("one"), [0.0], VirtualLoop.time
    monkeypatch.setattr(VirtualLoop, "time", lambda self: time(self) + late[0])
    take = MemoryWorkQueue.next

    async def stopped(queue: MemoryWorkQueue) -> MemoryDelivery:
        delivery = await take(queue)
        if not late[0]:
            await lab.records.store(record("one"), one)
            late[0] = 2 * ACK_WAIT
        return delivery

    monkeypatch.setattr(MemoryWorkQueue, "next", stopped)

    async def start() -> None:
        lab.worker.start()

    lab.loop.run(start())
    lab.loop.advance(1.0)
    for item in (one, request("two")):
        lab.loop.run(lab.bus.publish(NewMessage(WORK, item.pack())))
    lab.loop.advance(1.0)
    assert lab.made == ["two"]
    lab.loop.advance(ACK_WAIT)
    before = lab.other.looks
    lab.loop.run(lab.bus.publish(NewMessage(WORK, request("three").pack())))
    lab.loop.advance(1.0)
    assert (lab.made, lab.other.looks) == (["two", "three"], before)


@pytest.mark.parametrize("stranger", [{"call": "another"}, {"try_number": 2}])
def test_what_is_no_record_of_a_call_does_not_stand_for_one(lab: Lab, stranger: dict[str, object]) -> None:
    one = request("one")
    lab.die_with([one], [(record("one", **stranger), one)])
    assert (lab.made, lab.worker.served) == (["one"], 1)


def test_records_are_looked_at_once_for_all_that_is_delivered_again_and_never_for_what_is_not(lab: Lab) -> None:
    many = [request(f"c{n}") for n in range(9)]
    lab.die_with(many, [(record(one.call), one) for one in many[:6]])
    assert (sorted(lab.made), lab.worker.served) == (["c6", "c7", "c8"], 9)
    assert 6 <= lab.other.looks <= 20  # not six for each of nine
    before = lab.other.looks
    lab.loop.run(lab.bus.publish(NewMessage(WORK, request("new").pack())))
    lab.loop.advance(1.0)
    assert (lab.made[-1], lab.other.looks) == ("new", before)
