"""What goes wrong with engines and workers."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from random import Random

from dspex.bus import subjects
from dspex.bus.errors import Saturated
from dspex.engine.client.status import scaling
from dspex.engine.log.entries import LogAddress
from dspex.engine.log.latest import latest
from processes.process import Process, last_words
from processes.world import APP, POOL, World

HOUR = 3600


async def _one(world: World, random: Random, kind: str) -> Process:
    """One process of a kind that lives."""
    while not (those := world.of(kind)):
        await asyncio.sleep(0.05)
    return random.choice(those)


async def kill_engine(world: World, random: Random) -> None:
    """SIGKILL an engine."""
    (await _one(world, random, "engine")).signal(signal.SIGKILL)


async def kill_between_parts(world: World, random: Random) -> None:
    """SIGKILL every engine right when the first of an event's 2,500 outputs are heard: most of them have not been written."""
    world.bursting.clear()
    while not world.bursting.is_set():
        if world.over:
            return
        await asyncio.sleep(0.001)
    await asyncio.sleep(random.uniform(0, 0.03))
    for engine in world.of("engine"):
        engine.signal(signal.SIGKILL)


async def kill_pool(world: World, random: Random) -> None:
    """SIGKILL the parent of a pool; the kernel takes its children."""
    (await _one(world, random, "pool")).signal(signal.SIGKILL)


async def kill_child(world: World, random: Random) -> None:
    """SIGKILL one worker of a pool, or what starts them and takes them all with it."""
    while not (children := (await _one(world, random, "pool")).children()):
        await asyncio.sleep(0.05)
    with suppress(ProcessLookupError):  # it had just ended by itself
        os.kill(random.choice(children), signal.SIGKILL)


async def kill_worker(world: World, random: Random) -> None:
    """SIGKILL a pool's parent or one of its children."""
    await random.choice([kill_pool, kill_child])(world, random)


async def scale_pool(world: World, random: Random) -> None:
    """Have one to six workers, or all replaced, or a process drained and taken back, while a worker is killed."""
    what, size = random.choice(("scale", "restart", "drain")), random.randint(1, 6)

    async def told() -> None:
        with suppress(Saturated):  # no process of the pool lives just now
            if what == "scale":
                await scaling.scale(world.bus, APP, POOL, size)
            elif what == "drain":
                await scaling.drain(world.bus, APP, POOL, None, random.uniform(0.0, 1.0))
            if what != "scale":
                await scaling.restart(world.bus, APP, POOL, None)

    await asyncio.gather(told(), kill_child(world, random))


async def drain_engine(world: World, random: Random) -> None:
    """SIGTERM an engine, as an update does: it commits what it has walked, says that it has left, and ends with 0."""
    await _drain(world, await _one(world, random, "engine"))


async def drain_pool(world: World, random: Random) -> None:
    """SIGTERM a pool: its calls finish, or go to another one."""
    await _drain(world, await _one(world, random, "pool"))


async def _drain(world: World, process: Process) -> None:
    process.wanted = False
    while process.alive and not process.handles(signal.SIGTERM):  # else it dies of it, as any program that just starts
        await asyncio.sleep(0.02)
    process.signal(signal.SIGTERM)
    if (code := await process.ended(40.0)) != 0:
        world.problems.append(f"{process.name} did not drain: exit code {code}; its last words: {last_words(process.log)}")
    process.wanted = True


async def freeze_engine(world: World, random: Random) -> None:
    """SIGSTOP an engine for longer than five heartbeats, then SIGCONT: it wakes up as one who was taken over."""
    await _freeze(await _one(world, random, "engine"), random.uniform(2.0, 5.0))


async def take_over(world: World, random: Random) -> None:
    """SIGSTOP an engine that owns something until others own all of it, then SIGCONT. What it had under way is late by then.

    Or until nothing is left to do: an engine that was frozen before, and taken over, finds out with its next commit.
    """
    process = await _one(world, random, "engine")
    while not (held := {s for s, owner in (await owners(world)).items() if owner == process.pid}):
        process = await _one(world, random, "engine")
        await asyncio.sleep(0.05)
    process.signal(signal.SIGSTOP)
    while process.pid in [(await owners(world))[s] for s in held] and not world.over:
        await asyncio.sleep(0.1)
    process.signal(signal.SIGCONT)


async def owners(world: World) -> dict[str, int]:
    """Log subject → process that wrote its last entry."""
    found: dict[str, int] = {}
    for partition in range(world.partitions):
        subject = subjects.log(APP, "chaos", "s1", partition)
        end = await latest(world.bus, LogAddress.of(APP, "chaos", "s1", partition))
        if end.at:
            found[subject] = int(end.facts.owner.split("-")[-2])  # host-pid-random
    return found


async def freeze_pool(world: World, random: Random) -> None:
    """SIGSTOP the parent of a pool for a while, then SIGCONT."""
    await _freeze(await _one(world, random, "pool"), random.uniform(1.0, 8.0))


async def _freeze(process: Process, seconds: float) -> None:
    process.signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    process.signal(signal.SIGCONT)


async def come_and_go(world: World, random: Random) -> None:
    """An engine comes, or one leaves for good: by SIGTERM, or by SIGKILL. Between one and four live."""
    living = [p for p in world.of("engine") if p.wanted]
    if len(living) < 2 or (len(living) < 4 and random.random() < 0.5):
        world.add_engine()
        return
    process = random.choice(living)
    if random.random() < 0.5:
        await _drain(world, process)
    process.wanted = False
    process.signal(signal.SIGKILL)


async def step_engine_clock(world: World, random: Random) -> None:
    """The clock of an engine's machine is set an hour ahead, an hour back, or right. Needs `World(clocks=True)`."""
    await _step(world, random, "engine")


async def step_pool_clock(world: World, random: Random) -> None:
    """The same of a pool's machine."""
    await _step(world, random, "pool")


async def _step(world: World, random: Random, kind: str) -> None:
    assert world.clock is not None
    name = (await _one(world, random, kind)).name
    world.clock.set(name, random.choice([ahead for ahead in (HOUR, -HOUR, 0) if ahead != world.clock.ahead(name)]))
