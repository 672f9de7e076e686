"""A stand-in model, a pool with real children, and a bus: what the tests of the workers stand on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from waiting import until

from dspex.bus import codecs, subjects
from dspex.bus.errors import CallError, DecodeError, DspexError, WorkerLost
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.message import Message, new_id
from dspex.bus.port import NewMessage, StreamConfig
from dspex.bus.records import DEFAULT_POOL, CallRecord, CallRequest, RecordTo, Usage
from dspex.bus.serving import payloads
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.sayings import ACCEPTED, RESULT, SAID, Said, Saying
from dspex.bus.serving.work_consumers import ACK_WAIT, WorkConsumers
from dspex.engine.client.client import Client
from dspex.workers.answer import Answer
from dspex.workers.config import PoolConfig, Profile
from dspex.workers.frames import Frame
from dspex.workers.pool.execution import Execution
from dspex.workers.pool.pool import Pool
from dspex.workers.processes.link import Link

HERE = Path(__file__).parent

APP, POOL = "test", "light"
RECORDS = subjects.record(APP, POOL, "triage", "classify", 0)
SIGNATURE = "text -> intent: Literal['card_arrival','lost_card','exchange_rate','other'], urgency: int"
CHOICES = ["card_arrival", "lost_card", "exchange_rate", "other"]


def work(text: str = "hello", *, spec: CallSpec | None = None, call: str = "", **options: Any) -> CallRequest:
    """A piece of durable work: `predict` with SIGNATURE, unless `spec` says otherwise. `record=None`: an interactive, ad-hoc
    call."""
    call = call or new_id()
    known: dict[str, Any] = {
        "try_number": 1, "attempt": 1, "topology": "triage", "node": "classify", "run": call, "timeout": 60.0,
        "spec": spec or CallSpec("predict", SIGNATURE, SIGNATURE), "inputs": {"text": text},
        "record": RecordTo(RECORDS, f"{call}.{new_id()[-12:]}", 7, b"the event of the call"),
    }  # fmt: skip
    if options.get("record", known) is None:
        known |= {"topology": "", "node": ""}
    return CallRequest(call=call, **{**known, **options})


def program(name: str, **options: Any) -> CallSpec:
    """A spec for one of tests/support/programs: a class is a module of DSPy, as is what `made` makes."""
    file = "modules" if name[0].isupper() or name == "made" else "sample"
    return CallSpec("program", f"{file}:{name}", options.pop("signature", "text -> reply"), **options)


def received(data: bytes) -> Frame | None:
    """The first frame that a parent reads, where its child sends this and ends. Raises DecodeError for what is no frame."""
    got: list[Frame] = []
    wrong: list[DecodeError | None] = []
    link = Link(got.append, wrong.append)
    link.data_received(data)
    link.connection_lost(None)
    if wrong[0] is not None:
        raise wrong[0]
    return got[0] if got else None


@dataclass
class Bench:
    """A pool with real children on a memory bus."""

    pool: Pool
    bus: MemoryBus
    seen: list[CallRecord] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def joined(self) -> bool:
        """Whether the pool is in the queue group of interactive calls, so that it may get some."""
        return self.pool.interactive.group.joined

    async def send(self, item: CallRequest, reply: str = "", subject: str = "") -> None:
        """Ask for an interactive call as soon as somebody hears it: while its slots are full, a pool is not in the group."""
        await until(lambda: self.joined)
        await self.bus.send(subject or item.called_on(APP, POOL), item.pack(), reply=reply)

    async def put(self, *items: CallRequest) -> None:
        for item in items:
            await self.bus.publish(NewMessage(subjects.work(APP, POOL, item.topology, item.node), item.pack()))

    async def records(self, count: int, timeout: float = 60.0) -> list[CallRecord]:
        """The first `count` records that were stored, as soon as they are."""
        async with asyncio.timeout(timeout):
            while len(self.seen) < count:
                self.arrived.clear()
                await self.arrived.wait()
        return self.seen

    async def ask(self, *items: CallRequest, timeout: float = 60.0) -> list[CallRecord]:
        """Put work into the queue and wait for the records of it, in the order of `items`."""
        before, calls = len(self.seen), {i.call for i in items}
        await self.put(*items)
        async with asyncio.timeout(timeout):
            while len(found := {r.call: r for r in self.seen[before:] if r.call in calls}) < len(calls):
                self.arrived.clear()
                await self.arrived.wait()
        return [found[i.call] for i in items]

    async def answering(self) -> int:
        """The process that answers a call now."""
        (record,) = await self.ask(work(spec=program("pid")))
        assert record.outputs is not None, record.error
        return int(record.outputs["reply"])

    async def pump(self) -> None:
        reader = await self.bus.reader(subjects.stream(APP), [RECORDS], after=0, name="test")
        while True:
            found = [await payloads.required(self.bus, APP, m) for m in await reader.read(1000)]
            self.seen += [CallRecord.unpack(m.data) for m in found]
            self.arrived.set()


def config(url: str, **options: Any) -> PoolConfig:
    """A pool of one child that uses the stand-in. Its breaker never opens: tests have the model fail again and again.

    `busy1` and `busy2` are the same model, for tests in which it answers 429: nobody asks a profile for a while after that.
    """
    profile = Profile("main", "openai/stand-in", base_url=url, price={"input": 1.0, "output": 2.0}, breaker={"failures": 10**6})
    profiles = {name: replace(profile, name=name) for name in ("main", "busy1", "busy2")}
    known: dict[str, Any] = {"profiles": profiles, "path": (str(HERE / "programs"),)}
    known["programs"] = ("sample:*", "modules:*", "journaled:*")
    known["python"] = os.environ.get("TEST_DSPY_PYTHON") or None
    return PoolConfig(APP, POOL, **{**known, **options})


def light(url: str, **options: Any) -> PoolConfig:
    """A pool whose child imports no DSPy, which costs a second: for what is the same whoever answers. It has functions."""
    return config(url, **{"programs": ("sample:*",), **options})


def native(text: str = "hello", **options: Any) -> CallRequest:
    return work(text, spec=CallSpec("predict", SIGNATURE, SIGNATURE, route="native"), **options)


@asynccontextmanager
async def running(
    pool_config: PoolConfig, bus: MemoryBus | None = None, ack_wait: float = ACK_WAIT, **options: float
) -> AsyncIterator[Bench]:
    """A started pool; drained at the end, and the bus is closed."""
    bus = bus or MemoryServer().connect()
    await bus.ensure_stream(StreamConfig(subjects.stream(APP), subjects.own_subjects(APP)))
    await bus.ensure_stream(StreamConfig(subjects.requests(APP), [subjects.request_pattern(APP)]))
    await WorkConsumers(bus, APP, [(POOL, band) for band in subjects.BANDS], ack_wait=ack_wait).look()
    bench = Bench(Pool(bus, pool_config, **options), bus)
    pump = asyncio.create_task(bench.pump())
    try:
        await bench.pool.start()
        yield bench
    finally:
        await bench.pool.drain(1.0)
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)
        await bus.close()


# -- all of a pool but its processes, on virtual time
T = TypeVar("T")
ECHO = "history, text -> reply"


class Answering:
    """The step of a pool that answers every call: by `replies`, else with its text and the number of turns before."""

    def __init__(self) -> None:
        self.asked: list[CallRequest] = []
        self.seconds = 0.0
        self.replies: dict[str, str] = {}
        self.error: DspexError | None = None

    def before(self, execution: Execution) -> Coroutine[Any, Any, Answer | None]:
        return self._answer(execution.work)

    def after(self, execution: Execution, record: CallRecord) -> None: ...

    async def _answer(self, work: CallRequest) -> Answer:
        self.asked.append(work)
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            return Answer.failed(self.error, "")
        before = len(work.inputs.get("history", {}).get("messages", ()))
        text = work.inputs["text"]
        return Answer(0.0, outputs={"reply": self.replies.get(text, f"{text} after {before}")})


@dataclass
class Room:
    """The limits of a call: refusals of its requests, one after the other; None for room."""

    refusals: list[CallError | None]
    used: list[Usage] = field(default_factory=list[Usage])
    failures: int = 0

    async def room(self) -> None:
        if self.refusals and (refused := self.refusals.pop(0)) is not None:
            raise refused

    def spent(self, used: Usage) -> None:
        self.used.append(used)

    def failed(self) -> None:
        self.failures += 1


class IdleChild:
    """A stand-in for a process: what slots know of one, and what is said of it."""

    def __init__(self, number: int) -> None:
        self.batches: list[Any] = []
        self.pid = self.number = number
        self.hello, self.retiring, self.gone = True, False, asyncio.Event()
        self.busy = self.calls = 0


class Talks:
    """A server, pools on it, and clients."""

    def __init__(self) -> None:
        self.loop, self.server = VirtualLoop(), MemoryServer()
        self.answering = Answering()
        self.pools: list[Pool] = []
        self.client = self.another()
        self.run(self.start())

    def another(self) -> Client:
        """One more client, as another process has it."""
        return Client(bus=self.server.connect(), app=APP)

    async def start(self, bus: MemoryBus | None = None) -> Pool:
        """One more process of the pool."""
        pool = Pool(bus or self.server.connect(), PoolConfig(APP, DEFAULT_POOL, size=1, slots=8))
        pool.steps.append(self.answering)
        pool.children.slots.refuse(lambda: WorkerLost("no process"))  # so that the pool takes calls, which only steps answer
        asyncio.get_running_loop().create_task(pool.interactive.group.run())
        self.pools.append(pool)
        control = await pool.status.subscribe()
        assert control is not None
        return pool

    def run(self, what: Awaitable[T]) -> T:
        async def go() -> T:
            return await what

        return self.loop.run(go(), advance=True)

    def say(self, session: Any, text: str, **options: Any) -> str:
        """The reply to a call in a session."""
        return str(self.run(session.call(ECHO, {"text": text}, **options)).data["reply"])

    def begin(self, what: Coroutine[Any, Any, T], seconds: float = 0.5) -> asyncio.Task[T]:
        """Begin, and let some time pass."""
        task = self.loop.create_task(what)
        self.loop.advance(seconds)
        return task

    def texts(self, session: Any) -> list[str]:
        """What was said in the turns."""

        async def read() -> list[str]:
            return [turn.inputs["text"] async for turn in session.history()]

        return self.run(read())


@contextmanager
def talks() -> Iterator[Talks]:
    one = Talks()
    try:
        yield one
    finally:
        one.loop.close()


class Worker:
    """A worker that has one request, of which a test says what it answers, frame by frame: on the wire, in place of a pool."""

    def __init__(self, bus: Any, asked: Message) -> None:
        self.bus, self.reply, self.request = bus, asked.reply, CallRequest.unpack(asked.data)
        self.number = 0

    def accept(self, name: str = "w1") -> None:
        said = {"kind": ACCEPTED, "call": self.request.call, "worker": name, "free": 0, "waiting": 0}
        self.tell(ACCEPTED, codecs.msgpack_bytes(said))

    def say(self, *said: tuple[str, int, str]) -> None:
        self.number += 1
        self.tell(SAID, Saying(self.number, [Said(*one) for one in said]).pack())

    def answer(self, error: Any = None, **outputs: Any) -> None:
        failed = None if error is None else error.as_dict()
        record = CallRecord(self.request.call, 1, 1, "", "", outputs=None if failed else outputs, error=failed, worker="w1")
        self.tell(RESULT, record.pack())

    def tell(self, kind: str, data: bytes) -> None:
        self.bus.tell(self.reply, data, headers={subjects.KIND: kind})
