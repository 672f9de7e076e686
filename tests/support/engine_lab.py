"""Engines on the in-memory bus and on virtual time, several at once, on connections that can be cut at a chosen commit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from math import inf
from typing import Any, TypeVar

from dspex.bus import codecs, subjects
from dspex.bus.errors import BusError, DspexError, ProgramError
from dspex.bus.memory.handles import MemoryReader
from dspex.bus.memory.server import Faults, MemoryBus, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.message import Message, new_id
from dspex.bus.port import Bus, BusEvents, Delivery, NewMessage
from dspex.bus.records import CallRecord, CallRequest, Letter, NodeEvent, Origin
from dspex.bus.serving import payloads
from dspex.bus.serving.work_loop import Job, WorkLoop
from dspex.engine.client import letters
from dspex.engine.client.client import Client
from dspex.engine.client.following.naming import at_place
from dspex.engine.client.letters import DeadLetter
from dspex.engine.client.runs.outputs import read_event
from dspex.engine.graph import manifest
from dspex.engine.graph.graph import HasGraph
from dspex.engine.hosting.host import Host
from dspex.engine.log.rows import Place, Position
from dspex.engine.log.tables import Tables
from dspex.engine.replay.partition import PartitionReplay
from dspex.engine.runtime.arrival import Arrival, Due, Woken
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.process import Process
from dspex.engine.runtime.stage import StageRunner
from dspex.engine.runtime.walk.compile import compile_behind
from dspex.engine.runtime.walk.request import Address

APP = "lab"
STREAM = subjects.stream(APP)
SOURCES = subjects.sources(APP)
T = TypeVar("T")
TOKENS = 1000.0  # a second, of an answer
Answer = Callable[[dict[str, Any], CallRequest], Mapping[str, Any]]


async def insist(do: Callable[[], Awaitable[T]]) -> T:
    """Do something until the bus lets it."""
    while True:
        try:
            return await do()
        except BusError:
            await asyncio.sleep(0.1)


async def torn(bus: Bus, server: MemoryServer, drafts: Sequence[NewMessage]) -> None:
    """Store the first part of a batch, as a server without room or power does: of the rest nothing is there."""
    for draft in drafts:
        ack = await bus.publish(draft)
        stored = server.streams[ack.stream].messages
        stored[ack.sequence] = stored[ack.sequence]._replace(in_batch=True)


class Cut(MemoryBus):
    """A connection that ends at commit number `at` (from 1): after the server has it (`landed`), or before it does.

    Either way nobody hears anything of it any more, as when the process is killed at that instant.
    """

    def __init__(self, server: MemoryServer, at: int, landed: bool) -> None:
        super().__init__(server, BusEvents())
        self.left, self.landed = at, landed
        self.cut = asyncio.Event()
        self.unsent: Sequence[NewMessage] = ()  # the commit at which it was cut

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        self.left -= 1
        if self.left > 0 or self.cut.is_set():
            return await super().commit(drafts, timeout=timeout)
        if self.landed:
            await super().commit(drafts, timeout=timeout)
        self.unsent = drafts
        self.cut.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody waits for this")


class Slow(MemoryBus):
    """A connection on which the answer to a commit comes `seconds` late: what follows from the commit may be there before."""

    def __init__(self, server: MemoryServer, seconds: float) -> None:
        super().__init__(server, BusEvents())
        self.seconds = seconds

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        sequence = await super().commit(drafts, timeout=timeout)
        await asyncio.sleep(self.seconds)
        return sequence


class LateRecords(MemoryBus):
    """A connection on which records of calls are read `seconds` late."""

    def __init__(self, server: MemoryServer, seconds: float) -> None:
        super().__init__(server, BusEvents())
        self.seconds = seconds

    async def reader(self, stream: str, filters: Sequence[str], **options: Any) -> MemoryReader:
        if any(".record." in subject for subject in filters):
            await asyncio.sleep(self.seconds)
        return await super().reader(stream, filters, **options)


class Lab:
    """A server, engines on it, and workers that answer with `answers[node](inputs, work)`; an exception is an error."""

    def __init__(self, *topologies: HasGraph, seed: int = 0, faults: Faults | None = None, max_payload: int = 1 << 20) -> None:
        self.graphs = [t.graph for t in topologies]
        self.loop = VirtualLoop()
        self.server = MemoryServer(seed=seed, faults=faults, max_payload=max_payload)
        self.answers: dict[str, Answer] = {}
        self.tokens: dict[str | None, int] = {}  # tenant → of each of its answers, which take their time
        self.states: dict[str, str] = {}  # node → the saved state that its records name
        self.exchanges: dict[str, bytes] = {}  # of records, by node
        self.asked: list[CallRequest] = []
        self.hosts: dict[str, tuple[Host, MemoryBus]] = {}
        self.client = Client(bus=self.server.connect(), app=APP)
        self.failures: list[BaseException] = []  # of the workers
        self._workers: list[WorkLoop] = []

    def close(self) -> None:
        self.loop.close()

    # -- time
    def run(self, coroutine: Awaitable[Any]) -> Any:
        async def go() -> Any:
            return await coroutine

        return self.loop.run(go(), advance=True)

    def advance(self, seconds: float) -> None:
        self.loop.advance(seconds)
        for host, _ in self.hosts.values():
            if host.failure is not None:
                raise host.failure

    # -- engines
    def start(self, name: str = "a", *topologies: HasGraph, bus: MemoryBus | None = None, **options: Any) -> Host:
        """An engine, which runs the lab's topologies or those given; half a second later."""

        async def go() -> Host:
            connection = bus or self.server.connect()
            graphs = [t.graph for t in topologies] or self.graphs
            host = Host(connection, APP, graphs, engine=name, **options)
            self.hosts[name] = (host, connection)
            await host.start()
            return host

        host: Host = self.run(go())
        self.advance(0.5)
        return host

    def kill(self, name: str = "a") -> None:
        """As SIGKILL: it says nothing to anybody."""
        host, bus = self.hosts.pop(name)
        self.run(host.kill())
        self.run(bus.close())

    def drain(self, name: str = "a") -> None:
        host, bus = self.hosts.pop(name)
        self.run(host.drain())
        self.run(bus.close())

    def work(self, *pools: str, slots: int = 1000, bus: MemoryBus | None = None) -> None:
        """Start workers for these pools ("lightweight" if none is named). `slots`: calls at once of each."""
        for pool in pools or ("lightweight",):
            self.run(self._work(pool, slots, bus))
        self.advance(0.1)

    def kill_workers(self) -> None:
        """As SIGKILL: what they have taken comes again."""
        for loop in self._workers:
            self.run(loop.kill())
        self._workers.clear()

    def stop_workers(self, grace: float = 1.0) -> None:
        """End the workers as a drain does."""
        for loop in self._workers:
            self.run(loop.drain(grace))
        self._workers.clear()

    async def _work(self, pool: str, slots: int, bus: MemoryBus | None) -> None:
        taken: list[CallRequest] = []

        def accept(request: CallRequest, delivery: Delivery) -> Job:
            taken.append(request)
            return partial(answer, request)

        async def answer(request: CallRequest) -> CallRecord:
            try:
                return await self._answer(request)
            finally:
                taken.remove(request)

        free, connection = lambda: slots - len(taken), bus or self.server.connect()
        loop = WorkLoop(connection, APP, pool, accept, free=free, failed=self.failures.append)
        loop.start()
        self._workers.append(loop)

    async def _answer(self, request: CallRequest) -> CallRecord:
        self.asked.append(request)
        if tokens := self.tokens.get(request.tenant):
            await asyncio.sleep(tokens / TOKENS)
        return self.record(request)

    def record(self, request: CallRequest, **changes: Any) -> CallRecord:
        """The record of a worker for this work."""
        outputs: Any = None
        error: Any = None
        try:
            answer = self.answers.get(request.node, lambda inputs, request: {"answer": "yes"})
            outputs = dict(answer(dict(request.inputs), request))
        except DspexError as e:
            error = e.as_dict()
        except ArithmeticError as e:
            error = ProgramError(str(e)).as_dict()
        values: dict[str, Any] = {
            "call": request.call, "try_number": request.try_number, "attempt": request.attempt,
            "topology": request.topology, "node": request.node, "outputs": outputs, "error": error, "worker": "lab",
            "requests": {"made": 1} if request.spec.journaled else {},
            "usage": {"output_tokens": self.tokens.get(request.tenant, 0)},
            "exchanges": self.exchanges.get(request.node, b""),
            "state": self.states.get(request.node, ""),
        }  # fmt: skip
        return CallRecord(**{**values, **changes})

    def result(self, request: CallRequest, **changes: Any) -> NewMessage:
        """What a worker stores for this work."""
        to = request.record
        assert to is not None
        record = self.record(request, **{"number": to.number, "event": to.event, **changes})
        return NewMessage(to.subject, record.pack(), {subjects.MESSAGE_ID: to.id, subjects.RUN: request.run})

    def requests(self, pool: str = "lightweight") -> list[CallRequest]:
        """All that wait, or waited, for a worker of the pool."""
        return [CallRequest.unpack(m.data) for m in self.messages(subjects.work_pattern(APP, pool))]

    # -- what is kept
    def partitions(self) -> Iterator[tuple[StageRunner, Partition]]:
        """All partitions that are run, with their stages."""
        for host, _ in self.hosts.values():
            for runner in host.runners:
                yield from ((runner, p) for p in runner.partitions.values())

    def left(self) -> list[tuple[Any, Any]]:
        """All rows of state, and all timers."""
        found = [p.tables for _, p in self.partitions()]
        return [row for tables in found for row in (*tables.keyed.rows.items(), *tables.timers.rows.items())]

    def differences(self, begins: str = "") -> list[Any]:
        """Where the log of a partition that has taken anything gives something else when it is replayed. `begins`: only of
        stages whose names begin so.
        """
        counts = self.run(self._counts())

        async def found(replay: PartitionReplay) -> list[Any]:
            return [d async for d in replay.differences()]

        all: list[Any] = []
        for runner, p in self.partitions():
            if p.tables.positions.rows and runner.stage.name.startswith(begins):
                many = counts[runner.topology][runner.stage.id]
                replay = PartitionReplay(
                    self.client.bus, APP, runner.stage, runner.source_stream, p.index, many, runner.s.limit
                )
                all += self.run(found(replay))
        return all

    async def _counts(self) -> dict[str, dict[str, int]]:
        """How many partitions each stage of each topology has: an engine may run only some of them."""
        applied = await manifest.of_application(self.client.bus, APP)
        return {name: dict([*m.stages.values(), *m.hops.values()]) for name, m in applied.items()}

    # -- in and out
    def publish(self, subject: str, data: Any, **options: Any) -> str:
        id = options.pop("id", None) or new_id()  # known before, so that asking again makes no second event
        run = self.run(insist(lambda: self.client.publish(subject, data, id=id, **options)))
        self.loop.settle()
        return str(self.run(insist(lambda: at_place(self.client.bus, run.id))))

    def store(self, draft: NewMessage) -> None:
        """Store a message as any NATS client would."""
        self.run(self.client.bus.publish(draft))
        self.loop.settle()

    def tear(self, drafts: Sequence[NewMessage]) -> None:
        """Store messages as a server does that stops within a batch of them: nobody gets an answer."""
        self.run(torn(self.client.bus, self.server, drafts))
        self.loop.settle()

    def messages(self, subject: str, stream: str = "") -> list[Message]:
        """What is stored on a subject; `stream`: the one that captures it by default."""

        async def go() -> list[Message]:
            name = stream or await self.client.bus.stream_of(subject) or STREAM
            info = await self.client.bus.stream(name)
            found = await self.client.bus.scan(name, [subject], start=1, stop=info.last) if info else []
            return [await payloads.checked_out(self.client.bus, APP, m) or m for m in found]

        found: list[Message] = self.run(go())
        return found

    def outputs(self, subject: str) -> list[Any]:
        return [read_event(m).data for m in self.messages(subject)]

    def letters(self) -> list[DeadLetter]:
        async def go() -> list[DeadLetter]:
            return [d async for d in letters.listing(self.client.bus, APP)]

        found: list[DeadLetter] = self.run(go())
        return found


