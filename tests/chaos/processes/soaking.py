"""A long run at an even pace: calls, windows and sessions, something killed now and then, and nothing that grows.

    scripts/soak                       8 hours
    scripts/soak --minutes 10          as long as that; --json prints all that was measured, and the verdict
    scripts/soak --minutes 1 --every 5 --kills-every 20

Engines, pools and server are processes of their own; a stand-in answers for the model. What is published is counted when it
comes out of the sinks, which are emptied as they are read. Every --every seconds it is measured: memory, open files, consumers,
bytes of streams, events that are not read. The last third must be what the middle third was, give or take. 1 where something
grows, or counts do not agree.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import psutil
import structlog
from oracle import Report, Violation
from standin import StandIn

from dspex.bus import nats, subjects
from dspex.bus.errors import BusError, CallTimeout, Saturated, SessionConflict, WorkerLost
from dspex.engine.client.client import Client
from processes.faults import FAULTS
from processes.world import APP, World, insist, profile

SOURCE, SINKS = "soak.in", ("soak.out", "soak.minutes")
RETENTION = "30s"
TOPOLOGY = f"""dspex: 1
topology: soak
retention: {RETENTION}
sources: {{ {SOURCE}: {{ partitions: 4, idle: 2s }} }}
nodes:
  classify: {{ from: {SOURCE}, predict: "text -> intent, urgency: int", retry: {{ attempts: 12 }}, deadline: 10m }}
  by_customer: {{ from: {SOURCE}, key_by: customer }}
  per_window: {{ from: by_customer, window: 5s, count: {{}} }}
