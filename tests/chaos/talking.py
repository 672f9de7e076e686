"""A session on real processes that really die: its worker, its engine and its server, in the middle of turns.

    python tests/chaos/talking.py --turns 50 --kills 4

One client asks a question after another, each under an id of its own, and asks again where it does not learn what came of it;
two of four are submitted together, and waited for. In the end each question must be one turn, in the order in which they were
asked, with the answer that the client was given.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random

import structlog
from oracle import Report, Violation
from processes.calls.submitting import SubmittingWorld
from processes.world import APP, World, insist, profile
from standin import StandIn

from dspex.bus import nats
from dspex.bus.errors import BusError, CallTimeout, Saturated, SessionConflict, WorkerLost
from dspex.engine.client.calls.session import Session
from dspex.engine.client.client import Client
from dspex.engine.client.run import Run

QUESTION = "history, text -> reply"
SUBMITTED = 2  # questions that are submitted together
LATENCY = 0.3  # seconds of the model
AGAIN = (BusError, CallTimeout, Saturated, SessionConflict, WorkerLost)  # it is not known what came of the call


async def talk(turns: int, kills: int, seed: int) -> Report:
    """One run. `kills`: of each of worker, engine and server."""
    random, done = Random(seed), Counter[str]()
    marked = random.sample(range(turns), 3 * kills)
    victims = dict(zip(marked, ["worker", "engine", "server"] * kills))
    with tempfile.TemporaryDirectory() as folder:
        async with StandIn(latency=LATENCY) as model:
            lm = profile(model="openai/stand-in", base_url=model.url)
            async with SubmittingWorld(Path(folder), lm, engines=1) as world:
                bus = await nats.connect(world.url)
                client = Client(bus=bus, app=APP)
                session = client.session("talk")
                told: list[str] = []
                while (n := len(told)) < turns:
                    some = range(n, min(n + SUBMITTED, turns)) if n % 4 == 2 else (n,)
                    submitted = [await _submitted(client, m) for m in some] if n % 4 == 2 else [None]
                    for m, run in zip(some, submitted):
                        told.append(await _ask(run or session, world, m, victims.get(m), random, done))
                kept = [(turn.inputs["text"], turn.outputs["reply"]) async for turn in session.history(limit=turns)]
                info = await session.info()
                await bus.close()
    numbers = {"events": turns, "faults": dict(done), "model requests": model.requests, "seed": seed}
    count = info.turns if info is not None else 0
    found = list(_wrong(turns, told, kept, count, model.requests, len(victims), world.problems))
    return Report(numbers, found, f"python tests/chaos/talking.py --turns {turns} --kills {kills} --seed {seed}")


async def _submitted(client: Client, n: int) -> Run:
    return await insist(lambda: client.submit(QUESTION, {"text": f"question {n}"}, id=f"q{n}", session="talk"))


async def _ask(what: Session | Run, world: World, n: int, victim: str | None, random: Random, done: Counter[str]) -> str:
    """Ask a question until its answer is there, or wait for that, and have something die meanwhile."""
    killing = asyncio.create_task(_kill(world, victim, random.uniform(0.0, 2 * LATENCY), random)) if victim else None
    while True:
        try:
            if isinstance(what, Run):
                found = await what.result(60.0)
            else:
                found = await what.call(QUESTION, {"text": f"question {n}"}, id=f"q{n}", timeout=5.0)
            break
        except AGAIN as error:
            done[f"asked again: {type(error).__name__}"] += 1
            await asyncio.sleep(0.2)
    if killing is not None and victim is not None:
        await killing
        done[victim] += 1
    return str(found.data["reply"])


async def _kill(world: World, victim: str, after: float, random: Random) -> None:
    await asyncio.sleep(after)
    if victim == "server":
        await world.restart_server()
        return
    for process in world.of("engine" if victim == "engine" else "pool"):
        children = process.children() if victim == "worker" else []
        os.kill(random.choice([process.pid, *children]), signal.SIGKILL)


def _wrong(
    turns: int, told: list[str], kept: list[tuple[str, str]], count: int, asked: int, kills: int, problems: Iterable[str]
) -> Iterable[Violation]:
    wanted = [(f"question {n}", told[n]) for n in range(turns)]
    if kept != wanted or count != turns:
        yield Violation("each question is one turn, in order, with the answer that was given", f"{count}: {kept} != {wanted}")
    if asked > turns + kills:
        yield Violation("the model is asked once more for each death at most", f"{asked} for {turns} turns and {kills} deaths")
    yield from (Violation("nobody fails", problem) for problem in problems)


def main() -> int:
    """The command; 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--kills", type=int, default=4, help="of each of worker, engine and server")
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    report = asyncio.run(talk(o.turns, o.kills, o.seed))
    sys.stdout.write(f"{report}\n")
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
