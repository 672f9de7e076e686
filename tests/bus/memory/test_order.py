"""What happens at one moment on the in-memory bus happens in one order: else a seed is another run each time."""

from __future__ import annotations

import asyncio

from dspex.bus.errors import Unreachable
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.port import StreamConfig


async def opened() -> MemoryBus:
    bus = MemoryServer().connect()
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    return bus


def test_a_connection_that_closes_lets_go_whoever_waits_in_the_order_in_which_they_came() -> None:
    gone: list[int] = []

    async def wait(bus: MemoryBus, number: int) -> None:
        reader = await bus.reader("S", ["s.>"], after=0, name="r")
        try:
            await reader.read(1)
        except Unreachable:
            gone.append(number)

    async def main() -> None:
        bus = await opened()
        waiting = [asyncio.create_task(wait(bus, i)) for i in range(100)]
        await asyncio.sleep(1)
        await bus.close()
        await asyncio.gather(*waiting)

    loop = VirtualLoop()
    try:
        loop.run(main(), advance=True)
    finally:
        loop.close()
    assert gone == list(range(100))
