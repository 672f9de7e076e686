"""A chaos run on a real server: real processes, a stand-in for the model's server, deaths at random, then the oracle.

    python tests/chaos/run.py --events 3000 --kills 10 --target all --seed 1 [--json]
    python tests/chaos/run.py --banking --target engine --kills 10
    python tests/chaos/run.py --banking --model --events 300 --target none        the real local model

Prints a report; exit code 1 on any violation. What goes wrong is in processes/: `--target` is one of TARGETS or FAULTS in
processes/faults.py.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import workload
from oracle import Facts, Ledger, Report, Violation, judge
from processes.faults import AT_ONCE, FAULTS, TARGETS
from processes.processes import owners
from processes.publisher import Publisher
from processes.world import APP, World, insist, profile
from standin import StandIn
from workload import SINKS, Given

from dspex.bus import subjects
from dspex.bus.errors import BusError
from dspex.bus.message import Message
from dspex.bus.port import Reader
from dspex.bus.serving import payloads

BANKING = Path(__file__).parents[2].parent / "shared" / "data" / "banking77" / "test.csv"
QUIET = 2.0  # seconds without a new message after which nothing more will come
TELL = 10.0  # seconds between two words on progress


def banking() -> list[str]:
    """The texts of the banking77 test set, each on one line."""
    with BANKING.open(newline="", encoding="utf-8") as file:
        return [" ".join(row["text"].split()) for row in csv.DictReader(file)]


@dataclass
class Run:
    """One run. `faults`: names, each happens `o.kills` times at random moments. `o`: the options of the command line."""

    events: list[Given]
    faults: Sequence[str]
    o: argparse.Namespace
    lm: str = ""  # instead of the stand-in
    heard: list[Message] = field(default_factory=list)

    async def go(self) -> Report:
        """Everything, from an empty store to the oracle's report. No process is left behind."""
        async with AsyncExitStack() as stack:
            folder = self.o.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dspex-chaos-")))
            self.model = await stack.enter_async_context(StandIn(latency=self.o.latency))
            lm = self.lm or profile(model="openai/stand-in", base_url=self.model.url, key_env="OPENAI_API_KEY")
            self.world = self._world(folder, lm)
            async with self.world:
                self.bus = self.world.bus
                return await self._run()

    def _world(self, folder: Path, lm: str) -> World:
        o, faults = self.o, " ".join(self.faults)
        return World(
            folder, lm, o.engines, o.pools, 1 if o.model else o.size, "wire" in faults or o.round_trip > 0,
            o.foreign or "source" in faults, o.partitions, "skip" if "source" in faults else "stop",
            3 if "leader" in faults else 1, o.heartbeat, "clock" in faults, o.disk, o.sealed,
        )  # fmt: skip

    async def _run(self) -> Report:
        self.ledger, random = Ledger(APP, self.events), Random(self.o.seed)
        self.publisher = Publisher(self.bus, APP, self.events, self.o.pace)
        self.world.watched(self.ledger, self.publisher)
        self.wanted, began = self.ledger.missing, time.monotonic()
        late, tasks = list[Violation](), list[asyncio.Task[None]]()
        try:
            async with asyncio.timeout(self.o.timeout):
                await self._applied()
                work = {
                    "publish": self.publisher.run(),
                    "count": self._count(),
                    "trouble": self._trouble(random),
                    "tell": self._tell(),
                }
                tasks = [asyncio.create_task(job, name=name) for name, job in work.items()]
                await self._all_there(tasks)
                self.took = time.monotonic() - began
                await self._quiet()
        except TimeoutError:
            self.took = time.monotonic() - began
            late.append(Violation("a run comes to its end", self._unfinished(tasks)))
        self.world.cutter.round_trip = 0.0  # a drain has a time of its own
        await self.world.drain(40.0)
        report = await self._judge()
        report.violations += late + [Violation("processes live and drain", p) for p in self.world.problems]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return report

    def _unfinished(self, tasks: Sequence[asyncio.Task[None]]) -> str:
        waits = [t.get_name() for t in tasks if not t.done()]
        lost = list(self.ledger.lost())
        return f"after {self.took:.0f} s {waits} still run, and {self.ledger.missing} of {self.wanted} are missing: {lost[:3]}"

    async def _applied(self) -> None:
        """Until an engine has made the stream; and hear its sinks from then on."""
        await self.bus.subscribe("chaos.>", self._hear)
        while await insist(lambda: self.bus.stream(subjects.stream(APP))) is None:
            await asyncio.sleep(0.05)
        if self.o.round_trip:  # what is slow is the work, and not the start
            while {p.pid for p in self.world.of("engine")} != set((await owners(self.world)).values()):
                await asyncio.sleep(0.1)
            self.world.cutter.round_trip = self.o.round_trip

    async def _hear(self, m: Message) -> None:
        if m.subject in SINKS:
            self.heard.append(await self._whole(m))
        if m.subject == "chaos.big":
            self.world.bursting.set()

    # -- while it runs -------------------------------------------------------------------------------------------------
    async def _count(self) -> None:
        reader: Reader = await self._reader([*SINKS, subjects.dead_pattern(APP)], "ledger")
        while True:
            for message in await reader.read(1000):
                self.ledger.take(await self._whole(message))
            self.world.over = not self.ledger.missing

    async def _reader(self, filters: list[str], name: str) -> Reader:
        return await self.bus.reader(subjects.stream(APP), filters, after=0, name=f"oracle-{name}")

    async def _trouble(self, random: Random) -> None:
        """Every fault `kills` times, each when a random share of the events is finished."""
        plan = sorted((0.0 if f in AT_ONCE else random.uniform(0, 0.95), f) for f in self.faults for _ in range(self.o.kills))
        for share, name in plan:
            while self.ledger.open > len(self.events) * (1 - share):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0 if name in AT_ONCE else random.uniform(0, 0.2))
            await FAULTS[name](self.world, random)
            self.world.done[name] += 1

    async def _tell(self) -> None:
        """Say on stderr how far it is."""
        while True:
            await asyncio.sleep(TELL)
            done = ", ".join(f"{count} × {name}" for name, count in self.world.done.items())
            sys.stderr.write(f"    {len(self.events) - self.ledger.open} of {len(self.events)} events are finished; {done}\n")

    async def _all_there(self, tasks: list[asyncio.Task[None]]) -> None:
        """Until nothing is missing and all faults have happened. Raises what one of the tasks raised."""
        while self.ledger.missing or not (tasks[0].done() and tasks[2].done()):
            for task in tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.02)

    async def _quiet(self) -> None:
        """Until nothing is stored any more."""
        last, since = -1, time.monotonic()
        while time.monotonic() - since < QUIET:
            try:
                info = await self.bus.stream(subjects.stream(APP))
            except BusError:
                info = None
            if info is None or info.last != last:
                last, since = info.last if info else -1, time.monotonic()
            await asyncio.sleep(0.1)

    # -- at the end ----------------------------------------------------------------------------------------------------
    async def _judge(self) -> Report:
        world = self.world
        facts = Facts(self.o.partitions, self.publisher.stored, world.away, world.unread, world.again, self.o.model)
        report = judge(APP, self.events, await insist(self._stored), self.heard, facts)
        model = self.model.stats()
        lives = {kind: sum(p.lives for p in self.world.processes if p.name.startswith(kind)) for kind in ("engine", "pool")}
        report.numbers |= {
            "seconds": round(self.took, 1),
            "events a second": round(len(self.events) / self.took),
            "faults": dict(self.world.done),
            "starts": lives,
            "events lost with their stream": len(self.ledger.gone),
            "fenced, and said so": sum(len(self.world.logged(p, "fenced:")) for p in self.world.processes),
        }
        if not self.lm:  # every record but those of lost workers stands for one request
            asked = report.numbers["records"] - report.numbers["records of lost workers"]
            report.numbers |= {"requests to the model": model["requests"], "repeated model calls": model["requests"] - asked}
        return report

    async def _stored(self) -> list[Message]:
        """The whole application stream, as a durable reader gets it."""
        stream = subjects.stream(APP)
        info = await self.bus.stream(stream)
        last = info.last if info else 0
        reader, found = await self._reader(list(info.subjects if info else ()), "judge"), list[Message]()
        while last and (not found or found[-1].sequence < last):
            found += await reader.read(5000)
        return [await self._whole(message) for message in found]

    async def _whole(self, message: Message) -> Message:
        """The message with its body. It waits for a server that is away: nobody has deleted a key."""
        if payloads.is_whole(message.headers):
            return message
        return await insist(partial(payloads.required, self.bus, APP, message))


