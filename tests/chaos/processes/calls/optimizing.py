"""Jobs of optimizers whose workers are killed again and again.

Each job must end once, with the same scores as one that nobody disturbed, and the model's server must be asked again only for
what was open at the kills: what it had answered is taken from the journals. It is counted there.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from oracle import Report, Violation

from dspex import Retry
from dspex.bus import nats
from dspex.bus.errors import DspexError
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.client.client import Client
from dspex.engine.graph.nodes import Call
from dspex.operators.recorded.optimize import Optimization, optimize
from processes.calls.agents import Asked
from processes.calls.submitting import SubmittingWorld
from processes.processes import kill_child, kill_pool
from processes.world import APP, POOL, World, insist, profile

INTENTS = ("card", "loan", "rate")
TEXT = "text -> intent: Literal['card', 'loan', 'rate', 'other']"
LATENCY = 0.05  # seconds of the model
THREADS = 4  # of each job


class OptimizingWorld(SubmittingWorld):
    """Takes jobs."""

    def _write_settings(self) -> None:
        super()._write_settings()
        file = self.folder / "dspex.toml"
        file.write_text(file.read_text().replace("slots = 8,", 'slots = 8, programs = ["dspy:BootstrapFewShot"],'))


class Learning(Asked):
    """A model that answers rightly where its prompt shows it examples: of "card 7" the intent is `card`."""

    async def _complete(self, request: dict[str, Any]) -> Any:
        messages = request["messages"]
        last = str(messages[-1]["content"])
        text = last.partition("[[ ## text ## ]]\n")[2].partition("\n")[0]
        known = text.partition(" ")[0] if len(messages) > 2 else "other"
        self.replies[text] = f"[[ ## intent ## ]]\n{known}\n\n[[ ## completed ## ]]"
        return await super()._complete(request)


@dataclass(frozen=True)
class Patient(Optimization):
    """A job that is tried again as often as it dies."""

    def to_call(self) -> Call[dict[str, Any]]:
        """The call that a job is."""
        return replace(super().to_call(), retry=Retry(attempts=1000, backoff="100ms", cap="1s"))


def _rows(count: int, of: str) -> list[dict[str, Any]]:
    return [{"text": f"{INTENTS[n % 3]} {of}{n}", "intent": INTENTS[n % 3]} for n in range(count)]


async def _kill(world: World, model: Asked, kills: int, every: float, random: Random, opened: list[int]) -> None:
    """SIGKILL a child, and each third time a pool with its children, while they ask; notes what was open."""
    while len(opened) < kills:
        await asyncio.sleep(every)
        while not (world.of("pool") and model.running):
            await asyncio.sleep(0.01)
        opened.append(model.open)
        await (kill_pool if len(opened) % 3 == 0 else kill_child)(world, random)


async def _run(world: World, model: Asked, jobs: int, rows: int, kills: int, every: float, seed: int) -> Report:
    opened, began = list[int](), time.monotonic()
    bus = await nats.connect(world.url)
    client = Client(bus=bus, app=APP)
    plain = optimize(CallSpec("predict", TEXT, TEXT), metric="exact_match", threads=THREADS, pool=POOL)
    job = Patient(**vars(plain))

    async def one(n: int) -> dict[str, Any]:
        data = {"train": _rows(rows, f"train{n}x"), "test": _rows(rows, f"test{n}x")}
        run = await insist(lambda: client.submit(job, data, id=f"job {n}"))
        return (await run.result(900.0)).data

    killing = asyncio.create_task(_kill(world, model, kills, every, Random(seed), opened))
    try:
        found = await asyncio.gather(*map(one, range(jobs)))
    except DspexError as error:
        return Report({"events": jobs, "kills": len(opened)}, [Violation("each job ends with its result", repr(error))])
    finally:
        killing.cancel()
        await bus.close()
    took, wanted = time.monotonic() - began, sum(one["requests"] for one in found)
    numbers = {
        "events": jobs, "seconds": round(took, 1), "kills": len(opened), "requests": model.requests, "wanted": wanted,
        "asked again": model.requests - wanted, "open at the kills": sum(opened), "seed": seed,
    }  # fmt: skip
    checks = {
        "each job makes its program better": all((one["before"], one["after"]) == (0.0, 100.0) for one in found),
        "no request is missing": model.requests >= wanted,
        "only what was open is asked again": model.requests - wanted <= sum(opened),
        "the kills happened": len(opened) == kills,
    }
    wrong = [Violation(promise, str(numbers)) for promise, kept in checks.items() if not kept]
    return Report(numbers, wrong + [Violation("processes live and drain", p) for p in world.problems])


async def judged(jobs: int = 4, rows: int = 120, kills: int = 8, every: float = 2.0, seed: int = 28) -> Report:
    """A run with so many jobs of twice so many rows, and a kill every so many seconds."""
    with tempfile.TemporaryDirectory(prefix="dspex-chaos-") as folder:
        async with Learning(latency=LATENCY) as model:
            lm = profile(model="openai/stand-in", base_url=model.url, key_env="OPENAI_API_KEY")
            async with OptimizingWorld(Path(folder), lm, engines=1, size=2) as world:
                return await _run(world, model, jobs, rows, kills, every, seed)
