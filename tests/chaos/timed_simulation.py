"""Keys, state and time on the in-memory bus: engines and workers die, freeze and take over, and no window or count is wrong.

    python tests/chaos/timed_simulation.py --seeds 200 [--first 0] [--with count=80 kills=8] [--json]

Events of some keys come out of order within the lateness. They are counted by key, go through a slow call, and then into
windows, which must stay open for what the model has not answered. Every run ends with the replay invariant of all partitions
of all stages, and with nothing left in any table of what has ended. What takes part, and what goes wrong, is that of
tests/chaos/simulation.py; a seed that fails fails again.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from math import floor
from random import Random
from typing import Any, NamedTuple

import simulation
from oracle import Report, Violation
from simulated.bus import insist
from simulated.sealed import Seals
from simulated.source import APP
from simulation import Simulation

from dspex.bus import codecs, subjects
from dspex.bus.codecs.cloud_events import rfc3339
from dspex.bus.errors import NotStored
from dspex.bus.memory.server import Faults, MemoryServer
from dspex.bus.message import Message, derived_id, new_id
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRequest, Letter
from dspex.bus.serving import payloads
from dspex.engine.graph import hops
from dspex.engine.graph.context import StateContext
from dspex.engine.graph.nodes import KEYED_PARTITIONS, Retry
from dspex.engine.log.entries import bases
from dspex.engine.log.latest import latest
from dspex.engine.replay.partition import Replay
from dspex.engine.runtime.walk.compile import compile_graph
from dspex.operators.stream import gather
from dspex.operators.topology import Topology

SOURCE = "timed.events"
COUNTS, WOKEN, WINDOWS = "timed.counts", "timed.woken", "timed.windows"
SESSIONS, BATCHES, ONCE, MET, PAIRS = "timed.sessions", "timed.batches", "timed.once", "timed.met", "timed.pairs"
SIZE, LATENESS, GAP, NEAR = 10.0, 6.0, 4.0, 8.0  # seconds
WAKE, YEAR = 20.0, 365 * 86400.0


class Timed(NamedTuple):
    """One event: its key, its number within the key, and its event time."""

    id: str
    key: str
    n: int
    time: float


def tally(state: int, data: dict[str, Any], ctx: StateContext) -> tuple[int, list[dict[str, Any]]]:
    ctx.wake(WAKE)
    return state + 1, [{**data, "count": state + 1}]


def woken(state: int, ctx: StateContext) -> tuple[int, list[dict[str, Any]]]:
    return state, [{"k": ctx.key, "woken": state}]


def last(state: float, data: dict[str, Any], ctx: StateContext) -> tuple[float, list[float]]:
    return max(state, data["n"]), []


def start(window: dict[str, Any]) -> float:
    return datetime.fromisoformat(window["start"]).timestamp()


def build(partitions: int) -> Topology:
    t = Topology("timed")
    keyed = t.source(SOURCE, partitions=partitions).key_by("k")
    counted = keyed.stateful(tally, init=int, on_wake=woken, name="tally")
    one, other = counted.branch("has(n)")
    other.sink(WOKEN)
    one.sink(COUNTS)
    retry = Retry(attempts=12, backoff="200ms", factor=1.5, cap="2s")
    asked = keyed.predict("text -> label: str", name="ask", retry=retry, deadline="30m")
    asked.window(SIZE, lateness=LATENESS).count(name="windows").sink(WINDOWS)
    keyed.session_window(GAP, lateness=LATENESS).count(name="sessions").sink(SESSIONS)
    keyed.batch(3, within="5s", name="batched").map(lambda many: {"k": many[0]["k"], "n": [d["n"] for d in many]}).sink(BATCHES)
    keyed.dedupe("str(n // 3)", within="10m", name="once").sink(ONCE)
    shouted = keyed.map(lambda d: {"shouted": d["text"].upper()}, name="shout")
    gather(keyed, shouted, asked, name="met", within="1h").sink(MET)
    keyed.join(asked, within=NEAR, name="pairs").map(lambda pair: {"k": pair[0]["k"], "n": [d["n"] for d in pair]}).sink(PAIRS)
    again = keyed.key_by("str(n % 3)", name="again")
    again.stateful(last, init=float, ttl="30s", name="last").sink("timed.last")
    return t


@dataclass
class TimedSimulation(Simulation):
    """One run. The options are those of Simulation; those about its source's stream are off.

    Attributes:
        behind: partitions behind a hop. An application has 64, and so has one seed in eight. The others have eight: such a run
            costs a third less, with as many commits; what it saves are the claims of partitions without a key.
    """

    behind: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.behind = self.behind or (KEYED_PARTITIONS if self.seed // 2 % 8 == 0 else 8)
        self.command = self.command.replace("/simulation.py", "/timed_simulation.py")
        self.fate, self.sealed, self.redriven, self.big = "", False, False, 0

    @cached_property
    def topology(self) -> Any:
        return build(1 + 2 * (self.seed % 2)).graph

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
        self.seals = Seals(self.server, on=False)
        self.given: list[Timed] = []
        tasks = [
            *(asyncio.create_task(self._engine(i)) for i in range(self.engines)),
            *(asyncio.create_task(self._worker()) for _ in range(self.workers)),
        ]
        loop = asyncio.get_running_loop()
        started = loop.time()
        if self.skewed:
            loop.call_later(self.random.uniform(0.5, 20.0), self._set_clock)
        await self._publish()
        await self.until(lambda: self._settled)
        await asyncio.sleep(75.0)  # long enough for whatever would come too much: work comes again within 15 s, a TTL is 30 s
        report = await self._judge(loop.time() - started)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return report

    async def _publish(self) -> None:
        """Event times stand in the headers: now, or a year ago, less up to the lateness."""
        root = f"{new_id(self.server.now)[:15]}000-8000-000000000000"
        numbers, pause = Counter[str](), self.random.choice([0.05, 0.4, 3.0])
        begin = self.server.now - asyncio.get_running_loop().time()  # event times do not jump where the server's clock does
        ago, rest = self.random.choice([0.0, YEAR]), self.random.choice([0.0, 45.0])
        for number in range(self.count):
            if number == self.count // 2:
                await asyncio.sleep(rest)  # the source is silent, and its watermark goes on by itself
            key = f"k{self.random.randrange(self.keys)}"
            time = round(begin + asyncio.get_running_loop().time() - ago - self.random.uniform(0.0, LATENESS * 0.9), 3)
            event = Timed(derived_id(root, "timed", number), key, numbers[key], time)
            numbers[key] += 1
            body = codecs.encode({"k": key, "n": event.n, "text": f"message {number}"})[0]
            headers = {subjects.MESSAGE_ID: event.id, subjects.KEY: key, subjects.TIME: rfc3339(time)}
            draft = NewMessage(SOURCE, body, headers)
            while True:
                try:
                    await insist(lambda d=draft: self.bus.publish(d))
                    break
                except NotStored:  # no engine has applied the topology yet
                    await asyncio.sleep(0.1)
            self.given.append(event)
            await asyncio.sleep(self.random.expovariate(1 / pause))

    def _model(self, request: CallRequest) -> dict[str, Any]:
        return {"outputs": {"label": str(request.inputs["text"]).upper()}}

    # -- what came of it --------------------------------------------------------------------------------------------
    def _out(self, subject: str) -> list[tuple[Message, Any]]:
        stream = self.server.streams.get(subjects.stream(APP))
        found = stream.matching([subject], 1, stream.last) if stream is not None else ()
        return [(m, codecs.decode(self.whole(m).data, m.headers.get(subjects.CONTENT_TYPE, codecs.JSON))) for m in found]

    @property
    def _settled(self) -> bool:
        """Whether all counts are there, and every event is in a window, or late."""
        counts, met = len(self._out(COUNTS)), len(self._out(MET))
        closed = sum(w["value"] for _, w in self._out(WINDOWS)) + len(self._letters())
        return min(counts, met, closed) >= len(self.given)

    def _letters(self) -> list[Message]:
        stream = self.server.streams.get(subjects.stream(APP))
        return list(stream.matching([subjects.dead_pattern(APP)], 1, stream.last)) if stream is not None else []

    async def _judge(self, took: float) -> Report:
        found = [*self._of_counts(), *self._of_windows(), *self._of_the_rest(), *self._of_residue(), *self.failures]
        self.server.luck.faults = Faults()
        found += [v async for v in self._replayed()]
        entries = len(self._letters())
        numbers = {"seed": self.seed, "events": len(self.given), "virtual seconds": round(took), "dead letters": entries}
        numbers |= {"windows": len(self._out(WINDOWS)), "woken": len(self._out(WOKEN)), **self.done}
        return Report(numbers, found, self.command)

    @property
    def _through(self) -> list[Timed]:
        """The events that were not late: where one branch refuses an event, no sink gets it."""
        late = [codecs.decode(Letter.unpack(self.whole(m).data).event.data, codecs.JSON) for m in self._letters()]
        return [e for e in self.given if (e.key, e.n) not in {(d["k"], d["n"]) for d in late}]

    def _of_counts(self) -> Iterator[Violation]:
        counted = Counter((d["k"], d["n"]) for _, d in self._out(COUNTS))
        for event in self._through:
            if counted[event.key, event.n] != 1:
                yield Violation("an event is counted once", f"{event.key} {event.n}: {counted[event.key, event.n]} times")
        for key in sorted({e.key for e in self.given}):
            counts = [d["count"] for _, d in self._out(COUNTS) if d["k"] == key]
            if counts != list(range(1, len(counts) + 1)):
                yield Violation("a state changes in order", f"{key}: {counts}")
        ids = Counter(m.headers[subjects.EVENT_ID] for s in (COUNTS, WOKEN, WINDOWS) for m, _ in self._out(s))
        for id, times in ids.items():
            if times > 1:
                yield Violation("an id is given once", f"{id}: {times} times")

    def _of_windows(self) -> Iterator[Violation]:
        wanted = Counter((e.key, floor(e.time / SIZE) * SIZE) for e in self.given)
        seen = Counter((d["key"], start(d)) for _, d in self._out(WINDOWS))
        for place, times in seen.items():
            if times > 1:
                yield Violation("a window has one result", f"{place}: {times}")
        late = len(self._letters())
        if late and not self.skewed:
            yield Violation("nothing that comes within the lateness is late", f"{late} letters")
        for _, d in self._out(WINDOWS):
            if d["value"] > wanted[d["key"], start(d)] or (not late and d["value"] != wanted[d["key"], start(d)]):
                yield Violation("a window has its events", f"{d}, and there are {wanted[d['key'], start(d)]}")
        if sum(d["value"] for _, d in self._out(WINDOWS)) + late != len(self.given):
            yield Violation("every event is in a window, or late", f"{len(self.given)} events, {late} late, {dict(seen)}")

    def _of_the_rest(self) -> Iterator[Violation]:
        """Of sessions, where nothing was late; of batches, dedupe, gather and join."""
        places = [(e.key, e.n) for e in self._through]
        ones = [("dedupe lets the first through", ONCE, [p for p in places if p[1] % 3 == 0]), ("branches meet", MET, places)]
        for promise, subject, wanted in ones:
            found = Counter((d["k"], d["n"]) for _, d in self._out(subject))
            if found != Counter(wanted) and not (self._letters() and subject == ONCE):
                yield Violation(promise, f"too many {found - Counter(wanted)}, too few {Counter(wanted) - found}")
        batched = {key: [n for _, d in self._out(BATCHES) if d["k"] == key for n in d["n"]] for key, _ in places}
        for key, numbers in batched.items():
            if numbers != sorted(numbers) or not set(numbers) >= {n for k, n in places if k == key}:
                yield Violation("a batch has its events in order", f"{key}: {numbers}")
        pairs = Counter((d["k"], *d["n"]) for _, d in self._out(PAIRS))
        near = {(a.key, a.n, b.n) for a in self.given for b in self.given if a.key == b.key and abs(a.time - b.time) <= NEAR}
        if not self._letters() and pairs != Counter(near):
            yield Violation("a pair is joined once", f"too many {pairs - Counter(near)}, too few {Counter(near) - pairs}")
        seen = Counter((d["key"], d["value"]) for _, d in self._out(SESSIONS))
        if not self._letters() and seen != Counter(self._sessions()):
            yield Violation("a session has its events", f"{seen}, and there are {Counter(self._sessions())}")

    def _sessions(self) -> Iterator[tuple[str, int]]:
        for key in {e.key for e in self.given}:
            times, count = sorted(e.time for e in self.given if e.key == key), 0
            for time, before in zip(times, [times[0], *times]):
                if time - before > GAP:
                    yield key, count
                    count = 0
                count += 1
            yield key, count

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
        count = 1 + 2 * (self.seed % 2)
        behind = {name: (f"s{i}", self.behind or 0) for i, name in enumerate((h.name for h in graph.hops), 2)}
        for stage, partitions in compile_graph(graph, {SOURCE: ("s1", count)}, behind, {}):
            stream = self.server.stream_of(SOURCE)
            name = stream.config.name if stage.source is not None and stream is not None else ""
            for index in range(partitions):
                replay = Replay(self.bus, APP, stage, name, index, partitions, payloads.most(self.bus))
                end = await latest(self.bus, replay.log)
                base = bases(end.at, end.entry)[0] if end.at else 0
                for snapshot in {0, base} if end.at else ():
                    self.done["replays"] += 1
                    async for entry, what in replay.differences(snapshot):
                        yield Violation("a replay gives the same", f"{stage.id}.{index} from {snapshot}, {entry}: {what}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of tests/chaos/simulation.py, with these runs."""
    simulation.Simulation = TimedSimulation  # type: ignore[misc]
    return simulation.main()


if __name__ == "__main__":
    sys.exit(main())