def planned(o: argparse.Namespace) -> Run:
    """The run that the command line asks for."""
    faults = TARGETS.get(o.target, (o.target,))
    texts = banking()[: o.events] if o.banking else None
    events = workload.events(o.events, o.seed, keys=o.keys, big=o.big, texts=texts)
    if o.model:
        return Run(workload.loose(events), faults, o, profile(model="local/smollm2-135m"))
    return Run(events, faults, o)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--events", type=int, default=300)
    p.add_argument("--target", choices=[*TARGETS, *FAULTS], default="all")
    p.add_argument("--kills", type=int, default=3, help="of each kind")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--keys", type=int, default=20)
    p.add_argument("--big", type=int, default=1, help="events of 2,500 outputs")
    p.add_argument(
        "--banking", action="store_true", help="the texts of banking77, each to be classified, and others beside them"
    )
    p.add_argument("--model", action="store_true", help="ask the real local model, of what only the form is known")
    p.add_argument("--engines", type=int, default=2)
    p.add_argument("--pools", type=int, default=1)
    p.add_argument("--size", type=int, default=2)
    p.add_argument("--latency", type=float, default=0.0, help="seconds that the model takes")
    p.add_argument("--timeout", type=float, default=600.0)
    p.add_argument("--folder", type=Path, help="keeps store and logs")
    p.add_argument("--foreign", action="store_true", help="the source is a stream of its own")
    p.add_argument("--partitions", type=int, default=workload.PARTITIONS)
    p.add_argument("--pace", type=float, default=0.0, help="seconds between two events of a key")
    p.add_argument("--round-trip", type=float, default=0.0, help="seconds that each answer of the server takes longer")
    p.add_argument("--heartbeat", type=float, default=0.2, help="of engines, in seconds")
    p.add_argument("--disk", type=int, default=0, help="megabytes of the disk of the server's store")
    p.add_argument("--sealed", action="store_true", help="payloads are sealed, with a session for each key")
    p.add_argument("--json", action="store_true")
    return p


def main() -> int:
    o = parser().parse_args()
    report = asyncio.run(planned(o).go())
    sys.stdout.write((json.dumps(report.as_dict()) if o.json else str(report)) + "\n")
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
