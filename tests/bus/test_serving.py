"""The worker loop by itself: its queue when the bus fails, ids that something else has, garbage, the server's clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
from structlog.testing import capture_logs

from dspex.bus import subjects
from dspex.bus.errors import BusError, NotAllowed, NotStored, PayloadTooLarge, Unreachable
from dspex.bus.memory.handles import MemoryObjects
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.message import Message
from dspex.bus.port import Ack, BusEvents, Delivery, NewMessage, StreamConfig
from dspex.bus.records import CallRecord, CallRequest, RecordTo
from dspex.bus.serving import payloads
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.record_store import RecordStore
from dspex.bus.serving.work_consumers import WorkConsumers
from dspex.bus.serving.work_loop import OPEN_AGAIN, Job, WorkLoop


class _FailingQueue:
    """A work queue that the bus has lost."""

    def __init__(self) -> None:
        self.closed, self.dry = 0, True

    async def next(self) -> Delivery:
        raise Unreachable("the consumer is gone")

    def ask_for_more(self) -> None: ...

    async def close(self) -> None:
        self.closed += 1


class _Bus(MemoryBus):
    """A connection whose work queues all fail."""

    def __init__(self) -> None:
        super().__init__(MemoryServer(), BusEvents())
        self.queues: list[_FailingQueue] = []

    async def work(self, stream: str, *, name: str, free: Callable[[], int]) -> _FailingQueue:  # type: ignore[override]
        self.queues.append(_FailingQueue())
        return self.queues[-1]


def test_a_worker_closes_each_queue_that_failed_once_before_it_opens_the_next() -> None:
    loop, bus, failures = VirtualLoop(), _Bus(), list[BaseException]()

    def accept(request: CallRequest, delivery: Delivery) -> Job:
        raise AssertionError("no work can come")

    try:
        worker = WorkLoop(bus, "lab", "lightweight", accept, free=lambda: 1, failed=failures.append)

        async def start() -> None:
            worker.start()

        loop.run(start())
        loop.advance(2.5 * OPEN_AGAIN)
        tries = 3 * len(subjects.BANDS)
        assert [q.closed for q in bus.queues] == [1] * tries
        loop.run(worker.drain(0.0))
        assert [q.closed for q in bus.queues] == [1] * tries
        assert failures == []
    finally:
        loop.close()


def test_signs_of_life_are_sent_in_the_order_in_which_the_work_came() -> None:
    """Else one seed of a simulation is another run each time: who asks first meets the next fault."""
    loop, signs = VirtualLoop(), list[int]()

    def accept(request: CallRequest, delivery: Delivery) -> Job:
        alive = delivery.in_progress

        async def in_progress() -> None:
            signs.append(delivery.message.sequence)
            await alive()

        delivery.in_progress = in_progress  # type: ignore[method-assign]
        return partial(asyncio.sleep, 8.0, None)

    try:
        bus = MemoryServer().connect()
        loop.run(bus.ensure_stream(StreamConfig(subjects.stream("lab"), subjects.own_subjects("lab"))))
        loop.run(WorkConsumers(bus, "lab", [("lightweight", 1)]).look())
        worker = WorkLoop(bus, "lab", "lightweight", accept, free=lambda: 1000, failed=lambda error: None)

        async def start() -> None:
            worker.start()
            for _ in range(100):
                await bus.publish(NewMessage(WORK, request().pack()))

        loop.run(start())
        loop.advance(6.0)
        loop.run(worker.kill())
    finally:
        loop.close()
    assert signs == sorted(signs)
    assert len(signs) == 100


class _WithoutObjects(MemoryBus):
    """A connection that is cut once, just when a payload is read."""

    cut = False

    async def objects(self, name: str, *, replicas: int = 1) -> MemoryObjects:
        if not self.cut:
            self.cut = True
            raise Unreachable("the connection was cut")
        return await super().objects(name, replicas=replicas)


def test_work_whose_payload_cannot_be_read_now_comes_again() -> None:
    loop, server, taken = VirtualLoop(), MemoryServer(), list[str]()

    def accept(request: CallRequest, delivery: Delivery) -> Job:
        taken.append(request.call)
        return partial(asyncio.sleep, 0.0, None)

    try:
        bus = server.connect()
        loop.run(bus.ensure_stream(StreamConfig(subjects.stream("lab"), subjects.own_subjects("lab"))))
        loop.run(WorkConsumers(bus, "lab", [("lightweight", 1)]).look())
        cut = _WithoutObjects(server, BusEvents())
        worker = WorkLoop(cut, "lab", "lightweight", accept, free=lambda: 9, failed=lambda error: None)

        async def start() -> None:
            worker.start()
            await bus.publish(await payloads.checked_in(bus, "lab", NewMessage(WORK, request().pack()), 10))

        loop.run(start())
        loop.advance(60.0)
        loop.run(worker.kill())
    finally:
        loop.close()
    assert cut.cut
    assert taken == ["call"]


class _Refusing(MemoryBus):
    """A connection that stores no records, for as long as it has a reason."""

    why: BusError | None = None

    async def publish(self, message: NewMessage) -> Ack:
        if self.why is not None and message.subject == RECORDS:
            raise self.why
        return await super().publish(message)


@pytest.mark.parametrize(
    ("why", "outputs", "kept"),
    [
        (NotStored("no stream"), {"a": 1}, False),
        (PayloadTooLarge("too large"), {"a": 1}, False),
        (None, {"a": 1 << 70}, False),
        (NotAllowed("a permission is missing"), {"a": 1}, True),
        (Unreachable("no leader"), {"a": 1}, True),
        (BusError("the server says something new"), {"a": 1}, True),
    ],
    ids=["not stored", "too large", "not to be packed", "not allowed", "unreachable", "unknown"],
)
def test_an_answer_that_cannot_be_stored_is_paid_once(why: BusError | None, outputs: dict[str, int], kept: bool) -> None:
    loop, server, taken = VirtualLoop(), MemoryServer(), list[str]()

    async def answer(request: CallRequest) -> CallRecord:
        taken.append(request.call)
        return CallRecord(request.call, request.try_number, 1, "t", "n", outputs=outputs)

    try:
        bus = _Refusing(server, BusEvents())
        bus.why = why
        loop.run(bus.ensure_stream(StreamConfig(subjects.stream("lab"), subjects.own_subjects("lab"))))
        loop.run(WorkConsumers(bus, "lab", [("lightweight", 1)]).look())
        worker = WorkLoop(bus, "lab", "lightweight", lambda r, d: partial(answer, r), free=lambda: 9, failed=lambda error: None)

        async def start() -> None:
            worker.start()
            await bus.publish(NewMessage(WORK, request().pack()))

        loop.run(start())
        loop.advance(600.0)
        assert (taken, worker.served, worker.records.lost) == (["call"], 0 if kept else 1, 0 if kept else 1)
        bus.why = None
        loop.advance(10.0)
        assert (len(taken), worker.served) == (1, 1)
        stored = loop.run(bus.scan(subjects.stream("lab"), [RECORDS], start=1, stop=1000))
        assert len(stored) == (1 if kept else 0)
        loop.run(worker.kill())
    finally:
        loop.close()


# -- records and requests ---------------------------------------------------------------------------------------------
RECORDS = subjects.record("lab", "lightweight", "t", "s", 0)
WORK = subjects.work("lab", "lightweight", "t", "n")


def request(try_number: int = 1) -> CallRequest:
    to = RecordTo(RECORDS, "t.s.0.5.1.nonce", 5, b"event")
    return CallRequest("call", try_number, 1, "t", "n", CallSpec("predict", "a -> b", "a -> b"), {}, "run", record=to)


class Lab:
    """A worker loop on a memory bus and a virtual clock. `ages`: how long ago the work that it took was stored."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.bus = MemoryServer().connect()
        self.failures: list[BaseException] = []
        self.ages: list[float] = []
        self.worker = WorkLoop(self.bus, "lab", "lightweight", self._accept, free=lambda: 9, failed=self.failures.append)
        self.loop.run(self.bus.ensure_stream(StreamConfig(subjects.stream("lab"), subjects.own_subjects("lab"))))
        self.loop.run(WorkConsumers(self.bus, "lab", [("lightweight", band) for band in subjects.BANDS]).look())

    def _accept(self, request: CallRequest, delivery: Delivery) -> Job:
        self.ages.append(self.worker.clock.age(delivery.message.time))
        return partial(self._answer, request)

    async def _answer(self, request: CallRequest) -> CallRecord:
        return CallRecord(request.call, request.try_number, 1, "t", "n", outputs={"a": 1})

    def put(self, subject: str, data: bytes, id: str = "") -> None:
        self.loop.run(self.bus.publish(NewMessage(subject, data, {subjects.MESSAGE_ID: id} if id else None)))

    def start(self) -> None:
        async def start() -> None:
            self.worker.start()

        self.loop.run(start())
        self.loop.advance(1.0)

    def records(self) -> list[Message]:
        return self.loop.run(self.bus.scan(subjects.stream("lab"), [RECORDS], start=1, stop=1000))


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.loop.run(lab.worker.drain(0.0))
    lab.loop.close()
    assert lab.failures == []


