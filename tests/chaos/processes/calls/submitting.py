"""Submitted and streamed calls on real processes that really die: worker, engine, server, and the clients that read a stream.

Calls are submitted one after the other, each under an id of its own, and submitted again where nobody knows whether they were
stored; who waits for them is told, and another client fetches all results at the end. Meanwhile other clients, processes of
their own, read streamed calls, and are killed in the middle of them. Each submitted call must have one record and one result,
whoever asks for it, and in the end no slot of the pool may be taken.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from random import Random

from oracle import Report, Violation
from standin import StandIn

from dspex.bus import nats, subjects
from dspex.bus.errors import DspexError
from dspex.bus.records import CallRecord
from dspex.engine.client.client import Client
from dspex.engine.client.run import Run
from processes.world import APP, POOL, World, insist, profile

ASKED = "text -> reply"
LATENCY = 0.3  # seconds of the model
AT_ONCE = 8  # calls that are submitted and wait
PATIENCE = 300.0


class SubmittingWorld(World):
    """Takes submitted calls."""

    def _write_settings(self) -> None:
        super()._write_settings()
        with (self.folder / "dspex.toml").open("a") as file:
            file.write("engine.submit = true\n")


async def judged(calls: int = 400, kills: int = 6, seed: int = 27) -> Report:
    """One run. `kills`: of each of worker, engine, server and a client that reads a stream."""
    random, done = Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        async with StandIn(latency=LATENCY) as model:
            lm = profile(model="openai/stand-in", base_url=model.url)
            async with SubmittingWorld(Path(folder), lm, engines=1) as world:
                found = await _run(world, calls, kills, random, done)
        found = [*found, *(Violation("nobody fails", problem) for problem in world.problems)]
        asked = sum(n for text, n in model.texts.items() if text.startswith("call "))
    if asked > calls + AT_ONCE * kills * 3:  # by a worker, and by whoever takes its work where engine or server died
        found.append(Violation("the model is asked again for what was open at the deaths at most", f"{asked} for {calls}"))
    wanted = Counter(dict.fromkeys(("worker", "engine", "server", "client"), kills))
    if not found and done != wanted:
        found.append(Violation("every fault happens", f"{dict(done)}, not {dict(wanted)}"))
    numbers = {"events": calls, "faults": dict(done), "model requests": model.requests, "seed": seed}
    return Report(numbers, found)


async def _run(world: World, calls: int, kills: int, random: Random, done: Counter[str]) -> list[Violation]:
    bus, other = await nats.connect(world.url), await nats.connect(world.url)
    client, room = Client(bus=bus, app=APP), asyncio.Semaphore(AT_ONCE)
    told, ids, ended = dict[int, str](), dict[int, str](), asyncio.Event()

    async def one(n: int) -> None:
        async with room:
            run = await _stored(client, n)
            ids[n], result = run.id, await run.result(PATIENCE)
            told[n] = str(result.data["reply"])

    killing = asyncio.create_task(_kill(world, kills, random, done, told, calls, ended))
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*map(one, range(calls)))
            ended.set()
            await killing
            later = Client(bus=other, app=APP)
            again = {n: str((await later.run(id).result(PATIENCE)).data["reply"]) for n, id in ids.items()}
            records = await insist(lambda: _records(world))
            busy = await _busy(later)
    except (TimeoutError, DspexError) as error:
        return [Violation("each call has a result", f"{len(told)} of {calls} have one: {error!r}")]
    finally:
        killing.cancel()
        await bus.close()
        await other.close()
    return list(_wrong(calls, told, again, records, busy))


async def _stored(client: Client, n: int) -> Run:
    """Submit a call until that is known to be done."""
    return await insist(lambda: client.submit(ASKED, {"text": f"call {n}"}, id=f"c{n}"))


async def _records(world: World) -> Counter[str]:
    """How many records with outputs each submitted call has."""
    stream = subjects.stream(APP)
    info = await world.bus.stream(stream)
    pattern = subjects.record(APP, POOL, subjects.SUBMITTED, "*", "*")
    found = await world.bus.scan(stream, [pattern], start=1, stop=info.last if info is not None else 0)
    records = [CallRecord.unpack(message.data) for message in found]
    return Counter(record.call for record in records if record.outputs is not None)


async def _busy(client: Client) -> int:
    """Slots that are taken once nobody asks for anything any more."""
    busy = 1
    for _ in range(100):
        pools = (await insist(lambda: client.status([POOL])))["pools"]
        if not (busy := sum(row["busy"] for row in pools)):
            break
        await asyncio.sleep(0.1)
    return busy


async def _kill(
    world: World, kills: int, random: Random, done: Counter[str], told: dict[int, str], calls: int, ended: asyncio.Event
) -> None:
    """One after the other, spread over the calls."""
    plan = ["worker", "engine", "server", "client"] * kills
    random.shuffle(plan)
    for index, victim in enumerate(plan):
        while len(told) < calls * index // len(plan) and not ended.is_set():
            await asyncio.sleep(0.01)
        await asyncio.sleep(random.uniform(0.0, LATENCY))
        await (_kill_client(world, index) if victim == "client" else _kill_one(world, victim, random))
        done[victim] += 1


async def _kill_one(world: World, victim: str, random: Random) -> None:
    if victim == "server":
        await world.restart_server()
        return
    while not (processes := world.of("engine" if victim == "engine" else "pool")):
        await asyncio.sleep(0.05)
    process = random.choice(processes)
    children = process.children() if victim == "worker" else []
    with suppress(ProcessLookupError):  # it had just ended by itself
        os.kill(random.choice([process.pid, *children]), signal.SIGKILL)


async def _kill_client(world: World, index: int) -> None:
    """Have a process read a streamed call, and SIGKILL it when it has read something."""
    text = f"text=stream {index} standin:trickle=0.2"
    command = [sys.executable, "-m", "dspex", "--json", "call", ASKED, text, "--stream"]
    while True:
        pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.DEVNULL}
        process = await asyncio.create_subprocess_exec(*command, cwd=world.folder, **pipes)
        assert process.stdout is not None
        heard = await process.stdout.readline()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if heard:  # else nobody took the call, as where its worker is just dead
            return


def _wrong(calls: int, told: dict[int, str], again: dict[int, str], records: Counter[str], busy: int) -> Iterable[Violation]:
    wanted = {n: f"reply of call {n}" for n in range(calls)}
    for who, found in (("who waits", told), ("who comes later", again)):
        if found != wanted:
            wrong = {n: found.get(n) for n in wanted if found.get(n) != wanted[n]}
            yield Violation(f"each call has its result for {who}", str(wrong))
    if len(records) != calls or set(records.values()) != {1}:
        twice = {call: n for call, n in records.items() if n > 1}
        yield Violation("each call has one record with outputs", f"{len(records)} of {calls} have records; more: {twice}")
    if busy:
        yield Violation("the calls of clients that died end", f"{busy} slots are taken")
