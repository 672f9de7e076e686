"""Four pools of one slot that share a limit of tokens a minute, and are killed again and again.

The model's server counts what it was really asked for, minute by minute: no more than the limit and the calls in flight.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from oracle import Report, Violation
from standin import StandIn

from dspex import Topology
from dspex.bus import subjects
from dspex.bus.port import NewMessage
from processes.processes import kill_worker
from processes.world import APP, World, insist

ASKED, DONE = "spending.asked", "spending.done"
LIMIT, POOLS, MINUTE = 10_000, 4, 60.0

topology = Topology("spending")
topology.source(ASKED).predict("text -> reply", name="answer", deadline="1h", tenant="tenant").sink(DONE)


@dataclass
class Counting(StandIn):
    """A stand-in that counts tokens by the minute in which it was asked."""

    spent: Counter[int] = field(default_factory=Counter[int])
    largest: int = 0

    async def respond(self, method: str, path: str, body: bytes) -> tuple[int, bytes, dict[str, str]] | None:
        minute = int(time.time() // MINUTE)
        answer = await super().respond(method, path, body)
        if answer is not None and answer[0] == 200 and method == "POST":
            tokens = json.loads(answer[1])["usage"]["total_tokens"]
            self.spent[minute] += tokens
            self.largest = max(self.largest, tokens)
        return answer


class SpendingWorld(World):
    """Runs the topology of this file, in pools of one process with one slot."""

    def _write_settings(self) -> None:
        super()._write_settings()
        file = self.folder / "dspex.toml"
        file.write_text(file.read_text().replace("slots = 8,", "slots = 1,"))

    def add_engine(self) -> None:
        command = [sys.executable, "-m", "dspex", "--json", "-v", "run", "processes.calls.spending:topology", "--pools", "none"]
        self._add(f"engine-{len(self.processes)}", [*command, "--no-server"])


async def _publish(world: World, random: Random, calls: int) -> None:
    while await insist(lambda: world.bus.stream(subjects.sources(APP))) is None:
        await asyncio.sleep(0.2)
    for n in range(calls):
        event = {"text": f"{n} {'word ' * random.randint(50, 400)}", "tenant": random.choice("abc")}
        draft = NewMessage(ASKED, json.dumps(event).encode(), {subjects.MESSAGE_ID: f"{n}"})
        await insist(lambda d=draft: world.bus.publish(d))


async def _run(world: World, model: Counting, minutes: int, every: float, seed: int) -> Report:
    random, kills = Random(seed), 0
    await _publish(world, random, calls=minutes * LIMIT // 100)  # more than can be answered
    end = (time.time() // MINUTE + minutes + 1) * MINUTE
    while time.time() < end:
        await asyncio.sleep(every)
        if world.of("pool"):
            await kill_worker(world, random)
            kills += 1
    done = await insist(lambda: world.bus.count(subjects.stream(APP), [DONE]))
    dead = await insist(lambda: world.bus.count(subjects.stream(APP), [subjects.dead_pattern(APP)]))
    spent = [model.spent[minute] for minute in sorted(model.spent)]
    whole = spent[1:-1]  # the first one began late, the last one has hardly begun
    most = LIMIT + POOLS * model.largest
    numbers = {
        "events": done, "kills": kills, "minutes": len(whole), "tokens by minute": spent, "limit": LIMIT,
        "largest call": model.largest, "requests": model.requests, "dead letters": dead, "paid twice": model.requests - done,
    }  # fmt: skip
    checks = {
        "a limit is overshot by at most the calls in flight": max(spent, default=0) <= most,
        "what may be used is used": not whole or min(whole) >= LIMIT // 2,
        "a limit fails no call": dead == 0,
        "the kills happened": kills > 0,
    }
    wrong = [Violation(promise, str(numbers)) for promise, kept in checks.items() if not kept]
    return Report(numbers, wrong + [Violation("processes live and drain", p) for p in world.problems])


async def judged(minutes: int = 4, every: float = 3.0, seed: int = 27) -> Report:
    """A run of so many whole minutes, and a kill every so many seconds."""
    with tempfile.TemporaryDirectory(prefix="dspex-chaos-") as folder:
        async with Counting(latency=0.3) as model:
            lm = (
                f'{{ model = "openai/stand-in", base_url = "{model.url}", key_env = "OPENAI_API_KEY", '
                f'params = {{ max_tokens = 300 }}, limits = {{ tokens = "{LIMIT}/min" }} }}'
            )
            async with SpendingWorld(Path(folder), lm, engines=1, pools=POOLS, size=1) as world:
                return await _run(world, model, minutes, every, seed)
