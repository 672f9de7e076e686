"""Calls that wait for batches, whose workers are killed again and again while the provider refuses and loses requests.

Each call must end once, and no message may be answered twice by the provider: a batch that was made is found again.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from broken.batches import BatchServer
from oracle import Report, Violation

from dspex import Topology
from dspex.bus import subjects
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRecord
from dspex.bus.serving import payloads
from processes.calls import ended
from processes.processes import kill_child, kill_pool
from processes.world import APP, POOL, World, insist, profile

ASKED, DONE = "batched.asked", "batched.done"
SUPPORT = Path(__file__).parents[3] / "support"
HELD = 6  # kills that a batch has to outlive
STEPS = ("upload", "create", "get", "list", "content")

topology = Topology("batched")
topology.source(ASKED).predict("text -> urgency: int", name="ask", lane="batch", deadline="2h").sink(DONE)


class BatchedWorld(World):
    """Runs the topology of this file."""

    def _write_settings(self) -> None:
        super()._write_settings()
        file = self.folder / "dspex.toml"
        file.write_text(file.read_text().replace("path = [", f"path = [{json.dumps(str(SUPPORT))}, "))

    def add_engine(self) -> None:
        command = [sys.executable, "-m", "dspex", "--json", "-v", "run", "processes.calls.batched:topology", "--pools", "none"]
        self._add(f"engine-{len(self.processes)}", [*command, "--no-server"])


async def _publish(world: World, calls: int) -> None:
    while await insist(lambda: world.bus.stream(subjects.sources(APP))) is None:
        await asyncio.sleep(0.2)
    for n in range(calls):
        draft = NewMessage(ASKED, json.dumps({"text": f"call {n}"}).encode(), {subjects.MESSAGE_ID: f"call {n}"})
        await insist(lambda d=draft: world.bus.publish(d))


async def _journals(world: World) -> int:
    """What is left of journals a minute after the last call has ended: engines remove them when they have time."""
    left, end = 1, time.monotonic() + 60.0
    while left and time.monotonic() < end:
        await asyncio.sleep(0.5)
        left = (await insist(lambda: world.bus.stream(subjects.requests(APP)))).messages  # type: ignore[union-attr]
    return left


async def _kill(world: World, provider: BatchServer, every: float, random: Random, kills: list[str]) -> None:
    """SIGKILL a child, and each third time a pool with its children, while batches are made and while they run."""
    while True:
        await asyncio.sleep(every)
        for what in STEPS:
            provider.refusing[what].extend(random.choices(["503", "429", "lost"], k=2))
        if world.of("pool"):
            kills.append("killed")
            await (kill_pool if len(kills) % 3 == 0 else kill_child)(world, random)
        provider.held = len(kills) < HELD


async def _run(world: World, provider: BatchServer, calls: int, every: float, seed: int, patience: float) -> Report:
    kills, began = list[str](), time.monotonic()
    killing = asyncio.create_task(_kill(world, provider, every, Random(seed), kills))
    await _publish(world, calls)
    stream = subjects.stream(APP)

    def enough() -> None:
        if len(kills) >= 3 * HELD:
            killing.cancel()

    late = await ended(world, calls, DONE, patience, enough)
    killing.cancel()
    took = time.monotonic() - began
    await asyncio.sleep(3.0)  # what comes twice comes now
    last = (await insist(lambda: world.bus.stream(stream))).last  # type: ignore[union-attr]
    done = await insist(lambda: world.bus.scan(stream, [DONE], start=1, stop=last))
    stored = await insist(lambda: world.bus.scan(stream, [subjects.record(APP, POOL, "batched", "*", "*")], start=1, stop=last))
    records = [CallRecord.unpack((await payloads.required(world.bus, APP, message)).data) for message in stored]
    left = await _journals(world)
    answered = Counter(r.call for r in records if r.outputs is not None)
    outputs = Counter(json.loads(m.data)["text"] for m in done)
    lines = Counter(line for id in provider.batches for line in provider.lines(id))
    numbers = {
        "events": calls, "seconds": round(took, 1), "kills": len(kills), "batches": len(provider.batches),
        "asked": dict(provider.asked), "asked live": provider.requests, "lines twice": sum(n > 1 for n in lines.values()),
        "errors": dict(Counter(str((r.error or {}).get("type")) for r in records if r.outputs is None)),
        "routes": dict(Counter(r.route for r in records)), "journals left": left,
    }  # fmt: skip
    checks = {
        "each call ends once": outputs == Counter(f"call {n}" for n in range(calls)),
        "each call has one record with outputs": len(answered) == calls and set(answered.values()) == {1},
        "no message is answered twice": set(provider.texts.values()) == {1},
        "nothing is asked live": provider.requests == 0,
        "journals go with their calls": left == 0,
        "the kills happened": len(kills) >= HELD,
    }
    wrong = [Violation(promise, str(numbers)) for promise, kept in checks.items() if not kept]
    return Report(numbers, late + wrong + [Violation("processes live and drain", p) for p in world.problems])


async def judged(calls: int = 1000, every: float = 2.0, seed: int = 26, patience: float = 600.0) -> Report:
    """A run with so many calls, and a kill every so many seconds."""
    with tempfile.TemporaryDirectory(prefix="dspex-chaos-") as folder:
        async with BatchServer(held=True) as provider:
            rule = "{ gather = 1, calls = 200, poll = 0.5 }"
            lm = profile(model="openai/stand-in", base_url=provider.url, key_env="OPENAI_API_KEY")[:-2] + f", batch = {rule} }}"
            async with BatchedWorld(Path(folder), lm, engines=1, size=2) as world:
                return await _run(world, provider, calls, every, seed, patience)
