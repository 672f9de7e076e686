"""The chaos topology on the in-memory bus: engines, workers and a model on a virtual clock, with seeded faults and deaths.

    python tests/chaos/simulation.py --seeds 200 [--first 0] [--events 120] [--json]

Thousands of minutes a minute, and a seed that fails fails again. An engine may be killed, or frozen until another one has
taken over; workers are killed in the middle of calls; the bus delays, cuts, repeats, and leaves writes unanswered. What it
cannot show is what a real server does when it dies: that is what run.py is for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, TypeVar

import structlog
import workload
from oracle import Ledger, Report, Violation, judge
from workload import POOL, SOURCE

from dspex.bus import codecs, subjects
from dspex.bus.errors import BusError, InvalidOutput, LMUnavailable
from dspex.bus.memory.server import Faults, MemoryBus, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.message import Message
from dspex.bus.port import BusEvents, Delivery, NewMessage, StreamConfig
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.work_loop import Job, WorkLoop
from dspex.engine.hosting.host import Host
from dspex.engine.log.entries import bases
from dspex.engine.log.reading import latest
from dspex.engine.replay.partition import Replay
from dspex.engine.runtime.compile import compile_stage

APP = "sim"
ROUGH = Faults(duplicate=0.02, disconnect=0.01, delay=0.05, unsettled=0.03)
PATIENCE = 3600.0  # virtual seconds until a run that is not finished is lost

T = TypeVar("T")


class Bus(MemoryBus):
    """A connection of a process that can be frozen: then nothing that it does reaches the server, nor comes back.

    `deadly`: how likely a commit is the last thing that the process does; half of these land first. `slow`: seconds until the
    answer to a commit comes, at most; what follows from it may be there before.
    """

    def __init__(self, server: MemoryServer, random: Random, deadly: float = 0.0, slow: float = 0.0) -> None:
        super().__init__(server, BusEvents())
        self.random, self.deadly, self.slow = random, deadly, slow
        self.thawed, self.dead = asyncio.Event(), asyncio.Event()
        self.thawed.set()

    async def trip(self) -> None:
        await self.thawed.wait()
        await super().trip()
        await self.thawed.wait()

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        fate = self.random.random()
        if fate < self.deadly / 2:
            await self._die()
        sequence = await super().commit(drafts, timeout=timeout)
        if fate < self.deadly:
            await self._die()
        if self.slow:
            await asyncio.sleep(self.random.uniform(0, self.slow))
            await self.thawed.wait()
        return sequence

    async def _die(self) -> None:
        self.thawed.clear()
        self.dead.set()
        await asyncio.Event().wait()


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Do it until the bus lets it pass, as a publisher does with one id."""
    while True:
        try:
            return await call()
        except BusError as e:
            if not e.retryable:
                raise
        await asyncio.sleep(0.1)