DAY = 1_767_225_600.0  # 2026-01-01


class StageLab:
    """One partition of the stage behind the hops of a topology, without a bus: what it is given goes straight to `handle`.

    Attributes:
        written: what went to sinks, in order. letters: those of its events that failed.
    """

    def __init__(self, topology: HasGraph) -> None:
        graph = topology.graph
        hops: Mapping[str, tuple[str, int]] = {hop.name: ("s2", 1) for hop in graph.hops}
        self.stage = compile_behind(graph, graph.hops, "s2", hops=hops)
        self.process = Process(self.stage, Address("lab", graph.name, "s2", 0, "nonce", 1 << 20), {}, "")
        self.tables = Tables()
        self.written: list[NewMessage] = []
        self.letters: list[Letter] = []
        self.clock = DAY
        self._taken = 0

    def event(self, data: Any, time: float, *, key: str = "a") -> None:
        """Take an event of a key. `time`: seconds of the day, in event time."""
        self._taken += 1
        body, content_type = codecs.encode(data, "json")
        origin = Origin(f"019b76da-a800-7000-8000-{self._taken:012d}", "in", f"run{self._taken}", key=key, time=DAY + time)
        position = Position(self._taken, 0)
        self._take(
            Arrival(
                Place("events", self._taken, 0), position, self.clock, NodeEvent(self.stage.name, origin, content_type, body)
            )
        )

    def mark(self, time: float = inf) -> None:
        """The watermark is `time` seconds of the day (without one: behind all windows), and wakes what waits for it."""
        mark = DAY + min(time, 1e9)
        self.tables.positions.put("time", Position(mark=mark))
        while (number := self.tables.timers.reached(mark, self.watermark)) is not None:
            due = Due(number, self.tables.timers.rows[number], Woken())
            self._take(Arrival(Place("timers", number), None, self.clock, due))

    def watermark(self, node: str) -> float:
        """That of a node."""
        return self.stage.clocks[node].at(self.tables, self.tables.position("time").mark, self.clock)

    def _take(self, arrival: Arrival) -> None:
        effects = self.process.handle(arrival, self.tables)
        self.tables.change(effects.changes)
        for output in effects.outputs:
            assert isinstance(output, NewMessage), "a call: use Lab or Driver"
            if subjects.matches(subjects.dead_pattern("lab"), output.subject):
                self.letters.append(Letter.unpack(output.data))
            else:
                self.written.append(output)

    def outputs(self, subject: str = "out") -> list[Any]:
        """The data of what went to a sink."""
        return [
            codecs.decode(m.data, (m.headers or {}).get(subjects.CONTENT_TYPE)) for m in self.written if m.subject == subject
        ]

    def windows(self, subject: str = "out") -> list[tuple[str, float, float, Any]]:
        """The windows that went to a sink: key, start and end in seconds of the day, value."""

        def at(text: str) -> float:
            return round(datetime.fromisoformat(text).timestamp() - DAY, 6)

        return [(w["key"], at(w["start"]), at(w["end"]), w["value"]) for w in self.outputs(subject)]

    @property
    def kept(self) -> tuple[int, int]:
        """How many rows and timers there are."""
        return len(self.tables.keyed.rows), len(self.tables.timers.rows)
