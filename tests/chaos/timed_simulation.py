"""Keys, state and time on the in-memory bus: engines and workers die, freeze and take over, and no window or count is wrong.

    python tests/chaos/timed_simulation.py --seeds 200 [--first 0] [--with count=80 kills=8] [--json]

Events of some keys come out of order within the lateness. They are counted by key, go through a slow call, and then into
windows, which must stay open for what the model has not answered. Every run ends with the replay invariant of all partitions
of all stages, and with nothing left in any table of what has ended. What takes part, and what goes wrong, is that of
tests/chaos/simulation.py, and by the seed: a third engine, events that are late and are redriven with another time, events
whose call fails until it is redriven, events that are put off, a pause, a person who decides, and a function that enriches.
In a third of the seeds there are two sources whose times run apart, merged and joined, and readers give a few messages at a
time. A seed that fails fails again.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

import simulation
from oracle import Report, Violation
from simulated import outsiders
from simulated.expected import Expected, Place, Refused
from simulated.publisher import MOST_BEHIND, Publisher
from simulated.sealed import Seals
from simulated.source import APP
from simulated.timed import OTHER, SOURCE, WINDOWS, WOKEN, Timed, breaks, build
from simulation import Simulation

from dspex.bus import codecs, subjects
from dspex.bus.errors import ProgramError
from dspex.bus.memory.server import Faults, MemoryServer
from dspex.bus.message import Message, run_of
from dspex.bus.records import CallRecord, CallRequest, Letter
from dspex.bus.serving import payloads
from dspex.engine.graph import hops
from dspex.engine.graph.nodes import KEYED_PARTITIONS
from dspex.engine.log.entries import bases
from dspex.engine.log.latest import latest
from dspex.engine.replay.partition import PartitionReplay
from dspex.engine.runtime.walk.compile import compile_graph


@dataclass
class TimedSimulation(Simulation):
    """One run. The options are those of Simulation; those about its source's stream are off. The seed decides what is None.

    Attributes:
        behind: partitions behind a hop. An application has 64, and so has one seed in eight. The others have eight: such a run
            costs a third less, with as many commits; what it saves are the claims of partitions without a key.
        strays: how many of the events are too late, from 0 to 1. put_off: how many wait in the engine for a while.
        paused: once the topology, or one of its stages, is paused for a while. people: decide about each event.
        enriched: a function is asked about each event. serial: about one of a key after the other.
        failing: the model fails at some events, until it is repaired and they are redriven.
        third: three engines take part instead of two.
        patient: late events are redriven only when all has been said that their letters lead to.
        two: a second source, whose events are some seconds behind those of the first one.
    """

    behind: int | None = None
    strays: float | None = None
    put_off: float | None = None
    paused: bool | None = None
    people: bool | None = None
    enriched: bool | None = None
    failing: bool | None = None
    third: bool | None = None
    patient: bool | None = None
    two: bool | None = None
    serial: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.command = self.command.replace("/simulation.py", "/timed_simulation.py")
        self.fate, self.redriven, self.big = "", False, 0
        self.behind = self.behind or (KEYED_PARTITIONS if self.seed // 2 % 8 == 0 else 8)
        chance = Random(self.seed + 2)
        by_seed: dict[str, Any] = {
            "strays": chance.choice([0.0, 0.0, 0.15]),
            "put_off": chance.choice([0.0, 0.0, 0.2]),
            "paused": chance.random() < 0.3,
            "people": chance.random() < 0.3,
            "enriched": chance.random() < 0.3,
            "patient": chance.random() < 0.3,
            "third": chance.random() < 0.2,
            "failing": chance.random() < 0.15,
            "two": (two := chance.random() < 1 / 3),
            "few": chance.choice([1, 5] if two else [0, 0, 0, 5]),
            "serial": chance.random() < 0.5,
        }
        for name, value in by_seed.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.engines += bool(self.third)

    @property
    def partitions(self) -> int:  # of a source
        return 1 + 2 * (self.seed % 2)

    @property
    def sources(self) -> list[str]:
        return [SOURCE, OTHER] if self.two else [SOURCE]

    @cached_property
    def topology(self) -> Any:
        said = {name: bool(getattr(self, name)) for name in ("people", "enriched", "serial", "two")}
        return build(self.partitions, **said).graph

    def run(self) -> Report:
        hops.KEYED_PARTITIONS = self.behind  # type: ignore[misc]
        try:
            return super().run()
        finally:
            hops.KEYED_PARTITIONS = KEYED_PARTITIONS  # type: ignore[misc]

    async def _main(self) -> Report:
        self.random = Random(self.seed)
        self.server = MemoryServer(seed=self.seed, faults=self.faults)
        self.bus = self.server.connect()
        self.hosts = {}
        self.repaired = False
        self._decide()
        self.seals = Seals(self.server, on=bool(self.sealed))
        self.seals.seal(self.bus)
        self.given: list[Timed] = []
        self.times: dict[Place, tuple[float, float]] = {}
        self.displaced: set[Place] = set()
        self._known: dict[int, tuple[Message, Any]] = {}
        self._found: dict[str, dict[str, bool]] = {}  # key → call of the function that finds → whether it has answered
        tasks = [
            *(asyncio.create_task(self._engine(i)) for i in range(self.engines)),
            *(asyncio.create_task(self._worker()) for _ in range(self.workers)),
            *([asyncio.create_task(outsiders.decide(self))] if self.people else []),
            *([asyncio.create_task(outsiders.pause(self))] if self.paused else []),
        ]
        loop = asyncio.get_running_loop()
        started = loop.time()
        self.begin = self.server.now - started  # event times do not jump where the server's clock does
        if self.skewed:
            loop.call_later(self.random.uniform(0.5, 20.0), self._set_clock)
        await Publisher(self).publish()
        await self._come_to_rest()
        self.few = 0  # who reads again what others have heard long ago has done so soon
        # Long enough for whatever would come too much: work comes again within 15 s, a TTL is 30 s behind the slower source.
        await asyncio.sleep(75.0 + (MOST_BEHIND if self.two else 0.0))
        report = await self._judge(loop.time() - started)
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if ended is not None and not isinstance(ended, asyncio.CancelledError):
                raise ended  # whoever should have done something until the end did nothing
        return report

    @property
    def now(self) -> float:
        """What the publisher says of the time."""
        return self.begin + asyncio.get_running_loop().time() - self.ago

    async def _come_to_rest(self) -> None:
        """Wait until all has come, and redrive what was late with a time that is not, until nothing is."""
        await self.until(lambda: self._settled(lacking=bool(self.patient)))
        unanswered = set[Place]()
        for _ in range(5):
            refused = self.expected.refused
            if not self._redrivable or (refused.late and self.expected.on_time):
                return
            unanswered |= refused.unanswered.keys()
            if alone := refused.lacking.keys() - unanswered:
                self.failures.append(Violation("branches meet", f"of {alone} one did not come, and was not refused"))
            if self.patient:  # else nothing would be left to see of what their letters lead to
                self.failures += self._violations()
            await outsiders.redrive(self)
            await self.until(lambda: self._settled(lacking=bool(self.patient)))

    @property
    def _redrivable(self) -> int:
        refused = self.expected.refused
        return refused.late + refused.failed.total() + refused.lacking.total()

    def _model(self, request: CallRequest) -> dict[str, Any]:
        if request.node == "find":
            return {"outputs": {"found": request.inputs["n"] + 1}}
        if self._broken and breaks(int(str(request.inputs["text"]).split()[0])):
            return {"error": ProgramError("broken").as_dict()}
        return {"outputs": {"label": str(request.inputs["text"]).upper()}}

    # -- what came of it --------------------------------------------------------------------------------------------
    def out(self, subject: str) -> list[tuple[Message, Any]]:
        """What came out on a subject."""
        return [self._decoded(m) for m in self.stored(subjects.stream(APP), subject)]

    def _decoded(self, m: Message) -> tuple[Message, Any]:
        if m.sequence not in self._known:  # it is looked at again and again
            self._known[m.sequence] = m, codecs.decode(self.whole(m).data, m.headers.get(subjects.CONTENT_TYPE, codecs.JSON))
        return self._known[m.sequence]

    def stored(self, name: str, subject: str) -> list[Message]:
        stream = self.server.streams.get(name)
        return list(stream.matching([subject], 1, stream.last)) if stream is not None else []

    @property
    def expected(self) -> Expected:
        """What is to come of what was published and refused so far."""
        refused, runs = Refused(), dict[str, Timed]()
        if found := self.stored(subjects.stream(APP), subjects.dead_pattern(APP)):
            by_id = {e.id: e for e in self.given}
            for source in self.sources:
                if (stream := self.server.stream_of(source)) is None:
                    continue
                for m in self.stored(stream.config.name, source):
                    event = by_id.get(m.headers[subjects.MESSAGE_ID])
                    if event is not None:  # else its publisher does not know yet that it is stored
                        runs[run_of(stream.config.name, stream.created, m)] = event
            refused = Refused.read([Letter.unpack(self.whole(m).data) for m in found], runs)
        on_time = not self.skewed and not self.strays and not self.repaired
        strays = bool(self.strays or self.skewed)  # where a clock jumps, what comes in time for the publisher may be a stray
        return Expected(self.given, refused, self.out, self.times, self.displaced, on_time, self._broken, strays)

    async def _answer(self, request: CallRequest) -> CallRecord:
        if request.node != "find":
            return await super()._answer(request)
        calls = self._found.setdefault(request.inputs["k"], {})
        if self.serial and request.call not in calls and not all(calls.values()):
            self.failures.append(Violation("one call of a key comes after the other", f"{request.call}: {calls}"))
        calls.setdefault(request.call, False)
        record = await super()._answer(request)
        calls[request.call] = True
        return record

    @property
    def _broken(self) -> bool:
        return bool(self.failing) and not self.repaired

    def _settled(self, *, lacking: bool) -> bool:
        return self.expected.settled(people=bool(self.people), enriched=bool(self.enriched), lacking=lacking)

    def _violations(self) -> list[Violation]:
        return list(self.expected.violations(people=bool(self.people), enriched=bool(self.enriched)))

    async def _judge(self, took: float) -> Report:
        found = [*self._violations(), *self._of_residue(), *self.failures]
        if self._redrivable:
            found.append(Violation("what is redriven goes through", f"{self.expected.refused}"))
        self.server.luck.faults = Faults()
        found += [v async for v in self._replayed()]
        entries = len(self.stored(subjects.stream(APP), subjects.dead_pattern(APP)))
        numbers = {"seed": self.seed, "events": len(self.given), "virtual seconds": round(took), "dead letters": entries}
        numbers |= {"windows": len(self.out(WINDOWS)), "woken": len(self.out(WOKEN)), **self.done}
        return Report(numbers, found, self.command)

    def _of_residue(self) -> Iterator[Violation]:
        """Nothing is left of a window or a TTL that has ended."""
        for host in self.hosts.values():
            for runner in host.runners:
                for p in runner.partitions.values():
                    rows = [k for k in p.tables.keyed.rows if k[0] not in ("tally", "once")]
                    timers = [t for t in p.tables.timers.rows.values() if t.kind == "mark" and t.node != "once"]
                    if p.settled.is_set() and not p.revoked and (rows or timers or p.tables.calls.rows):
                        yield Violation("nothing is left", f"{runner.stage.id}.{p.index}: {rows} {timers}")

    async def _replayed(self) -> AsyncIterator[Violation]:
        graph = self.topology
        sources = {name: (f"s{i}", self.partitions) for i, name in enumerate(self.sources, 1)}
        first = len(sources) + 1
        behind = {hop.name: (f"s{i}", self.behind or 0) for i, met in enumerate(hops.groups(graph), first) for hop in met}
        for stage, partitions in compile_graph(graph, sources, behind, {}):
            stream = self.server.stream_of(stage.source.subject) if stage.source is not None else None
            name = stream.config.name if stream is not None else ""
            for index in range(partitions):
                replay = PartitionReplay(self.bus, APP, stage, name, index, partitions, payloads.most(self.bus))
                end = await latest(self.bus, replay.log)
                base = bases(end.at, end.entry)[0] if end.at else 0
                for snapshot in {0, base} if end.at else ():
                    self.done["replays"] += 1
                    replay.goes_on, replay.incomplete = True, []
                    async for entry, what in replay.differences(snapshot):
                        yield Violation("a replay gives the same", f"{stage.id}.{index} from {snapshot}, {entry}: {what}")
                    for entry, error in replay.incomplete:
                        yield Violation("a log is whole", f"{stage.id}.{index} from {snapshot}, entry {entry}: {error}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of tests/chaos/simulation.py, with these runs."""
    simulation.Simulation = TimedSimulation  # type: ignore[misc]
    return simulation.main()


if __name__ == "__main__":
    sys.exit(main())