def test_a_record_that_is_stored_already_is_not_stored_again(lab: Lab) -> None:
    for _ in range(2):
        lab.put(WORK, request().pack())
    lab.start()
    (stored,) = lab.records()
    record = CallRecord.unpack(stored.data)
    assert (record.call, record.number, record.event, record.outputs) == ("call", 5, b"event", {"a": 1})
    assert (lab.worker.served, lab.worker.records.collisions) == (2, 0)


@pytest.mark.parametrize(
    ("subject", "data"),
    [
        (RECORDS, CallRecord("another call", 1, 1, "t", "n").pack()),
        (RECORDS, CallRecord("call", 2, 1, "t", "n").pack()),
        (RECORDS, b"no record"),
        (subjects.record("lab", "lightweight", "t", "s", 1), CallRecord("call", 1, 1, "t", "n").pack()),
    ],
    ids=["another call", "another execution", "garbage", "another partition"],
)
def test_a_record_whose_id_something_else_has_is_stored_under_a_fresh_id_and_counted(
    lab: Lab, subject: str, data: bytes
) -> None:
    lab.put(subject, data, id="t.s.0.5.1.nonce")
    lab.put(WORK, request().pack())
    with capture_logs() as logs:
        lab.start()
    stored = lab.records()[-1]
    assert CallRecord.unpack(stored.data).outputs == {"a": 1}
    assert stored.headers[subjects.MESSAGE_ID].startswith("t.s.0.5.1.nonce.")
    assert (lab.worker.served, lab.worker.records.collisions) == (1, 1)
    (line,) = [e for e in logs if e["event"] == "something else was stored under the id of a record"]
    assert (line["log_level"], line["call"], line["sequence"]) == ("error", "call", 1)


