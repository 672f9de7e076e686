"""Calls that require the worker of their key, whose workers are killed again and again.

Each call must end once: answered by the worker of its key, or told that this is gone. One call of a key is told of each death,
and none of them is run by a second process.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

from oracle import Report, Violation
from standin import StandIn

from dspex import Retry, Topology
from dspex.bus import subjects
from dspex.bus.port import NewMessage
from dspex.engine.client import letters
from processes.calls import ended
from processes.processes import kill_child
from processes.world import APP, World, insist, profile

ASKED, DONE = "required.asked", "required.done"
RAN = "ran.txt"  # in the folder of the world: a line for each time that a call was run, "<number> <process>"
LASTS = 0.05  # seconds of a call


async def ran(data: dict[str, Any]) -> dict[str, Any]:
    """Say which process it is, and leave a line of that."""
    descriptor = os.open(RAN, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{data['number']} {os.getpid()}\n".encode())
    os.close(descriptor)
    await asyncio.sleep(LASTS)
    return {"process": os.getpid()}


topology = Topology("required")
_keyed = topology.source(ASKED).key_by("key")
_patient = Retry(attempts=100, backoff="100ms", cap="1s")
_asked = _keyed.enrich(ran, name="ask", affinity="require", order="serial", retry=_patient, deadline="30m")
_asked.sink(DONE)


class RequiredWorld(World):
    """Runs the topology of this file."""

    def _write_settings(self) -> None:
        super()._write_settings()
        file = self.folder / "dspex.toml"
        file.write_text(file.read_text().replace("slots = 8,", 'slots = 8, programs = ["processes.calls.required:*"],'))

    def add_engine(self) -> None:
        command = [sys.executable, "-m", "dspex", "--json", "-v", "run", "processes.calls.required:topology", "--pools", "none"]
        self._add(f"engine-{len(self.processes)}", [*command, "--no-server"])


async def _publish(world: World, calls: int, keys: int) -> None:
    while await insist(lambda: world.bus.stream(subjects.sources(APP))) is None:
        await asyncio.sleep(0.2)
    for n in range(calls):
        event = json.dumps({"number": n, "key": f"k{n % keys}"}).encode()
        await insist(lambda e=event, n=n: world.bus.publish(NewMessage(ASKED, e, {subjects.MESSAGE_ID: f"call {n}"})))


async def _kill(world: World, kills: int, calls: int, random: Random, killed: list[float]) -> None:
    """Kill a process each time that so many calls were run: by the clock, a fast machine would be done before the last one."""
    while len(killed) < kills:
        while _ran(world) <= len(killed) * calls // (kills + 1):
            await asyncio.sleep(0.05)
        await kill_child(world, random)
        killed.append(time.monotonic())


def _ran(world: World) -> int:
    file = world.folder / RAN
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _wrong(calls: int, keys: int, answered: dict[int, int], told: dict[int, str], lines: list[str]) -> list[Violation]:
    """What is not as it was promised. `answered`: the process of each call; `told`: the error of each that has none."""
    found = list[Violation]()
    if answered.keys() & told.keys() or len(answered) + len(told) != calls:
        found.append(Violation("each call ends once", f"{len(answered)} answered and {len(told)} told, of {calls}"))
    if others := {error for error in told.values() if error != "AffinityLost"}:
        found.append(Violation("who has no answer is told that its worker is gone", str(others)))
    ran = defaultdict[int, set[str]](set)
    for number, process in (line.split() for line in lines):
        ran[int(number)].add(process)
    if twice := {number: processes for number, processes in ran.items() if len(processes) > 1}:
        found.append(Violation("no call is run by a second process", str(twice)))
    for key in range(keys):
        last, since = 0, 0  # the process that answered last, and who was told of its death since
        for number in range(key, calls, keys):
            if number in told:
                since += 1
            elif (process := answered.get(number, last)) != last:
                if last and not since:
                    found.append(Violation("a call of the key is told of the death", f"call {number} of key {key}"))
                last, since = process, 0
            elif since:
                found.append(Violation("nobody is told of a worker that lives", f"call {number} of key {key}"))
    return found


async def _run(world: World, calls: int, keys: int, kills: int, seed: int, patience: float) -> Report:
    killed, began, stream = list[float](), time.monotonic(), subjects.stream(APP)
    await _publish(world, calls, keys)
    killing = asyncio.create_task(_kill(world, kills, calls, Random(seed), killed))
    late = await ended(world, calls, DONE, patience)
    killing.cancel()
    last = (await insist(lambda: world.bus.stream(stream))).last  # type: ignore[union-attr]
    done = [json.loads(m.data) for m in await insist(lambda: world.bus.scan(stream, [DONE], start=1, stop=last))]
    answered = {event["number"]: event["process"] for event in done}
    told = {dead.event.data["number"]: dead.reason async for dead in letters.listing(world.bus, APP)}
    lines = (world.folder / RAN).read_text().splitlines()
    numbers = {
        "events": calls, "seconds": round(time.monotonic() - began, 1), "kills": len(killed), "answered": len(answered),
        "told": len(told), "run": len(lines), "processes": len({line.split()[1] for line in lines}), "seed": seed,
    }  # fmt: skip
    wrong = _wrong(calls, keys, answered, told, lines)
    if len(done) != len(answered):
        wrong.append(Violation("each call ends once", f"{len(done)} outputs for {len(answered)} calls"))
    if len(killed) < kills or not told:
        wrong.append(Violation("the kills happened, and were told", str(numbers)))
    return Report(numbers, late + wrong + [Violation("processes live and drain", p) for p in world.problems])


async def judged(calls: int = 3000, keys: int = 40, kills: int = 12, seed: int = 29, patience: float = 600.0) -> Report:
    """A run with so many calls of so many keys, and so many kills, one after the other while the calls are run."""
    with tempfile.TemporaryDirectory(prefix="dspex-chaos-") as folder:
        async with StandIn() as model:
            lm = profile(model="openai/stand-in", base_url=model.url, key_env="OPENAI_API_KEY")
            async with RequiredWorld(Path(folder), lm, engines=1, size=3) as world:
                return await _run(world, calls, keys, kills, seed, patience)
