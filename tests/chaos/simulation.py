"""The chaos topology on the in-memory bus: engines, workers and a model on a virtual clock, with seeded faults and deaths.

    python tests/chaos/simulation.py --seeds 200 [--first 0] [--with count=80 kills=8] [--json]

Thousands of minutes a minute, and a seed that fails fails again: its report ends with the command. An engine may be killed,
drained, or frozen until another one has taken over, and may be told a wrong time; workers are killed in the middle of calls;
the bus delays, cuts, repeats, and leaves writes unanswered; the source's stream is made anew, rolled back or missing; dead
letters are redriven. What it cannot show is what a real server does when it dies: that is what run.py is for.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count as numbers
from random import Random
from typing import Any

import structlog
import workload
from oracle import Ledger, Report, Violation, judge
from simulated import options
from simulated.bus import Bus, insist
from simulated.sealed import Seals
from simulated.source import APP, GAPS, STREAM, Fate, Source
from workload import POOL, SOURCE

from dspex.bus import subjects
from dspex.bus.errors import BusError, InvalidOutput, LMUnavailable, TopologyError
from dspex.bus.memory.server import Faults, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.message import Message
from dspex.bus.port import Delivery, StreamConfig
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving import payloads
from dspex.bus.serving.record_store import RecordStore
from dspex.bus.serving.work_loop import Job, WorkLoop
from dspex.engine.client import letters
from dspex.engine.graph.nodes import KEYED_PARTITIONS, OnGap
from dspex.engine.hosting.host import Host
from dspex.engine.log.entries import bases
from dspex.engine.log.latest import latest
from dspex.engine.replay.partition import PartitionReplay
from dspex.engine.runtime.walk.compile import compile_behind, compile_stage

ROUGH = Faults(duplicate=0.02, disconnect=0.01, delay=0.05, unsettled=0.03)
PATIENCE = 3600.0  # virtual seconds until a run that is not finished is lost
AFTERWARDS = 30.0  # virtual seconds that a run goes on when nothing is missing: whatever would come too much comes by then


@dataclass
class Simulation:
    """One run. What is None is decided by the seed.

    Attributes:
        engines, workers: processes at a time. kills: of each kind, at random moments of the run.
        big: events of 2,500 outputs.
        most_open: open calls of a partition over which it admits no events.
        slow: seconds until the answer to a commit comes, at most.
        fate: what becomes of the source's stream in the middle of the run; "" for nothing.
        on_gap: the policy that the topology begins with.
        skewed: engines are told a time that is up to 25 s wrong, and not always the same; the server's own is set once.
        above: bytes of a body that is stored beside its message.
        few: messages that a reader of an engine gives at a time, at most; all by default.
        redriven: the model is repaired when all is done, and the events that it had failed are redriven, some of them twice.
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
    fate: Fate | None = None
    on_gap: OnGap | None = None
    skewed: bool | None = None
    redriven: bool | None = None
    above: int | None = None
    sealed: bool | None = None
    few: int | None = None
    faults: Faults = ROUGH
    model_calls: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    failures: list[Violation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.command = f"python tests/chaos/simulation.py --first {self.seed} --seeds 1{options.said(self)}"

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
        self.hosts: dict[int, Host] = {}
        self.repaired = False  # the model
        self._decide()
        self.seals = Seals(self.server, on=bool(self.sealed))
        self.seals.seal(self.bus)
        if self.foreign:
            self.server.ensure_stream(StreamConfig(STREAM, [SOURCE]))
        tasks = [
            *(asyncio.create_task(self._engine(i)) for i in range(self.engines)),
            *(asyncio.create_task(self._worker()) for _ in range(self.workers)),
            asyncio.create_task(self._listen()),
        ]
        started = asyncio.get_running_loop().time()
        if self.skewed:
            asyncio.get_running_loop().call_later(self.random.uniform(0.5, 20.0), self._set_clock)
        await Source(self).publish()
        await self._finish()
        if self.redriven:
            await self._redrive()
            await self._finish()
        took = asyncio.get_running_loop().time() - started
        report = await self._judge(took)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return report

    def _decide(self) -> None:
        """By the seed, what nobody has said."""
        chance = Random(self.seed + 1)  # of its own, so that what is said changes nothing else
        most_open, slow = chance.choice([10_000, 10_000, 3]), chance.choice([0.0, 0.0, 0.5])
        fates: list[Fate] = ["", "", "made anew", "rolled back", "missing"]
        fate, on_gap, skewed, redriven = (
            chance.choice(fates),
            chance.choice(["stop", "skip"]),
            *chance.choices([True, False], k=2),
        )
        self.most_open = most_open if self.most_open is None else self.most_open
        self.slow = slow if self.slow is None else self.slow
        self.fate = fate if self.fate is None else self.fate
        self.on_gap = on_gap if self.on_gap is None else self.on_gap
        self.skewed = skewed if self.skewed is None else self.skewed
        self.redriven = redriven if self.redriven is None else self.redriven
        self.foreign = bool(self.fate) or chance.random() < 0.3  # a stream of somebody else
        above = chance.choice([payloads.ABOVE, payloads.ABOVE, 200])
        self.above = above if self.above is None else self.above
        self.sealed = chance.random() < 0.25 if self.sealed is None else self.sealed
        self.applied = asyncio.Event()  # set when the operator runs another version of the topology

    def apply(self, on_gap: OnGap) -> None:
        """The operator runs the topology with another policy: engines are drained and start again with it."""
        self.on_gap = on_gap
        self.applied.set()

    @property
    def stopped(self) -> list[str]:  # why stages do not read their source now
        return [r.stopped for host in self.hosts.values() for r in host.runners if r.stopped]

    async def until(self, true: Callable[[], bool], patience: float | None = None) -> None:
        """Wait at most `patience` virtual seconds (PATIENCE by default), and not for engines that do nothing but fail."""
        loop = asyncio.get_running_loop()
        end = loop.time() + (PATIENCE if patience is None else patience)
        while not true() and loop.time() < end and len(self.failures) < 20:
            await asyncio.sleep(0.5)

    def _set_clock(self) -> None:  # the stream has another leader, whose clock is not that of the one before
        self.server._epoch += self.random.uniform(-40.0, 40.0)

    async def _finish(self) -> None:
        await self.until(lambda: not self.ledger.missing)
        await asyncio.sleep(AFTERWARDS)

    async def _redrive(self) -> None:
        """Repair the model, and redrive what it had failed, by a command that is sometimes cut off and given again."""
        self.repaired = True
        self.events = [workload.repaired(e) if e.dead == "classify" else e for e in self.events]
        self.ledger = Ledger(APP, [e for e in self.events if e.late])
        bus = Bus(self.server, self.random, forgets=0.3)
        self.seals.seal(bus)
        while True:
            try:
                found = [letter async for letter in letters.listing(bus, APP, node="classify")]
                self.done["redriven"] += await letters.redrive(bus, APP, found)
                return
            except BusError:
                await asyncio.sleep(self.random.uniform(0.0, 60.0))

    async def _judge(self, took: float) -> Report:
        self.stored = [self.whole(m) for m in self.server.streams[subjects.stream(APP)].messages.values()]
        report = judge(APP, self.events, self.stored, [self.whole(m) for m in self.heard])
        report.violations += self.failures
        report.violations += [v async for v in self._replayed()]
        calls = sum(1 for n in self.model_calls.values() if n > 1)
        own = {"seed": self.seed, "virtual seconds": round(took), "repeated model calls": calls, "sealed": self.seals.read}
        report.numbers |= own | self.done
        report.again = self.command
        return report

    async def _replayed(self) -> AsyncIterator[Violation]:
        """The replay invariant, for every partition: from nothing, and from the latest snapshot. Behind a gap in the source
        nobody has the first half of its events any more; behind the hop they are."""
        self.server.luck.faults = Faults()
        graph, count = self.topology, 1 + 3 * (self.seed % 2)
        hops = {workload.HOP: (workload.BEHIND, KEYED_PARTITIONS)}
        before = compile_stage(graph, graph.sources[0], workload.BEFORE, hops=hops)
        behind = compile_behind(graph, graph.hops, workload.BEHIND, hops=hops)
        parts = [(behind, "", index, KEYED_PARTITIONS) for index in range(KEYED_PARTITIONS)]
        if (stream := self.server.stream_of(SOURCE)) is not None and self.fate not in GAPS:
            parts += [(before, stream.config.name, index, count) for index in range(count)]
        for stage, source, index, of in parts:
            replay = PartitionReplay(self.bus, APP, stage, source, index, of, payloads.most(self.bus))
            end = await latest(self.bus, replay.log)
            base = bases(end.at, end.entry)[0] if end.at else 0
            for snapshot in {0, base} if end.at else ():
                self.done["replays"] += 1
                replay.goes_on, replay.incomplete = True, []
                async for entry, what in replay.differences(snapshot):
                    yield Violation("a replay gives the same", f"{stage.id} {index} from {snapshot}, entry {entry}: {what}")
                for entry, error in replay.incomplete:
                    yield Violation("a log is whole", f"{stage.id} {index} from {snapshot}, entry {entry}: {error}")

    # -- who takes part ----------------------------------------------------------------------------------------------
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
                self.ledger.take(self.whole(message))

    def whole(self, message: Message) -> Message:
        """The message with its body, which may be stored beside it."""
        name = message.headers.get(subjects.CLAIM_CHECK)
        if name is not None:
            self.done["bodies stored apart"] += 1
            message = message._replace(data=self.server.objects[subjects.objects(APP)][name][0])
        return self.seals.opened(message)

    def _fates(self) -> list[float]:
        """Seconds of life before each death."""
        return [self.random.expovariate(1 / 4.0) for _ in range(self.kills)]

    async def _engine(self, index: int) -> None:
        """An engine process under a supervisor: it dies some times, and is started again."""
        fates = self._fates()
        for life in numbers():
            fate = fates[life] if life < len(fates) else PATIENCE
            deadly = self.deadly if fate != PATIENCE else 0.0
            bus = Bus(self.server, self.random, deadly=deadly, slow=self.slow or 0.0, few=lambda: self.few or 0)
            self.seals.seal(bus)
            if self.skewed and fate != PATIENCE:
                bus.skew = self.random.uniform(-25.0, 25.0)
                asyncio.get_running_loop().call_later(self.random.uniform(0.0, fate), setattr, bus, "skew", -bus.skew)
            most = {"most_open_calls": self.most_open or 0, "claim_check_above": self.above or 0}
            host = Host(bus, APP, [self.topology], engine=f"e{index}-{life}", heartbeat=0.6, **most)
            self.hosts[index], policy = host, self.on_gap
            try:
                await asyncio.wait_for(insist(host.start), 10.0)
                await self._live(host, bus, fate, policy)
            except TimeoutError:
                self.done["engines killed"] += 1
            except TopologyError as error:
                self._failed(error, policy)
            await host.kill()
            await bus.close()
            await asyncio.sleep(self.random.uniform(0.1, 3.0))

    def _failed(self, error: BaseException, policy: OnGap | None) -> None:
        """An engine has failed, which it may only do where another version than its own was applied."""
        if not isinstance(error, TopologyError) or policy == self.on_gap:
            self.failures.append(Violation("an engine does not fail", f"{type(error).__name__}: {error}"))

    async def _live(self, host: Host, bus: Bus, fate: float, policy: OnGap | None) -> None:
        if self.freezes and self.random.random() < 0.4:
            await asyncio.sleep(self.random.uniform(0, min(fate, 10.0)))
            bus.thawed.clear()
            self.done["engines frozen"] += 1
            await asyncio.sleep(self.random.uniform(1.0, 12.0))
            bus.thawed.set()
        wait = [asyncio.ensure_future(host.wait()), asyncio.ensure_future(bus.dead.wait())]
        if not self.applied.is_set() or policy != self.on_gap:
            wait.append(asyncio.ensure_future(self.applied.wait()))
        await asyncio.wait(wait, timeout=fate, return_when=asyncio.FIRST_COMPLETED)
        if wait[0].done() and (error := wait[0].exception()):
            self._failed(error, policy)
        elif not bus.dead.is_set() and (policy != self.on_gap or self.random.random() < 0.3):
            await host.drain(10.0)
            self.done["engines drained"] += 1
        else:
            self.done["engines killed in a commit" if bus.dead.is_set() else "engines killed"] += 1
        for task in wait:
            task.cancel()
        await asyncio.gather(*wait, return_exceptions=True)

    @property
    def topology(self) -> Any:
        return workload.build(1 + 3 * (self.seed % 2), on_gap=self.on_gap or "stop").graph

    async def _worker(self) -> None:
        """A worker process under a supervisor: it dies some times, and is started again."""
        fates = self._fates()
        for life in numbers():
            fate = fates[life] if life < len(fates) else 10 * PATIENCE
            bus = Bus(self.server, self.random)
            self.seals.seal(bus)
            records = RecordStore(bus, APP, POOL, self.above or 0)
            work = WorkLoop(bus, APP, POOL, self._accept, free=lambda: self.slots, failed=self._worker_failed, records=records)
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
        if text.endswith("standin:nonsense") and not (self.repaired and request.node == "classify"):
            return {"error": InvalidOutput("nonsense").as_dict()}
        if "standin:500x1" in text and request.try_number == 1:
            return {"error": LMUnavailable("500").as_dict()}
        if "standin:nonsensex1" in text and first:
            return {"outputs": {"intent": "card", "urgency": "very"}}
        return {"outputs": workload.model(request.inputs, request.spec.signature)}


def sweep(seeds: Sequence[int], **said: Any) -> list[Report]:
    """One run a seed."""
    return [Simulation(seed, **said).run() for seed in seeds]


def main() -> int:
    """The command: prints what each bad seed shows, and the sums; 1 if there is a bad one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    what = "as Simulation names them, values as JSON"
    parser.add_argument("--with", nargs="+", type=options.read, default=[], dest="options", metavar="NAME=VALUE", help=what)
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    # What is stored lives as long as its run. To look at it again and again for cycles takes a seventh of the time.
    gc.freeze()
    gc.set_threshold(200_000, 50, 1000)
    sums, bad, began = Counter[str](), list[Report](), time.monotonic()
    for seed in range(o.first, o.first + o.seeds):
        report = Simulation(seed, **dict(o.options)).run()
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