@pytest.mark.parametrize("data", [b"", b"garbage", b"\xc1", b"\x80", CallRecord("c", 1, 1, "t", "n").pack()])
def test_a_request_that_cannot_be_read_is_refused_once_with_a_log_line_and_the_next_is_served(lab: Lab, data: bytes) -> None:
    lab.put(WORK, data)
    lab.put(WORK, request().pack())
    with capture_logs() as logs:
        lab.start()
        lab.loop.advance(100.0)
    assert len(lab.records()) == 1
    assert [e["log_level"] for e in logs if e["event"] == "unreadable work dropped"] == ["error"]


@pytest.mark.parametrize("id", ["t.s.0.5.1.nonce", "", "t.s.0.5.1", "t.s.zero.5.1.nonce", "t.s.0.5." + "9" * 5000 + ".nonce"])
def test_a_request_without_its_payload_is_answered_where_its_headers_say_and_dropped_where_they_do_not(
    lab: Lab, id: str
) -> None:
    headers = {subjects.CLAIM_CHECK: "a" * 64, subjects.CAUSE: "call", subjects.RECORD: id, subjects.RUN: "run"}
    lab.loop.run(lab.bus.publish(NewMessage(WORK, b"", headers)))
    lab.put(WORK, request(2).pack())
    lab.loop.advance(100.0)
    with capture_logs() as logs:
        lab.start()
    found = [(m.headers[subjects.MESSAGE_ID], CallRecord.unpack(m.data)) for m in lab.records()]
    errors = [(r.call, r.number, r.try_number, id, r.error["code"]) for id, r in found if r.error]
    assert errors == ([("call", 5, 1, id, "DX511")] if id == "t.s.0.5.1.nonce" else [])
    assert [r.outputs for _, r in found if r.try_number == 2] == [{"a": 1}]
    assert len([e for e in logs if e["event"] == "unreadable work dropped"]) == (0 if errors else 1)


