"""Word count, windows, sessions behind a slow call, join, gather and dedupe of the same events, run in several ways.

What must come out is computed apart, in plain Python. Event times are in the data and in the order of no clock, so nothing
depends on when anything runs.

    python tests/engine/keyed/golden/golden_run.py --events 20000 --kills 20    the long run
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import orjson
import structlog

import dspex
from dspex.bus import subjects, telemetry
from dspex.bus.local.server import LocalServer
from dspex.bus.nats import NatsBus, connect
from dspex.bus.port import NewMessage, Reader
from dspex.bus.settings.model import Settings
from dspex.engine.hosting.engine import Engine, stop_on_signals, until_stopped
from dspex.engine.testing.workers import Workers

Outputs = Mapping[str, list[Any]]  # what was stored, by job
Given = dict[str, Any]  # an event
WITHIN = 300.0
PROCESSES = multiprocessing.get_context("forkserver")  # they do not each import everything
PROCESSES.set_forkserver_preload(["dspex.engine.hosting.engine", "dspex.engine.testing.workers", "dspex.operators.registry"])
WORDS = ("card", "lost", "money", "arrival", "refund", "limit", "abroad")
SIZE, GAP, NEAR = 10.0, 4.25, 3.25  # seconds; the times of events lie on a grid that meets no edge but that of SIZE
WAYS = {"straight": ("",), "kills": ("", "k+", "k+"), "1 → 3 → 2": ("", "++", "-")}
"""What is done before each part of the events, of which one engine takes the first: `+` starts one, `k` kills, `-` drains."""


# -- the jobs ----------------------------------------------------------------------------------------------------------
def topology(app: str) -> dspex.Topology:
    """All jobs, each with a sink of its own."""
    made = dspex.Topology("golden")
    events = made.source(f"{app}.in", time="at").filter("not end", name="real")
    words = events.flat_map(lambda d: d["words"], name="words").key_by(lambda word: word, name="by_word")
    words.stateful(_counted, init=int, name="counted").sink(f"{app}.out.count")
    keyed = events.key_by("k", name="by_k")
    keyed.window("10s", lateness="5s").aggregate(list, _added, name="windows").sink(f"{app}.out.window")
    asked = events.predict("n: int -> label: str", name="ask", deadline="5m")
    sessions = asked.key_by("k", name="asked_by_k").session_window("4250ms", lateness="5s")
    sessions.collect(name="sessions").map(_numbers, name="numbers").sink(f"{app}.out.session")
    orders, paid = events.filter("n % 2 == 0", name="orders"), events.filter("n % 2 == 1", name="paid")
    pairs = orders.key_by("k", name="orders_by_k").join(paid.key_by("k", name="paid_by_k"), within="3250ms", name="pairs")
    pairs.map(lambda pair: [d["n"] for d in pair], name="pair").sink(f"{app}.out.join")
    events.dedupe("first", within="1h", name="once").sink(f"{app}.out.dedupe")
    low, high = (events.predict(f"n: int -> {n}: str", name=n, deadline="5m") for n in ("low", "high"))
    dspex.gather(low, high, name="both", within="5m").sink(f"{app}.out.gather")
    return made


def _counted(state: int, word: str, ctx: object) -> tuple[int, list[object]]:
    return state + 1, [[word, state + 1]]


def _added(state: list[int], data: Given) -> list[int]:
    return [(state or [0])[0] + data["n"], *sorted([*state[1:], data["n"]])]


def _numbers(window: Any) -> list[Any]:
    return [window.key, sorted([d["n"], d["label"]] for d in window.value)]


def label(inputs: Mapping[str, Any]) -> str:
    """What the model says."""
    return f"of {inputs['n']}"


def events(count: int, seed: int = 1) -> list[Given]:
    """Events that are up to three seconds late, with pauses now and then; and a last one that ends all windows."""
    random, now, found = Random(seed), 0.0, list[Given]()
    for n in range(count):
        now += random.choice([0.0, 0.5, 0.5, 1.0]) if random.random() < 0.95 else 12.0
        words = random.choices(WORDS, k=random.randint(0, 2))
        at = max(0.0, now - random.choice([0.0, 0.5, 2.0, 3.0]))
        first = f"{random.choice(WORDS)} {int(at // 60)}"
        found.append({"n": n, "k": f"k{random.randrange(5)}", "at": at, "words": words, "first": first, "end": False})
    return [*found, {"n": count, "k": "k0", "at": now + 1e6, "words": [], "first": "", "end": True}]


def expected(given: Sequence[Given]) -> Outputs:
    """What must come out, sorted."""
    given, found = [e for e in given if not e["end"]], defaultdict[str, list[Any]](list)
    for word, times in Counter(word for e in given for word in e["words"]).items():
        found["count"] += [[word, n + 1] for n in range(times)]
    by_key = defaultdict[str, list[Given]](list)
    for e in given:
        by_key[e["k"]].append(e)
    for key, mine in by_key.items():
        for start in sorted({e["at"] // SIZE * SIZE for e in mine}):
            numbers = sorted(e["n"] for e in mine if e["at"] // SIZE * SIZE == start)
            found["window"].append([key, start, [sum(numbers), *numbers]])
        session = list[Given]()
        for e in [*sorted(mine, key=lambda e: e["at"]), {"at": float("inf")}]:
            if session and e["at"] - session[-1]["at"] > GAP:
                found["session"].append([key, sorted([of["n"], label(of)] for of in session)])
                session = []
            session.append(e)
        left, right = ([e for e in mine if e["n"] % 2 == side] for side in (0, 1))
        found["join"] += [[a["n"], b["n"]] for a in left for b in right if abs(a["at"] - b["at"]) <= NEAR]
    found["dedupe"] = [e["n"] for n, e in enumerate(given) if e["first"] not in {of["first"] for of in given[:n]}]
    found["gather"] = [[e["n"], label(e), label(e)] for e in given]
    return {job: sorted(rows) for job, rows in found.items()}


def _row(job: str, data: Any) -> Any:
    """What of an output is compared."""
    if job == "window":
        return [data["key"], datetime.fromisoformat(data["start"]).timestamp(), data["value"]]
    return {"dedupe": lambda: data["n"], "gather": lambda: [data["n"], data["low"], data["high"]]}.get(job, lambda: data)()


# -- running them --------------------------------------------------------------------------------------------------------
class Run:
    """One application, and its engine processes."""

    def __init__(self, bus: NatsBus, url: str, app: str) -> None:
        self.bus, self._url, self.app, self.engines = bus, url, app, list[ForkServerProcess]()
        self.found = defaultdict[str, list[Any]](list)
        self._reads: Reader | None = None

    async def start(self) -> None:
        """Start an engine, and wait until it has claimed something."""
        claimed = PROCESSES.Event()
        self.engines.append(PROCESSES.Process(target=engine, args=(self._url, self.app, claimed), daemon=True))
        self.engines[-1].start()
        assert await asyncio.to_thread(claimed.wait, WITHIN), "no engine claimed anything"

    async def stop(self, number: signal.Signals) -> None:
        """End the engine that was started first."""
        await self._ended(self.engines.pop(0), number)

    async def _ended(self, gone: ForkServerProcess, number: signal.Signals) -> None:
        assert gone.pid is not None
        os.kill(gone.pid, number)
        await asyncio.to_thread(gone.join, WITHIN)
        assert gone.exitcode == (-number if number == signal.SIGKILL else 0)

    async def publish(self, given: Sequence[Given]) -> None:
        """Store events, in order."""
        for start in range(0, len(given), 500):
            await self.bus.commit(
                [
                    NewMessage(f"{self.app}.in", orjson.dumps(e), {subjects.MESSAGE_ID: f"{self.app}-{e['n']}"})
                    for e in given[start : start + 500]
                ]
            )

    async def until(self, count: int) -> None:
        """Read what is stored until there are so many outputs."""
        if self._reads is None:
            of = [f"{self.app}.out.>"]
            self._reads = await self.bus.reader(subjects.stream(self.app), of, after=0, name=f"{self.app}-golden")
        async with asyncio.timeout(WITHIN):
            while sum(map(len, self.found.values())) < count:
                for m in await self._reads.read(1000):
                    job = m.subject.rpartition(".")[2]
                    self.found[job].append(_row(job, json.loads(m.data)))

    async def drain(self) -> None:
        """End all engines, and read what else they have stored."""
        await asyncio.gather(*(self._ended(engine, signal.SIGTERM) for engine in self.engines))
        info = await self.bus.stream(subjects.stream(self.app))
        assert info is not None
        self.found.clear()
        for m in await self.bus.scan(info.name, [f"{self.app}.out.>"], start=1, stop=info.last):
            job = m.subject.rpartition(".")[2]
            self.found[job].append(_row(job, json.loads(m.data)))

    async def close(self) -> None:
        """Kill what still runs."""
        for engine in self.engines:
            engine.kill()
        if self._reads is not None:
            await self._reads.close()


async def run(url: str, app: str, given: Sequence[Given], way: Sequence[str]) -> Outputs:
    """All outputs of the jobs, sorted. `way`: of WAYS."""
    bus, wanted = await connect(url), sum(map(len, expected(given).values()))
    one, part = Run(bus, url, app), -(-len(given) // len(way))
    try:
        await one.start()  # it makes the streams
        async with _model(url, app):
            for number, actions in enumerate(way):
                for action in actions:
                    await (one.start() if action == "+" else one.stop(signal.SIGTERM if action == "-" else signal.SIGKILL))
                await one.publish(given[number * part : (number + 1) * part])
                await one.until(sum(map(len, one.found.values())) + 1)  # what is done next is done in the middle of them
            await one.until(wanted)
            await one.drain()
    finally:
        await one.close()
        await bus.close()
    return {job: sorted(rows) for job, rows in one.found.items()}


def _answer(field: str, inputs: Mapping[str, Any]) -> Mapping[str, str]:
    return {field: label(inputs)}


@asynccontextmanager
async def _model(url: str, app: str) -> AsyncIterator[None]:
    """A worker that takes a while for each call, and answers by rule."""
    workers = Workers(_OnServer(url), app, ["lightweight"])  # type: ignore[arg-type]  # of a driver's ground it needs no more
    for node, field in {"ask": "label", "low": "low", "high": "high"}.items():
        workers.answer(node, partial(_answer, field), after=0.05)
    ready = asyncio.create_task(workers.start())
    try:
        yield
    finally:
        await ready
        await workers.kill()


class _OnServer(SimpleNamespace):
    """Where the worker runs."""

    now = 0.0

    def __init__(self, url: str) -> None:
        super().__init__(url=url)

    async def connect(self) -> NatsBus:
        return await connect(self.url)

    def lost(self, deliveries: object) -> None:
        """They come again by themselves."""


def engine(url: str, app: str, claimed: Event) -> None:
    """A process of an engine, until SIGTERM."""
    _quiet()
    asyncio.run(_engine(url, app, claimed))


async def _engine(url: str, app: str, claimed: Event) -> None:
    def hear(name: str, facts: Mapping[str, object]) -> None:
        if name == "claimed":
            claimed.set()

    telemetry.subscribe(hear)
    settings, stopped = Settings.load(server__url=url, app=app, engine__heartbeat="300ms"), stop_on_signals()
    async with Engine(topology(app), settings=settings, pools="none") as running:
        await until_stopped(running, stopped)


def _quiet() -> None:
    warnings = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=warnings, logger_factory=structlog.PrintLoggerFactory(sys.stderr))


async def _long(count: int, kills: int) -> int:
    given, failed = events(count), 0
    ways = {**WAYS, "kills": ("", *["k+"] * kills)}
    with tempfile.TemporaryDirectory() as folder:
        async with LocalServer(Path(folder) / "jetstream", port=None) as server:
            for name, way in ways.items():
                began, found = datetime.now(UTC), await run(server.url, f"golden{len(way)}{len(name)}", given, way)
                wrong = [job for job, rows in expected(given).items() if found.get(job) != rows]
                failed += bool(wrong)
                seconds, sizes = (datetime.now(UTC) - began).seconds, {job: len(rows) for job, rows in found.items()}
                print(f"{name}: {'differs in ' + ', '.join(wrong) if wrong else 'identical'}, {seconds} s, {sizes}")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    _quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    sys.exit(asyncio.run(_long(options.events, options.kills)))
