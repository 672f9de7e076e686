"""Interactive calls that reach a pool twice, or when their caller has left: none is made, and paid, in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import orjson
import pytest
from pool_bench import APP, ECHO, Answering, Talks, Worker, talks

from dspex.bus import subjects
from dspex.bus.memory.server import Faults, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.message import Message, new_id
from dspex.bus.records import DEFAULT_POOL, CallRecord, CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.sayings import ACCEPTED, BUSY, RESULT
from dspex.bus.serving.sessions.state import SessionState, StoredTurn, taken
from dspex.bus.serving.sessions.store import SessionStore
from dspex.engine.client.client import Client
from dspex.workers.answer import Answer

CONTROL = subjects.control(APP, DEFAULT_POOL)


@pytest.fixture
def t() -> Iterator[Talks]:
    with talks() as one:
        yield one


def asked(text: str = "a", **options: object) -> CallRequest:
    spec = CallSpec("predict", ECHO, ECHO, route="auto")
    call = new_id()
    found = CallRequest(call, 1, 1, "", "", spec, {"text": text}, call)
    return replace(found, **options)  # type: ignore[arg-type]


class Heard:
    """A caller on the wire: its requests, and which frames come to which inbox."""

    def __init__(self, t: Talks) -> None:
        self._t, self.frames = t, list[tuple[int, str, Message]]()

    def inbox(self, number: int) -> str:
        return self._t.client.bus.inbox(lambda frame: self.frames.append((number, frame.headers[subjects.KIND], frame))).subject

    def send(self, request: CallRequest, inbox: str) -> None:
        subject = request.called_on(APP, DEFAULT_POOL)
        self._t.run(self._t.client.bus.send(subject, request.pack(), reply=inbox))
        self._t.loop.advance(0.1)

    @property
    def kinds(self) -> list[tuple[int, str]]:
        return [(number, kind) for number, kind, _ in self.frames]


# -- at the pool
def test_a_call_whose_caller_left_before_it_began_is_not_made(t: Talks) -> None:
    caller, request = Heard(t), asked()
    t.run(t.client.bus.send(CONTROL, orjson.dumps({"kind": "cancel", "call": request.call})))
    t.loop.advance(0.1)
    caller.send(request, caller.inbox(1))
    (_, kind, frame) = caller.frames[0]
    assert kind == RESULT
    assert (CallRecord.unpack(frame.data).error or {})["type"] == "Cancelled"
    assert t.answering.asked == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_asked_again_is_answered_once_where_its_caller_hears_now(t: Talks, stream: bool) -> None:
    """A process that stood still finds both requests."""
    t.answering.seconds = 3.0
    caller, request = Heard(t), asked(stream=stream)
    first = caller.inbox(1)
    caller.send(request, first)
    caller.send(request, caller.inbox(2) if stream else first)  # who is streamed to has another inbox then
    t.loop.advance(5)
    assert len(t.answering.asked) == 1
    now = 2 if stream else 1
    assert caller.kinds == [(1, ACCEPTED), (now, ACCEPTED), (now, RESULT)]


def test_another_request_under_the_id_of_a_call_does_not_get_its_answer(t: Talks) -> None:
    t.answering.seconds = 3.0
    caller, request = Heard(t), asked("secret")
    caller.send(request, caller.inbox(1))
    caller.send(replace(request, inputs={"text": "forged"}), caller.inbox(2))
    t.loop.advance(5)
    told = {n: (CallRecord.unpack(frame.data).outputs or {})["reply"] for n, kind, frame in caller.frames if kind == RESULT}
    assert told == {1: "secret after 0", 2: "forged after 0"}


class ThenCutOff(Answering):
    """Answers at once, and then nothing can be stored."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__()
        self._server = server

    async def _answer(self, work: CallRequest) -> Answer:
        answer = await super()._answer(work)
        self._server.luck.faults = Faults(disconnect=1.0)
        return answer


def test_who_waits_for_a_turn_that_is_not_stored_yet_is_told_that_a_worker_has_the_call(t: Talks) -> None:
    """Else it would be asked again, and paid twice."""
    t.pools[0].steps[-1] = ThenCutOff(t.server)
    caller = Heard(t)
    caller.send(asked(session="c1", turn="q1"), caller.inbox(1))
    assert caller.kinds == [(1, ACCEPTED)]


