"""What goes wrong in a chaos run on the real server: each fault is a function of the world and of a seeded random.

A fault returns when it is over; who supervises the processes starts again what was killed. To add one, write the function and
name it in FAULTS.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

from workload import PARTITIONS
from world import APP, Process, World, last_words

from dspex.bus import subjects
from dspex.engine.log.entries import LogAddress
from dspex.engine.log.reading import latest

Fault = Callable[[World, Random], Awaitable[None]]


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
    """SIGKILL one worker of a pool."""
    while not (children := (await _one(world, random, "pool")).children()):
        await asyncio.sleep(0.05)
    with suppress(ProcessLookupError):  # it had just ended by itself
        os.kill(random.choice(children), signal.SIGKILL)


async def kill_worker(world: World, random: Random) -> None:
    """SIGKILL a pool's parent or one of its children."""
    await random.choice([kill_pool, kill_child])(world, random)


async def kill_server(world: World, random: Random) -> None:
    """SIGKILL the server; it comes back on the same port and store."""
    await world.restart_server()


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
    """SIGSTOP an engine that owns something until others own all of it, then SIGCONT. What it had under way is late by then."""
    process = await _one(world, random, "engine")
    while not (held := {s for s, owner in (await owners(world)).items() if owner == process.pid}):
        process = await _one(world, random, "engine")
        await asyncio.sleep(0.05)
    process.signal(signal.SIGSTOP)
    while process.pid in [(await owners(world))[s] for s in held]:
        await asyncio.sleep(0.1)
    process.signal(signal.SIGCONT)


async def owners(world: World) -> dict[str, int]:
    """Log subject → process that wrote its last entry."""
    found: dict[str, int] = {}
    for partition in range(PARTITIONS):
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


async def freeze_server(world: World, random: Random) -> None:
    """SIGSTOP the server for longer than a client waits for an answer (5 s), then SIGCONT: what was sent lands late."""
    os.kill(world.server.pid, signal.SIGSTOP)
    await asyncio.sleep(random.uniform(5.5, 8.0))
    os.kill(world.server.pid, signal.SIGCONT)


async def cut_wires(world: World, random: Random) -> None:
    """Abort every connection, wherever a message stands. Needs `World(wire=True)`."""
    world.cutter.cut()


async def hold_wires(world: World, random: Random) -> None:
    """Nothing gets through for a while, then all of it. Needs `World(wire=True)`."""
    world.cutter.hold()
    await asyncio.sleep(random.uniform(0.5, 7.0))
    world.cutter.let_go()


FAULTS: dict[str, Fault] = {
    f.__name__.replace("_", "-"): f
    for f in (
        kill_engine,
        kill_between_parts,
        kill_pool,
        kill_child,
        kill_worker,
        kill_server,
        drain_engine,
        drain_pool,
        freeze_engine,
        take_over,
        freeze_pool,
        freeze_server,
        cut_wires,
        hold_wires,
    )
}
AT_ONCE = {"kill-between-parts"}  # it waits for its moment itself
TARGETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "engine": ("kill-engine",),
    "worker": ("kill-worker",),
    "server": ("kill-server",),
    "all": ("kill-engine", "kill-worker", "kill-server"),
    "drain": ("drain-engine", "drain-pool"),
    "parts": ("kill-between-parts",),
    "freeze": ("freeze-engine", "freeze-pool", "freeze-server"),
    "wire": ("cut-wires", "hold-wires"),
}
