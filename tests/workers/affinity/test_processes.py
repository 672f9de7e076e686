"""Calls of one key go to one process of a pool, whatever process the server gives them to: if it has room, or to no other."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from pool_bench import APP, POOL, RECORDS, Answering, IdleChild, program, work

from dspex.bus import subjects
from dspex.bus.errors import AffinityLost, ConfigError, DecodeError, Unsettled
from dspex.bus.memory.handles import MemoryBucket
from dspex.bus.memory.server import Faults, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.message import Message
from dspex.bus.port import NewMessage, StreamConfig
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.work_consumers import WorkConsumers
from dspex.engine.client.client import Client
from dspex.operators.recorded.calls import predict
from dspex.operators.recorded.calls import program as own_program
from dspex.workers.config import PoolConfig
from dspex.workers.pool.children.handing import HandedCall
from dspex.workers.pool.children.scaling import BEAT, SILENT
from dspex.workers.pool.pool import Pool

T = TypeVar("T")
SLOTS = 64


class Machines:
    """Processes of a pool on one server, in virtual time: all of them but their children, for which a step answers."""

    def __init__(self, processes: int = 2, seed: int = 0, faults: Faults | None = None) -> None:
        self.loop, self.server = VirtualLoop(), MemoryServer(seed=seed)
        self.answering = Answering()
        self.pools: list[Pool] = []
        self.handed: list[HandedCall] = []
        self.bus = self.server.connect()
        self.client = Client(bus=self.bus, app=APP)
        self.run(self._prepare())
        for _ in range(processes):
            self.pools.append(self.run(self._process()))
        self.loop.advance(2 * BEAT)  # until they know of each other
        self.server.luck.faults = faults or Faults()

    async def _prepare(self) -> None:
        await self.bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
        await self.bus.bucket(subjects.bucket(APP))
        await WorkConsumers(self.bus, APP, [(POOL, subjects.band(5))]).look()

    def listen(self) -> None:
        """Note in `handed` what processes hand over from now on. While somebody listens, nobody is seen to be gone."""

        async def heard(message: Message) -> None:
            self.handed.append(HandedCall.unpack(message.data))

        async def subscribe() -> None:
            await self.bus.subscribe(subjects.handed(APP, POOL, "*"), heard)

        self.run(subscribe())

    async def _process(self) -> Pool:
        pool = Pool(self.server.connect(), PoolConfig(APP, POOL, size=1, slots=SLOTS))
        pool.steps.append(self.answering)
        pool.children.children.append(child_of(1000 + len(self.pools)))
        await pool.scaling.begin()
        pool.scaling.start()
        await pool.handing.start()
        await pool.status.subscribe()
        pool.work.start()
        asyncio.get_running_loop().create_task(pool.interactive.group.run())
        return pool

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(what, advance=True)

    def say(self, session: str, spec: Any) -> str:
        """The process that answered a call of a session."""
        return self.run(self.client.call(spec, {"text": "a"}, session=session)).worker

    def put(self, *requests: CallRequest) -> None:
        """Store work, whatever goes wrong elsewhere."""

        async def put() -> None:
            for one in requests:
                self.server.publish(NewMessage(subjects.work(APP, POOL, one.topology, one.node), one.pack()))

        self.run(put())

    def records(self) -> list[CallRecord]:
        """Those that are stored."""
        stored = self.server.streams[subjects.stream(APP)].messages.values()
        return [CallRecord.unpack(message.data) for message in stored if message.subject == RECORDS]

    def make(self, *requests: CallRequest) -> list[CallRecord]:
        """Store work; the records of it, in its order."""
        self.put(*requests)
        self.loop.advance(10)
        found = {record.call: record for record in self.records()}
        return [found[one.call] for one in requests]

    def kill(self, pool: Pool) -> None:
        """End a process as SIGKILL does: it says nothing any more."""

        async def end() -> None:
            await pool.bus.close()

        self.run(end())
        self.pools.remove(pool)

    def of(self, worker: str) -> Pool:
        return next(pool for pool in self.pools if pool.worker == worker)


@pytest.fixture
def m() -> Iterator[Machines]:
    one = Machines()
    yield one
    one.loop.close()


def child_of(number: int) -> Any:
    return IdleChild(number)


def ours(affinity: Any) -> Any:
    """A program of the user's."""
    return own_program("sample:pid", "text -> reply", pool=POOL, affinity=affinity)


