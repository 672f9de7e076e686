"""What goes wrong with servers, and on the way to them."""

from __future__ import annotations

import asyncio
import os
import signal
from random import Random

from processes.world import World

ELECTION = (8.0, 20.0)  # seconds for which a leader is away: an election takes 4 to 9


async def kill_server(world: World, random: Random) -> None:
    """SIGKILL the server; it comes back on the same port and store."""
    await world.restart_server()


async def freeze_server(world: World, random: Random) -> None:
    """SIGSTOP the server for longer than a client waits for an answer (5 s), then SIGCONT: what was sent lands late."""
    with world.no_majority():
        os.kill(world.server.pid, signal.SIGSTOP)
        await asyncio.sleep(random.uniform(5.5, 8.0))
        os.kill(world.server.pid, signal.SIGCONT)


async def fill_disk(world: World, random: Random) -> None:
    """No room is left on the disk of the server's store for a while. Needs `World(disk=…)`.

    Then whoever runs it makes room, and starts it again: into a stream of which a write failed it stores nothing more
    until then (2.15.1).
    """
    with world.no_majority():
        world.small.fill()
        await asyncio.sleep(random.uniform(3.0, 10.0))
        world.small.empty()
        await world.server.stop()
        await world.server.start()


# -- a cluster: `World(replicas=3)`
async def kill_leader(world: World, random: Random) -> None:
    """SIGKILL the leader of the application's stream; it comes back after another one was elected."""
    node = world.cluster.nodes[await world.leader()]
    await node.kill()
    await asyncio.sleep(random.uniform(*ELECTION))
    node.start()
    await world.leader()


async def freeze_leader(world: World, random: Random) -> None:
    """SIGSTOP the leader until another one was elected, then SIGCONT: it takes itself for the leader at first."""
    node = world.cluster.nodes[await world.leader()]
    node.signal(signal.SIGSTOP)
    await asyncio.sleep(random.uniform(*ELECTION))
    node.signal(signal.SIGCONT)
    await world.leader()


async def isolate_leader(world: World, random: Random) -> None:
    """Cut the leader off from the other nodes, for long enough that its clients must leave it."""
    world.cluster.isolate(await world.leader())
    await asyncio.sleep(random.uniform(15.0, 30.0))
    world.cluster.heal()
    await world.leader()


# -- wires: `World(wire=True)`
async def cut_wires(world: World, random: Random) -> None:
    """Abort every connection, wherever a message stands."""
    world.cutter.cut()


async def hold_wires(world: World, random: Random) -> None:
    """Nothing gets through for a while, then all of it."""
    world.cutter.hold()
    await asyncio.sleep(random.uniform(0.5, 7.0))
    world.cutter.let_go()
