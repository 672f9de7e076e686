"""Agents, and programs with sixteen requests side by side, whose workers are killed again and again.

Each call must end once, and the model's server must be asked again only for what was open at the kills. It is counted there.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from oracle import Report, Violation
from standin import StandIn

from dspex import Retry, Topology
from dspex.bus import subjects
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRecord
from dspex.bus.serving import payloads
from processes.calls import ended
from processes.processes import kill_child, kill_pool
from processes.world import APP, POOL, World, insist, profile

STEPS, WIDE = 7, 16  # an agent asks once for each step, and once for what it has found: eight requests
ASKED, DONE = "agents.asked", "agents.done"
PROGRAMS = Path(__file__).parents[3] / "support" / "programs"
JUST_NOW = 0.1  # seconds in which an answer may be on its way into the journal

topology = Topology("agents")
_patient = Retry(attempts=100, backoff="100ms", cap="1s")
_wide, _agents = topology.source(ASKED).branch("wide")
_wide = _wide.program("journaled:Wide", "text -> reply", name="wide", retry=_patient, deadline="30m")
_agents = _agents.react(
    "text -> reply", tools=["journaled:step"], max_iters=STEPS, name="agent", retry=_patient, deadline="30m"
)
_wide.merge(_agents).sink(DONE)


@dataclass
class Asked(StandIn):
    """A stand-in that knows what it has just answered."""

    ended: deque[float] = field(default_factory=lambda: deque[float](maxlen=1000))

    async def respond(self, method: str, path: str, body: bytes) -> tuple[int, bytes, dict[str, str]] | None:
        try:
            return await super().respond(method, path, body)
        finally:
            self.ended.append(time.monotonic())

    @property
    def open(self) -> int:
        """Requests that run, or whose answer may not be stored yet."""
        return self.running + sum(at > time.monotonic() - JUST_NOW for at in self.ended)


class AgentWorld(World):
    """Runs the topology of this file."""

    def _write_settings(self) -> None:
        super()._write_settings()
        file = self.folder / "dspex.toml"
        text = file.read_text().replace("slots = 8,", 'slots = 8, programs = ["journaled:*"],')
        file.write_text(text.replace("path = [", f"path = [{json.dumps(str(PROGRAMS))}, "))

    def add_engine(self) -> None:
        command = [sys.executable, "-m", "dspex", "--json", "-v", "run", "processes.calls.agents:topology", "--pools", "none"]
        self._add(f"engine-{len(self.processes)}", [*command, "--no-server"])


async def _publish(world: World, calls: int) -> list[dict[str, Any]]:
    """Every tenth call is a wide one."""
    events = [{"text": f"call {n}", "wide": n % 10 == 0} for n in range(calls)]
    while await insist(lambda: world.bus.stream(subjects.sources(APP))) is None:
        await asyncio.sleep(0.2)
    for event in events:
        draft = NewMessage(ASKED, json.dumps(event).encode(), {subjects.MESSAGE_ID: event["text"]})
        await insist(lambda d=draft: world.bus.publish(d))
    return events


async def _kill(world: World, model: Asked, every: float, random: Random, opened: list[int]) -> None:
    """SIGKILL a child, and each fifth time a pool with its children; notes what was open."""
    while True:
        await asyncio.sleep(every)
        if world.of("pool") and model.running:
            opened.append(model.open)
            await (kill_pool if len(opened) % 5 == 0 else kill_child)(world, random)


async def _run(world: World, model: Asked, calls: int, every: float, seed: int, patience: float) -> Report:
    opened = list[int]()
    events, began = await _publish(world, calls), time.monotonic()
    killing = asyncio.create_task(_kill(world, model, every, Random(seed), opened))
    stream = subjects.stream(APP)
    late = await ended(world, calls, DONE, patience)
    killing.cancel()
    took = time.monotonic() - began
    await asyncio.sleep(3.0)  # what comes twice comes now
    last = (await insist(lambda: world.bus.stream(stream))).last  # type: ignore[union-attr]
    done = await insist(lambda: world.bus.scan(stream, [DONE], start=1, stop=last))
    dead = await insist(lambda: world.bus.count(stream, [subjects.dead_pattern(APP)]))
    stored = await insist(lambda: world.bus.scan(stream, [subjects.record(APP, POOL, "agents", "*", "*")], start=1, stop=last))
    whole = [await payloads.required(world.bus, APP, message) for message in stored]
    records = [CallRecord.unpack(message.data) for message in whole]
    left = (await insist(lambda: world.bus.stream(subjects.requests(APP)))).messages  # type: ignore[union-attr]
    wide = sum(event["wide"] for event in events)
    wanted = (calls - wide) * (STEPS + 1) + wide * WIDE
    outputs = Counter(json.loads(m.data)["text"] for m in done)
    answered = Counter(r.call for r in records if r.outputs is not None)
    lost = Counter((r.error or {}).get("type") for r in records if r.outputs is None)
    numbers = {
        "events": calls, "seconds": round(took, 1), "kills": len(opened), "requests": model.requests, "wanted": wanted,
        "asked again": model.requests - wanted, "open at the kills": sum(opened), "attempts that ended in an error": dict(lost),
        "from the journal": sum(r.requests.get("journal", 0) for r in records),
        "missed": sum(r.requests.get("missed", 0) for r in records), "journals left": left,
    }  # fmt: skip
    checks = {
        "each call ends once": outputs == Counter(event["text"] for event in events) and not dead,
        "each call has one record with outputs": len(answered) == calls and set(answered.values()) == {1},
        "only what was open is asked again": model.requests - wanted <= sum(opened),
        "no request is missed": numbers["missed"] == 0,
        "journals go with their calls": left == 0,
        "the kills happened": bool(opened),
    }
    wrong = [Violation(promise, str(numbers)) for promise, kept in checks.items() if not kept]
    return Report(numbers, late + wrong + [Violation("processes live and drain", p) for p in world.problems])


async def judged(calls: int = 1000, every: float = 1.0, seed: int = 26, patience: float = 1200.0) -> Report:
    """A run with so many calls, and a kill every so many seconds."""
    with tempfile.TemporaryDirectory(prefix="dspex-chaos-") as folder:
        async with Asked(latency=0.02) as model:
            model.answers = {"next_tool_name": "step", "next_tool_args": {"text": "on"}}
            lm = profile(model="openai/stand-in", base_url=model.url, key_env="OPENAI_API_KEY")
            async with AgentWorld(Path(folder), lm, engines=1, size=2) as world:
                return await _run(world, model, calls, every, seed, patience)