def test_calls_of_a_session_go_to_one_process_and_all_processes_have_some(m: Machines) -> None:
    found = {session: {m.say(session, ours("prefer")) for _ in range(3)} for session in map(str, range(16))}
    assert {len(workers) for workers in found.values()} == {1}
    assert len(set[str]().union(*found.values())) == 2


def test_where_its_own_process_has_no_room_or_is_gone_a_call_is_answered_at_once_by_another(m: Machines) -> None:
    own = m.of(m.say("s", ours("prefer")))
    (child,) = own.children.children
    child.busy = SLOTS
    before = m.loop.time()
    assert m.say("s", ours("prefer")) != own.worker
    child.busy = 0
    m.kill(own)
    assert m.say("s", ours("prefer")) != own.worker
    assert m.loop.time() - before < 1


@pytest.mark.parametrize("spec", [predict("text -> reply", pool=POOL), ours("none")])
def test_what_keeps_nothing_in_memory_or_asks_for_no_process_is_handed_to_nobody(m: Machines, spec: Any) -> None:
    m.listen()
    for session in map(str, range(8)):
        m.say(session, spec)
    for _ in range(8):
        m.run(m.client.call(ours("prefer"), {"text": "no key"}))
    assert m.handed == []
    assert not [key for key in m.server.buckets[subjects.bucket(APP)] if key.startswith(subjects.HELD)]


def test_durable_calls_of_a_key_are_answered_by_one_process_each_of_them_once(m: Machines) -> None:
    m.listen()
    asked = [work(spec=program("pid"), affinity=f"key {n % 9}", required=n % 9 > 4) for n in range(54)]  # both get each key
    records = m.make(*asked)
    assert all(record.error is None for record in records)
    assert len({(one.affinity, record.worker) for one, record in zip(asked, records)}) == 9
    assert len({record.worker for record in records}) == 2
    assert m.handed, "the server gave some to the other one"
    assert sum(pool.work.served for pool in m.pools) == len(m.answering.asked) == 54


@pytest.mark.parametrize("seed", range(2))
def test_each_call_has_one_record_whatever_becomes_of_those_who_hand_it_over(seed: int) -> None:
    """Answers to what is handed over are lost or late, work comes twice, and a process is killed in the middle of it."""
    m = Machines(3, seed, Faults(disconnect=0.03, duplicate=0.05, delay=0.5))
    m.answering.seconds = 1.0
    asked = [work(spec=program("pid"), affinity=f"key {n % 7}", required=n % 7 > 4) for n in range(60)]
    m.put(*asked[:30])
    m.loop.advance(1.5)
    m.kill(m.pools[seed])
    m.put(*asked[30:])
    m.loop.advance(300)  # what a fault takes comes again after half a minute, and may be taken again
    found = sorted(record.call for record in m.records())
    assert found == sorted(one.call for one in asked)
    failed = [record.error["type"] for record in m.records() if record.error is not None]
    assert set(failed) <= {"AffinityLost"}
    assert len(failed) <= 2, "each of two keys is told once"
    m.loop.close()


@pytest.mark.parametrize("durable", [True, False])
def test_a_call_that_was_handed_over_long_ago_is_not_made_by_who_stood_still_meanwhile(m: Machines, *, durable: bool) -> None:
    handed = list[Message]()

    async def heard(message: Message) -> None:
        handed.append(message)

    async def again() -> None:
        for one in handed:
            m.bus.tell(one.subject, one.data, headers=one.headers, reply=one.reply)

    m.run(m.bus.subscribe(subjects.handed(APP, POOL, "*"), heard))
    for n in range(8):
        if durable:
            m.make(work(spec=program("pid"), affinity=f"key {n}"))
        else:
            m.say(f"session {n}", ours("prefer"))
    made = len(m.answering.asked)
    assert handed
    m.loop.advance(60)
    before = len(handed)
    m.run(again())
    m.loop.advance(60)
    assert len(handed) == 2 * before, "they came again"
    assert len(m.answering.asked) == made == 8


def test_who_requires_a_worker_is_told_once_when_it_is_gone(m: Machines) -> None:
    found = {session: m.say(session, ours("require")) for session in map(str, range(8))}
    assert len(set(found.values())) == 2
    m.pools.append(m.run(m._process()))  # pyright: ignore[reportPrivateUsage]
    m.loop.advance(2 * BEAT)
    assert {session: m.say(session, ours("require")) for session in found} == found, "another process changes nothing"
    lost = found["0"]
    m.kill(m.of(lost))
    for session, worker in found.items():
        if worker == lost:
            with pytest.raises(AffinityLost) as caught:
                m.say(session, ours("require"))
            assert caught.value.code == "DX703"
        now = m.say(session, ours("require"))
        assert (now == worker) == (worker != lost)
        assert m.say(session, ours("require")) == now


