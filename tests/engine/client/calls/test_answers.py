"""The answers to submitted calls, as a pool stores them: what keeps one from being stored keeps back no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import pytest
from engine_lab import APP, Lab
from structlog.testing import capture_logs

from dspex.bus import subjects
from dspex.bus.errors import BusError, StreamFull, Unreachable
from dspex.bus.memory.handles import MemoryObjects
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.port import Ack, BusEvents, NewMessage, StreamConfig
from dspex.bus.records import AnswerTo, CallRecord, CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.sayings import LATER, AnswerStore
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.submitted import NODE, submitted


class _NoRoomForLarge(MemoryBus):
    """A connection to a server whose object store takes nothing, and says why."""

    why: BusError | None = None

    async def objects(self, name: str, *, replicas: int = 1) -> MemoryObjects:
        if self.why is not None:
            raise self.why
        return await super().objects(name, replicas=replicas)


class _Counting(MemoryBus):
    """A connection that notes what it is told to store together, and whom it tells."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, BusEvents())
        self.together, self.told = list[int](), list[str]()

    async def publish_all(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> list[Ack | BusError]:
        self.together.append(len(drafts))
        return await super().publish_all(drafts, timeout=timeout)

    def tell(self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        self.told.append(subject.rpartition(".")[2])


def _request(call: str) -> CallRequest:
    spec = CallSpec("predict", "text -> reply", "text -> reply")
    return CallRequest(call, 1, 1, "", "", spec, {}, "run", answer=AnswerTo("user", call, "client"))


@pytest.mark.parametrize("why", [StreamFull("the object store holds no more"), Unreachable("the object store has no leader")])
def test_an_answer_too_large_for_a_message_that_finds_no_room_keeps_back_no_other_one(why: BusError) -> None:
    loop, bus = VirtualLoop(), _NoRoomForLarge(MemoryServer(), BusEvents())
    bus.why = why
    texts = {"a": "small", "b": "x" * (bus.max_payload + 1), "c": "small"}

    async def begin() -> asyncio.Future[list[None]]:
        store = AnswerStore(bus, "lab", "lightweight")
        given = (CallRecord(call, 1, 1, "", "", outputs={"reply": text}) for call, text in texts.items())
        return asyncio.gather(*(store.give(record, _request(record.call)) for record in given))

    async def stored() -> list[str]:
        at = {call: subjects.answer("lab", "lightweight", "user", call) for call in texts}
        return [call for call in texts if await bus.last(subjects.answers("lab"), at[call]) is not None]

    try:
        loop.run(bus.ensure_stream(StreamConfig(subjects.answers("lab"), [subjects.answer_pattern("lab")])))
        with capture_logs() as logs:
            given = loop.run(begin())
            loop.advance(1.0)
        assert loop.run(stored()) == ["a", "c"]
        if given.done():  # there will never be room
            assert [line["why"] for line in logs if line["log_level"] == "warning"] == [why.message]
            return
        bus.why = None
        loop.advance(10.0)
        assert given.done()
        assert loop.run(stored()) == ["a", "b", "c"]
    finally:
        loop.close()


@pytest.mark.parametrize("ends", [False, True])
def test_who_waits_is_told_at_once_and_answers_are_stored_together_at_once_where_the_process_ends(ends: bool) -> None:
    loop, bus = VirtualLoop(), _Counting(MemoryServer())

    async def begin() -> AnswerStore:
        return AnswerStore(bus, "lab", "lightweight")

    async def give(store: AnswerStore, call: str) -> asyncio.Task[None]:
        record = CallRecord(call, 1, 1, "", "", outputs={"reply": call})
        given = asyncio.create_task(store.give(record, _request(call)))
        await asyncio.sleep(0)
        return given

    try:
        loop.run(bus.ensure_stream(StreamConfig(subjects.answers("lab"), [subjects.answer_pattern("lab")])))
        store, given = loop.run(begin()), list[asyncio.Task[None]]()
        for n, call in enumerate("abc", 1):
            given.append(loop.run(give(store, call)))
            assert bus.told == list("abc")[:n]  # and nothing of it is stored yet
            loop.advance(LATER / 4)
        assert not bus.together
        assert not any(task.done() for task in given)
        if ends:
            loop.run(store.hurry())
        loop.advance(0.0 if ends else LATER / 2)
        assert all(task.done() for task in given)
        assert bus.together == [3]
    finally:
        loop.close()


class _Takes:
    graph: Graph = submitted(APP, ("lightweight",))


def test_a_worker_that_ends_without_grace_stores_the_answer_that_it_has_told(lab: Callable[..., Lab]) -> None:
    one = lab(_Takes())
    one.start()
    one.answers[NODE] = lambda inputs, request: {"reply": inputs["text"]}
    one.work()
    run = one.run(one.client.submit("text -> reply", {"text": "hi"}))
    assert one.run(run.result("1s")).data == {"reply": "hi"}
    pool, _, call = run.id.partition("/")
    kept = one.client.bus.last(subjects.answers(APP), subjects.answer(APP, pool, "_INBOX", call))
    one.stop_workers(grace=0.0)
    assert one.run(kept) is not None