def test_who_asked_again_is_told_what_the_turn_says(t: Talks) -> None:
    """Two processes have answered, and the other one was first."""
    t.answering.seconds = 3.0
    first = t.begin(t.client.session("c1").call(ECHO, {"text": "a"}))
    stored = StoredTurn(t.answering.asked[0].call, "q1", 0.0, {"text": "a"}, {"reply": "of the other"})
    t.run(SessionStore(t.client.bus, APP).change("c1", lambda state, now: taken(state or SessionState(1.0, now), now, stored)))
    t.loop.advance(5)
    assert first.result().data == {"reply": "of the other"}


def test_of_two_who_clean_up_none_removes_the_session_that_came_after(t: Talks) -> None:
    store = SessionStore(t.client.bus, APP)
    t.say(t.client.session("c1", ttl="1m"), "a")
    _, seen = t.server.buckets[subjects.sessions(APP)]["c1"]
    t.loop.advance(130)
    t.run(store.purge())
    t.say(t.client.session("c1"), "b")
    t.run(store.remove("c1", seen))  # by an engine that had looked before
    assert t.texts(t.client.session("c1")) == ["b"]


# -- at the caller
class Pools:
    """The workers of a pool, played by a test: what they hear, and what was cancelled."""

    def __init__(self) -> None:
        self.loop, self.server = VirtualLoop(), MemoryServer()
        self.client = Client(bus=self.server.connect(), app=APP)
        self.workers: list[Worker] = []
        self.said: list[dict[str, str]] = []
        self.busy = 0
        self.loop.run(self._listen())

    async def _listen(self) -> None:
        bus = self.server.connect()

        async def take(message: Message) -> None:
            self.workers.append(Worker(bus, message))
            if len(self.workers) <= self.busy:
                self.workers[-1].tell(BUSY, b"")

        async def hear(message: Message) -> None:
            self.said.append(orjson.loads(message.data))
            if message.reply:
                bus.tell(message.reply, b"{}")

        await bus.subscribe(subjects.call_pattern(APP, DEFAULT_POOL), take)
        await bus.subscribe(CONTROL, hear)

    def begin(self, seconds: float) -> asyncio.Task[object]:
        async def call() -> object:
            return (await self.client.call(ECHO, {"text": "a"}, timeout="30s")).data

        task = self.loop.create_task(call())
        self.loop.advance(seconds)
        return task

    def answered(self, worker: Worker) -> None:
        async def answer() -> None:
            worker.accept()
            worker.answer(reply="b")

        self.loop.run(answer())
        self.loop.advance(0.1)

    @property
    def cancelled(self) -> list[str]:
        return [one["call"] for one in self.said if one["kind"] == "cancel"]


@pytest.fixture
def pools() -> Iterator[Pools]:
    one = Pools()
    yield one
    one.loop.close()


def test_the_worker_that_stood_still_is_told_that_another_one_has_answered(pools: Pools) -> None:
    calling = pools.begin(3.0)
    _, second = pools.workers
    pools.answered(second)
    assert calling.result() == {"reply": "b"}
    assert pools.cancelled == [second.request.call]


def test_a_call_that_one_worker_had_cancels_nothing(pools: Pools) -> None:
    pools.busy = 3
    calling = pools.begin(1.5)
    *_, last = pools.workers
    pools.answered(last)
    assert calling.result() == {"reply": "b"}
    assert pools.cancelled == []


def test_a_worker_has_all_of_its_time_to_take_a_call_that_others_were_too_busy_for(pools: Pools) -> None:
    pools.busy = 5  # at 0, 0.05, 0.15, 0.35 and 0.6 s; then one gets it at 0.85 s
    pools.begin(0.9)
    assert len(pools.workers) == 6
    pools.loop.advance(1.9)
    assert len(pools.workers) == 6, "and nobody is asked again before 2.85 s"
    pools.loop.advance(0.5)
    assert len(pools.workers) == 7, "then somebody is"