def test_who_requires_a_worker_that_is_gone_is_told_also_where_the_answer_to_a_write_is_lost(
    m: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = MemoryBucket.put

    async def unheard(self: MemoryBucket, key: str, value: bytes, *, revision: int | None = None) -> int:
        found = await put(self, key, value, revision=revision)
        if key.startswith(subjects.HELD):
            raise Unsettled("no answer to a write")
        return found

    own = m.of(m.say("s", ours("require")))
    monkeypatch.setattr(MemoryBucket, "put", unheard)
    m.kill(own)
    with pytest.raises(AffinityLost):
        m.say("s", ours("require"))
    assert m.say("s", ours("require")) == m.say("another", ours("require")) == m.pools[0].worker


def test_a_process_that_is_only_silent_keeps_its_keys_until_it_counts_as_dead(m: Machines) -> None:
    own = m.of(m.say("s", ours("require")))
    m.kill(own)
    begin = m.loop.time()
    with pytest.raises(AffinityLost):
        m.say("s", ours("require"))
    assert (SILENT - 1) * BEAT <= m.loop.time() - begin <= (SILENT + 2) * BEAT


def test_a_worker_that_is_replaced_and_a_process_that_drains_are_gone(m: Machines) -> None:
    own = m.of(m.say("s", ours("require")))
    (child,) = own.children.children
    child.retiring = True
    own.children.children.append(child_of(5))
    with pytest.raises(AffinityLost):
        m.say("s", ours("require"))
    own = m.of(m.say("s", ours("require")))
    begin = m.loop.time()
    own.draining = True
    m.run(own.scaling.stop())
    with pytest.raises(AffinityLost):
        m.say("s", ours("require"))
    assert m.say("s", ours("require")) != own.worker
    assert m.loop.time() - begin < 1


def test_a_durable_call_whose_worker_is_gone_is_told(m: Machines) -> None:
    first, second, third = (work(spec=program("pid"), affinity="k", required=True) for _ in range(3))
    (record,) = m.make(first)
    m.kill(m.of(record.worker))
    m.loop.advance((SILENT + 1) * BEAT)
    (record,) = m.make(second)
    assert record.error is not None
    assert record.error["type"] == "AffinityLost"
    (record,) = m.make(third)
    assert record.error is None


def test_whoever_requires_a_worker_without_a_key_is_told_how_to_give_one(m: Machines) -> None:
    with pytest.raises(ConfigError, match="session"):
        m.run(m.client.call(ours("require"), {"text": "a"}))
    with pytest.raises(ConfigError, match="session"):
        m.run(m.client.submit(ours("require"), {"text": "a"}))
    with pytest.raises(DecodeError, match="key"):
        CallRequest.unpack(work(required=True).pack())


@pytest.mark.parametrize("given", [
    HandedCall("a", {}, b"x"), HandedCall("a", {}, b"x", "_INBOX.1", "1.1"), HandedCall("a", {}, b"x", "dspex.test.log.t.s.0"),
])  # fmt: skip
def test_what_no_process_hands_over_is_refused(given: HandedCall) -> None:
    with pytest.raises(DecodeError):
        HandedCall.unpack(given.pack())


def test_a_forged_call_is_not_run(m: Machines) -> None:
    (pool, other) = m.pools
    asked = work(spec=program("pid"))
    for subject, token in (("dspex.test.log.t.s.0", "1.1"), (subjects.work(APP, POOL, "t", "n"), "999.1"), ("a", "x")):
        forged = HandedCall(subject, {}, asked.pack(), token=token).pack()
        m.run(m.bus.send(subjects.handed(APP, POOL, pool.id), forged))
    elsewhere = HandedCall("dspex.test.call.light.other.node", {}, work(record=None).pack(), "_INBOX.1").pack()
    m.run(m.bus.send(subjects.handed(APP, POOL, pool.id), elsewhere, reply="_INBOX.2"))
    m.loop.advance(1)
    assert m.answering.asked == []
    assert (pool.work.refused, other.work.refused) == (1, 0)