sinks: {{ soak.out: {{ from: classify }}, soak.minutes: {{ from: per_window }} }}
"""
FAULT = ("kill-engine", "kill-worker", "kill-server")
ROOM = {"rss": (1.15, 60 << 20), "files": (1.2, 30), "consumers": (1.0, 10), "bytes": (1.5, 8 << 20), "lag": (1.0, 200)}
CUSTOMERS, TURNS = 20, 10
AGAIN = (BusError, CallTimeout, Saturated, SessionConflict, WorkerLost)


class SoakWorld(World):
    """Runs the topology of the soak, and keeps its past for half a minute."""

    def _write_settings(self) -> None:
        super()._write_settings()
        (self.folder / "soak.yaml").write_text(TOPOLOGY)
        with (self.folder / "dspex.toml").open("a") as file:
            file.write(f'engine.records = "{RETENTION}"\n')

    def add_engine(self) -> None:
        number = sum(p.name.startswith("engine") for p in self.processes)
        command = [sys.executable, "-m", "dspex", "--json", "run", "soak.yaml", "--pools", "none", "--no-server"]
        self._add(f"engine-{number}", command)


@dataclass
class Soak:
    """One run. `sent`: texts by number; `came`: how often each came out of the sink; `windows`: results by key and start."""

    o: argparse.Namespace
    sent: int = 0
    turns: int = 0
    came: Counter[int] = field(default_factory=Counter)
    windows: dict[tuple[str, Any], int] = field(default_factory=dict)
    found: list[Violation] = field(default_factory=list)
    measured: list[dict[str, float]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    async def go(self) -> Report:
        with tempfile.TemporaryDirectory(prefix="dspex-soak-") as folder:
            async with StandIn(latency=0.05) as model:
                lm = profile(model="openai/stand-in", base_url=model.url, key_env="OPENAI_API_KEY")
                async with SoakWorld(Path(folder), lm) as self.world:
                    self.bus = await nats.connect(self.world.url, name="soak")
                    self.client = Client(bus=self.bus, app=APP)
                    await self._run()
                    await self.bus.close()
        self.found += [Violation("processes live and drain", problem) for problem in self.world.problems]
        self.found += list(self.grown())
        numbers = {"events": self.sent, "turns": self.turns, "windows": len(self.windows), "faults": dict(self.faults)}
        return Report({**numbers, "measured": len(self.measured), **self._thirds()}, self.found)

    async def _run(self) -> None:
        while await insist(lambda: self.bus.stream(subjects.stream(APP))) is None:
            await asyncio.sleep(0.05)
        until = time.monotonic() + self.o.minutes * 60
        counting = asyncio.create_task(self._count())
        jobs = [self._publish(until), self._talk(until), self._trouble(until), self._measure(until)]
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
        with suppress(TimeoutError):
            async with asyncio.timeout(120):
                while not self._all_there():
                    if counting.done():
                        counting.result()
                    await asyncio.sleep(0.2)
        counting.cancel()
        await asyncio.gather(counting, return_exceptions=True)
        self.judge()

    # -- what is done --------------------------------------------------------------------------------------------------
    async def _publish(self, until: float) -> None:
        while time.monotonic() < until:
            n = self.sent
            data = {"n": n, "customer": f"c{n % CUSTOMERS}", "text": f"message {n}"}
            await insist(lambda data=data: self.client.publish(SOURCE, data, id=f"soak-{data['n']}", key=data["customer"]))  # type: ignore[misc]
            self.sent += 1
            await asyncio.sleep(1 / self.o.rate)

    async def _talk(self, until: float) -> None:
        """Sessions of some turns each: each question is a turn, once, whoever died meanwhile."""
        while time.monotonic() < until:
            session = self.client.session(f"talk-{self.turns}")
            asked = [f"question {n}" for n in range(TURNS)]
            for n, text in enumerate(asked):
                while True:
                    try:
                        await session.call("history, text -> reply", {"text": text}, id=f"q{n}", timeout=10.0)
                        break
                    except AGAIN:
                        await asyncio.sleep(0.2)
            kept = await insist(lambda session=session: _texts(session))  # type: ignore[misc]
            if kept != asked:
                self.found.append(Violation("each question is one turn, in order", f"{kept} of {session.id}"))
            self.turns += TURNS
            await insist(session.end)

    async def _trouble(self, until: float) -> None:
        random = Random(self.o.seed)
        while (left := until - time.monotonic()) > self.o.kills_every:
            await asyncio.sleep(min(left, self.o.kills_every))
            name = random.choice(FAULT)
            await FAULTS[name](self.world, random)
            self.faults[name] += 1

    # -- what comes ----------------------------------------------------------------------------------------------------
    async def _count(self) -> None:
        """Read the sinks, and empty them behind what was read."""
        stream = subjects.stream(APP)
        reader = await self.bus.reader(stream, list(SINKS), after=0, name="soak-count")
        while True:
            for message in await reader.read(1000):
                data = json.loads(message.data)
                if message.subject == SINKS[0]:
                    self.came[data["n"]] += 1
                elif (window := (data["key"], data["start"])) in self.windows:
                    self.found.append(Violation("a window has one result", str(window)))
                else:
                    self.windows[window] = data["value"]
                last = message.sequence
            for sink in SINKS:
                await insist(lambda sink=sink, last=last: self.bus.purge(stream, sink, below=last + 1))  # type: ignore[misc]

    def _all_there(self) -> bool:
        return len(self.came) >= self.sent and sum(self.windows.values()) >= self.sent

    def judge(self) -> None:
        lost = [n for n in range(self.sent) if not self.came[n]]
        twice = [n for n, count in self.came.items() if count > 1]
        counted = sum(self.windows.values())
        self.found += [Violation("nothing is lost", f"{len(lost)} of {self.sent}: {lost[:5]}")] if lost else []
        self.found += [Violation("nothing is doubled", f"{len(twice)}: {twice[:5]}")] if twice else []
        self.found += (
            [Violation("windows count each event once", f"{counted}, not {self.sent}")] if counted != self.sent else []
        )

    # -- what it takes -------------------------------------------------------------------------------------------------
    async def _measure(self, until: float) -> None:
        while time.monotonic() + self.o.every < until:
            await asyncio.sleep(self.o.every)
            try:
                self.measured.append(await self._figures())
            except BusError:
                continue  # the next one will do
            sys.stderr.write(f"    {self.sent} events, {self.measured[-1]}\n")

    async def _figures(self) -> dict[str, float]:
        lag = sum(stage["lag"] or 0 for stage in (await self.client.status())["stages"])
        answer = await self.bus.request(f"$JS.API.STREAM.INFO.{subjects.stream(APP)}", b"")
        consumers = json.loads(answer.data)["state"]["consumer_count"]
        infos = [await self.bus.stream(name) for name in (subjects.stream(APP), subjects.sources(APP), subjects.requests(APP))]
        rss, files = 0, 0
        for pid in [self.world.server.pid, *[pid for p in self.world.processes if p.alive for pid in (p.pid, *p.children())]]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process = psutil.Process(pid)
                rss, files = rss + process.memory_info().rss, files + process.num_fds()
        stored = sum(info.bytes for info in infos if info)
        return {"rss": rss, "files": files, "consumers": consumers, "bytes": stored, "lag": lag}

    def _thirds(self) -> dict[str, Any]:
        """The median of the middle third and of the last, of each figure."""
        n = len(self.measured) // 3
        parts = (self.measured[n : 2 * n], self.measured[2 * n :])
        return {what: [median(one[what] for one in part) for part in parts] for what in ROOM} if n else {}

    def grown(self) -> Iterator[Violation]:
        thirds = self._thirds()
        if not thirds:
            yield Violation("it is measured", f"{len(self.measured)} times only")
        for what, (before, after) in thirds.items():
            times, more = ROOM[what]
            if after > before * times + more:
                yield Violation(f"{what} stay flat", f"{before:,.0f}, and then {after:,.0f}")


async def _texts(session: Any) -> list[str]:
    return [turn.inputs["text"] async for turn in session.history(limit=TURNS)]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="scripts/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=480.0, help="default: 8 hours")
    p.add_argument("--every", type=float, default=30.0, help="seconds between two measurements")
    p.add_argument("--kills-every", type=float, default=120.0, help="seconds between two deaths")
    p.add_argument("--rate", type=float, default=10.0, help="events a second")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", action="store_true")
    return p


def main() -> int:
    """The command."""
    o = parser().parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    soak = Soak(o)
    report = asyncio.run(soak.go())
    text = json.dumps({**report.as_dict(), "figures": soak.measured}) if o.json else str(report)
    sys.stdout.write(f"{text}\n")
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