ODD_TOPOLOGIES = ["*", ">", "", "a b", "x" * 5000]


@pytest.mark.parametrize("odd", ODD_TOPOLOGIES, ids=["a wildcard", "all", "nothing", "a space", "long"])
@pytest.mark.parametrize("with_payload", [True, False], ids=["in its payload", "in its headers"])
def test_a_request_whose_record_no_server_would_store_is_refused_once_and_never_run(
    lab: Lab, odd: str, with_payload: bool
) -> None:
    headers = {subjects.CLAIM_CHECK: "a" * 64, subjects.CAUSE: "call", subjects.RECORD: f"{odd}.s.0.5.1.nonce"}
    to = RecordTo(subjects.record("lab", "lightweight", odd, "s", 0), "t.s.0.5.1.nonce", 5, b"event")
    draft = NewMessage(WORK, replace(request(), record=to).pack()) if with_payload else NewMessage(WORK, b"", headers)
    lab.loop.run(lab.bus.publish(draft))
    lab.put(WORK, request(2).pack())
    lab.loop.advance(100.0)
    with capture_logs() as logs:
        lab.start()
        lab.loop.advance(100.0)
    assert len(lab.ages) == len(lab.records()) == 1
    assert len([e for e in logs if e["event"] == "unreadable work dropped"]) == 1


@pytest.mark.parametrize(
    "subject",
    [
        "dspex.lab.audit.redriven", "dspex.lab.log.t.s.0", "dspex.lab.record.heavyweight.t.s.0",
        "dspex.other.record.lightweight.t.s.0", "dspex.lab.record.lightweight",
        "dspex.lab.record.lightweight.t.s.0.more", "orders.new",
    ],
)  # fmt: skip
def test_a_request_cannot_have_its_record_stored_where_its_pool_stores_none(lab: Lab, subject: str) -> None:
    lab.put(WORK, replace(request(), record=RecordTo(subject, "t.s.0.5.1.nonce", 5, b"")).pack())
    lab.start()
    lab.loop.advance(100.0)
    assert (lab.ages, lab.worker.refused) == ([], 1)
    assert lab.loop.run(lab.bus.scan(subjects.stream("lab"), [subject], start=1, stop=1000)) == []


@pytest.mark.parametrize("text", ["a\nb", "x" * 5000], ids=["a line break", "long"])
@pytest.mark.parametrize("where", ["id", "call", "run", "session"])
def test_a_request_with_what_can_be_no_header_of_its_record_is_refused_once(lab: Lab, where: str, text: str) -> None:
    odd = request()
    odd = replace(odd, record=RecordTo(RECORDS, text, 5, b"")) if where == "id" else replace(odd, **{where: text})
    lab.put(WORK, odd.pack())
    with capture_logs() as logs:
        lab.start()
        lab.loop.advance(100.0)
    assert lab.records() == lab.ages == []
    assert len([e for e in logs if e["event"] == "unreadable work dropped"]) == 1


def test_the_age_of_work_counts_from_when_it_was_stored_by_the_servers_clock(lab: Lab) -> None:
    """The memory server's clock is months away from this machine's."""
    lab.put(WORK, request().pack())
    lab.loop.advance(40.0)
    lab.start()
    assert lab.ages == [pytest.approx(40.0, abs=0.1)]
    lab.loop.advance(3600.0)
    lab.put(WORK, request(2).pack())
    lab.loop.advance(1.0)
    assert lab.ages[1] == pytest.approx(0.0, abs=0.1)


@pytest.mark.asyncio
async def test_interactive_calls_without_an_applied_topology_are_said_once_and_are_no_fault() -> None:
    store = RecordStore(MemoryServer().connect(), "lab", "lightweight")
    asked = replace(request(), record=None)
    with capture_logs() as logs:
        for _ in range(5):
            assert not await store.store(CallRecord("call", 1, 1, "t", "n", outputs={"a": 1}), asked)
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("interactive calls are answered, and not recorded", "warning")
    ]
    assert store.lost == 0