@dataclass
class Simulation:
    """One run. What is None is decided by the seed.

    Attributes:
        engines, workers: processes at a time. kills: of each kind, at random moments of the run.
        big: events of 2,500 outputs.
        most_open: open calls of a partition over which it admits no events.
        slow: seconds until the answer to a commit comes, at most.
        anew: the source's stream is deleted and made again when half of the events are processed; the topology goes on.
    """

    seed: int
    count: int = 120
    engines: int = 2
    workers: int = 2
    kills: int = 4
    keys: int = 6
    deadly: float = 0.03
    slots: int = 8
    freezes: bool = True
    big: int | None = None
    most_open: int | None = None
    slow: float | None = None
    anew: bool | None = None
    faults: Faults = ROUGH
    model_calls: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    failures: list[Violation] = field(default_factory=list)

    def run(self) -> Report:
        """Everything, from an empty server to the oracle's report."""
        loop = VirtualLoop()
        asyncio.set_event_loop(loop)
        try:
            return loop.run(self._main(), advance=True)
        finally:
            loop.close()
            asyncio.set_event_loop(None)

    async def _main(self) -> Report:
        self.random = Random(self.seed)
        self.server = MemoryServer(seed=self.seed, faults=self.faults)
        big = self.random.randrange(5) if self.big is None else self.big
        self.events = workload.events(self.count, self.seed, keys=self.keys, big=big, start=self.server.now)
        self.ledger, self.heard = Ledger(APP, self.events), list[Message]()
        self.bus = self.server.connect()
        self.foreign = self.random.random() < 0.5  # a stream of somebody else
        self._decide()
        if self.foreign:
            self.server.ensure_stream(StreamConfig("EVENTS", [SOURCE]))
        tasks = [
            *(asyncio.create_task(self._engine(i)) for i in range(self.engines)),
            *(asyncio.create_task(self._worker()) for _ in range(self.workers)),
            asyncio.create_task(self._listen()),
        ]
        publishing = asyncio.create_task(self._publish())
        started = self.server.now
        await self._finish(publishing)
        took = self.server.now - started
        report = await self._judge(took)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return report

    def _decide(self) -> None:
        """By the seed, what nobody has said."""
        by_chance = self.random.choice([10_000, 10_000, 3]), self.random.choice([0.0, 0.0, 0.5]), self.random.random() < 0.4
        self.most_open = by_chance[0] if self.most_open is None else self.most_open
        self.slow = by_chance[1] if self.slow is None else self.slow
        self.anew = by_chance[2] and self.foreign if self.anew is None else self.anew
        self.foreign = self.foreign or self.anew

    async def _finish(self, publishing: asyncio.Task[None]) -> None:
        """Until nothing is missing, then long enough for whatever would come too much."""
        end = self.server.now + PATIENCE
        await publishing
        while self.ledger.missing and self.server.now < end:
            await asyncio.sleep(1.0)
        await asyncio.sleep(60.0)

    async def _judge(self, took: float) -> Report:
        self.stored = list(self.server.streams[subjects.stream(APP)].messages.values())
        report = judge(APP, self.events, self.stored, self.heard)
        report.violations += self.failures
        report.violations += [v async for v in self._replayed()]
        calls = sum(1 for n in self.model_calls.values() if n > 1)
        report.numbers |= {"seed": self.seed, "virtual seconds": round(took), "repeated model calls": calls, **self.done}
        return report

    async def _replayed(self) -> AsyncIterator[Violation]:
        """The replay invariant, for every partition: from nothing, and from the latest snapshot.

        Where the source was made anew, nobody has the first half of its events any more.
        """
        if self.anew:
            return
        self.server.luck.faults = Faults()
        graph, count = self.topology, 1 + 3 * (self.seed % 2)
        source = graph.sources[0]
        stage, stream = compile_stage(graph, source, "s1"), self.server.stream_of(SOURCE)
        for index in range(count if stream is not None else 0):
            replay = Replay(self.bus, APP, stage, stream.config.name, index, count, self.server.max_payload)
            end = await latest(self.bus, replay.log)
            base = bases(end.at, end.entry)[0] if end.at else 0
            for snapshot in {0, base}:
                self.done["replays"] += 1
                async for entry, what in replay.differences(snapshot):
                    yield Violation("a replay gives the same", f"partition {index} from {snapshot}, entry {entry}: {what}")

    # -- who takes part ----------------------------------------------------------------------------------------------
    async def _publish(self) -> None:
        gap = self.random.choice([0.0, 0.02, 0.2])
        for number, event in enumerate(self.events):
            if self.anew and number == len(self.events) // 2:
                await self._make_anew(len(self.events) - number)
            body = codecs.encode(event.data)[0] if event.raw is None else event.raw
            draft = NewMessage(SOURCE, body, {subjects.MESSAGE_ID: event.id, subjects.RUN: event.id, subjects.KEY: event.key})
            while self.server.stream_of(SOURCE) is None:  # no engine has applied the topology yet
                await asyncio.sleep(0.1)
            await insist(lambda draft=draft: self.bus.publish(draft))
            await asyncio.sleep(self.random.uniform(0, 2 * gap))

    async def _make_anew(self, left: int) -> None:
        """Delete the source's stream and make it again, as soon as all but the `left` last events are done."""
        end = self.server.now + PATIENCE
        while self.ledger.open > left and self.server.now < end:
            await asyncio.sleep(0.5)
        del self.server.streams["EVENTS"]  # and nobody gets a turn before it is there again
        self.server.ensure_stream(StreamConfig("EVENTS", [SOURCE]))
        self.done["sources made anew"] += 1

    async def _listen(self) -> None:
        async def hear(m: Message) -> None:
            if m.subject in workload.SINKS:
                self.heard.append(m)

        await insist(lambda: self.bus.subscribe("chaos.>", hear))
        while subjects.stream(APP) not in self.server.streams:
            await asyncio.sleep(0.1)
        wanted = [*workload.SINKS, subjects.dead_pattern(APP)]
        reader = await insist(lambda: self.bus.reader(subjects.stream(APP), wanted, after=0, name="oracle"))
        while True:
            for message in await insist(lambda: reader.read(500)):
                self.ledger.take(message)

    def _fates(self) -> list[float]:
        """Seconds of life before each death."""
        return [self.random.expovariate(1 / 4.0) for _ in range(self.kills)]

    async def _engine(self, index: int) -> None:
        """An engine process under a supervisor: it dies some times, and is started again."""
        for life, fate in enumerate([*self._fates(), PATIENCE]):
            bus = Bus(self.server, self.random, self.deadly if fate != PATIENCE else 0.0, self.slow or 0.0)
            host = Host(
                bus, APP, [self.topology], engine=f"e{index}-{life}", heartbeat=0.6, most_open_calls=self.most_open or 0
            )
            try:
                await asyncio.wait_for(insist(host.start), 10.0)
                await self._live(host, bus, fate)
            except TimeoutError:
                self.done["engines killed"] += 1
            await host.kill()
            await bus.close()
            await asyncio.sleep(self.random.uniform(0.1, 3.0))

    async def _live(self, host: Host, bus: Bus, fate: float) -> None:
        if self.freezes and self.random.random() < 0.4:
            await asyncio.sleep(self.random.uniform(0, fate))
            bus.thawed.clear()
            self.done["engines frozen"] += 1
            await asyncio.sleep(self.random.uniform(1.0, 12.0))
            bus.thawed.set()
        wait = [asyncio.ensure_future(host.wait()), asyncio.ensure_future(bus.dead.wait())]
        await asyncio.wait(wait, timeout=fate, return_when=asyncio.FIRST_COMPLETED)
        if wait[0].done() and (error := wait[0].exception()):
            self.failures.append(Violation("an engine does not fail", f"{type(error).__name__}: {error}"))
        self.done["engines killed in a commit" if bus.dead.is_set() else "engines killed"] += 1
        for task in wait:
            task.cancel()
        await asyncio.gather(*wait, return_exceptions=True)

    @property
    def topology(self) -> Any:
        return workload.build(1 + 3 * (self.seed % 2), on_gap="skip" if self.anew else "stop").graph

    async def _worker(self) -> None:
        """A worker process under a supervisor: it dies some times, and is started again."""
        for fate in [*self._fates(), PATIENCE]:
            bus = Bus(self.server, self.random)
            work = WorkLoop(bus, APP, POOL, self._accept, free=lambda: self.slots, failed=self._worker_failed)
            work.start()
            await asyncio.sleep(fate)
            self.done["workers killed"] += 1
            await work.kill()
            await bus.close()
            await asyncio.sleep(self.random.uniform(0.1, 3.0))

    def _worker_failed(self, error: BaseException) -> None:
        self.failures.append(Violation("a worker does not fail", f"{type(error).__name__}: {error}"))

    def _accept(self, request: CallRequest, delivery: Delivery) -> Job:
        return partial(self._answer, request)

    async def _answer(self, request: CallRequest) -> CallRecord:
        await asyncio.sleep(self.random.expovariate(1 / 0.3))
        self.model_calls[f"{request.call}:{request.try_number}"] += 1
        return CallRecord(
            request.call, request.try_number, request.attempt, request.topology, request.node, **self._model(request)
        )

    def _model(self, request: CallRequest) -> dict[str, Any]:
        text, first = str(request.inputs["text"]), request.attempt == 1
        if text.endswith("standin:nonsense"):
            return {"error": InvalidOutput("nonsense").as_dict()}
        if "standin:500x1" in text and request.try_number == 1:
            return {"error": LMUnavailable("500").as_dict()}
        if "standin:nonsensex1" in text and first:
            return {"outputs": {"intent": "card", "urgency": "very"}}
        return {"outputs": workload.model(request.inputs, str(request.spec["signature"]))}


def sweep(seeds: Sequence[int], **options: Any) -> list[Report]:
    """One run a seed."""
    return [Simulation(seed, **options).run() for seed in seeds]


def main() -> int:
    """The command: prints what each bad seed shows, and the sums; 1 if there is a bad one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--events", type=int, default=120)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--keys", type=int, default=6)
    parser.add_argument("--deadly", type=float, default=0.03)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    sums, bad, began = Counter[str](), list[Report](), time.monotonic()
    for seed in range(o.first, o.first + o.seeds):
        report = Simulation(seed, count=o.events, kills=o.kills, keys=o.keys, deadly=o.deadly, slots=o.slots).run()
        sums.update({k: v for k, v in report.numbers.items() if k != "seed"})
        if not report.good:
            bad.append(report)
            if not o.json:
                sys.stdout.write(f"{report}\n\n")
    sums["wall seconds"] = round(time.monotonic() - began)
    sums["runs"], sums["bad runs"] = o.seeds, len(bad)
    if o.json:
        sys.stdout.write(json.dumps({**sums, "bad": [r.as_dict() for r in bad]}) + "\n")
    else:
        sys.stdout.write("".join(f"{name:<28} {value}\n" for name, value in sums.items()))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
