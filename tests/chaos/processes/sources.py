"""What goes wrong with the stream of a source, which is nobody's: `World(foreign=True)`, and a topology that skips gaps.

Of events that were published before and of which nothing has come yet nothing need come, because an engine may not have read
them. All that comes after is another event, and must come out once.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from random import Random

from processes.world import EVENTS, World

STORE = Path("jetstream", "$G", "streams", EVENTS)  # where the server keeps it


async def recreate_source(world: World, random: Random) -> None:
    """Delete the stream, make it again, and fill it at once."""
    await world.publisher.pause()
    await _perhaps_read(world, random)
    await world.bus.request(f"$JS.API.STREAM.DELETE.{EVENTS}", b"")
    world.unread |= world.ledger.forgive(world.publisher.stored)
    await world.make_source()
    world.publisher.resume()


async def roll_back_source(world: World, random: Random) -> None:
    """Stop the server, and start it with a copy of the stream that is some seconds old; then fill it at once."""
    await world.publisher.pause()
    held = list(world.publisher.stored)
    store, copy = world.server.store / STORE, world.folder / "copy"
    with world.no_majority():
        await world.server.stop()
        shutil.copytree(store, copy)
        await world.server.start()
    world.publisher.resume()
    await asyncio.sleep(random.uniform(1.0, 3.0))
    await world.publisher.pause()
    await _perhaps_read(world, random)
    with world.no_majority():
        await world.server.stop()
        shutil.rmtree(store)
        copy.rename(store)
        world.again.update(held)
        world.ledger.again.update(held)
        world.unread |= world.ledger.forgive(id for id in world.publisher.stored if id not in held)
        await world.server.start()
    world.publisher.resume()


async def _perhaps_read(world: World, random: Random) -> None:
    """Sometimes wait until what is stored has come out, so that nothing of it may be missing."""
    if random.random() < 0.5:
        gone = world.ledger.gone
        while not all(world.ledger.begun(id) for id in world.publisher.stored if id not in gone):
            await asyncio.sleep(0.1)
