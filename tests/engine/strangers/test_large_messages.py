"""Whoever may publish can fill an application's streams with large messages: what reading takes of memory, on a real server."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from waiting import until

from dspex.bus import subjects
from dspex.bus.errors import TopologyError
from dspex.bus.nats import NatsBus
from dspex.bus.port import PAGE_BYTES, NewMessage
from dspex.bus.records import Letter, NodeEvent, Origin
from dspex.bus.serving import payloads
from dspex.engine.cli.events.selection import Selection
from dspex.engine.cli.terminal.terminal import Terminal
from dspex.engine.client import letters
from dspex.engine.client.client import Client
from dspex.engine.graph import manifest
from dspex.engine.hosting.apply import apply
from dspex.engine.hosting.host import Host
from dspex.engine.log import housekeeping
from dspex.operators.topology import Topology

MEGABYTE = 1_000_000
LARGE = 100  # messages
LETTERS = bytes.maketrans(b"0123456789", b"ghijklmnop")  # long numbers are looked at one by one, which is not tried here


@contextmanager
def most_memory() -> Iterator[Callable[[], int]]:
    """Gives the bytes that Python's objects took together at most, within the block."""
    peak = [0]
    tracemalloc.start()
    try:
        yield lambda: peak[0]
        peak[0] = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.asyncio
async def test_a_start_holds_no_more_of_what_others_stored_than_a_page(bus: NatsBus, unique: str) -> None:
    topology = Topology("echo")
    topology.source(f"{unique}.in").map(lambda d: d, name="same").sink(f"{unique}.out")
    client = Client(bus=bus, app=unique)
    first = Host(bus, unique, [topology.graph], engine="first")
    await first.start()
    await client.publish(f"{unique}.in", {"n": 1})

    async def arrived(count: int) -> bool:
        return await bus.count(subjects.stream(unique), [f"{unique}.out"]) == count

    await until(lambda: arrived(1))
    await first.drain()
    for _ in range(LARGE):
        await bus.publish(NewMessage(f"{unique}.out", b"x" * MEGABYTE))
    second = Host(bus, unique, [topology.graph], engine="second")
    with most_memory() as peak:
        await second.start()
        await client.publish(f"{unique}.in", {"n": 2})
        await until(lambda: arrived(LARGE + 2))
    assert peak() < 3 * PAGE_BYTES < LARGE * MEGABYTE
    await second.drain()


@pytest.mark.parametrize(
    ("size", "count"), [(200_000, 400), pytest.param(400_000, 150, marks=pytest.mark.long)]
)  # above 256 KiB they lie in the object store
@pytest.mark.asyncio
async def test_dead_letters_are_listed_and_swept_in_bounded_memory(bus: NatsBus, unique: str, size: int, count: int) -> None:
    topology = Topology("echo")
    topology.source(f"{unique}.in").sink(f"{unique}.out")
    await apply(bus, unique, [topology.graph])
    edge, dead = subjects.edge(unique, "echo", "s1", 0), subjects.dead(unique, "echo", "check")
    for n in range(count):
        data = b'"%b"' % (n.to_bytes(2).hex().encode() * (size // 4)).translate(LETTERS)
        event = NodeEvent("in", Origin(f"e{n}", "in", f"r{n}"), "application/json", data)
        letter = Letter("echo", "check", event, edge, {"type": "DataError", "message": "no"})
        await bus.publish(await payloads.checked_in(bus, unique, NewMessage(dead, letter.pack())))
    applied = await manifest.of_application(bus, unique)
    with most_memory() as peak:
        assert len([d.sequence async for d in letters.listing(bus, unique)]) == count
        await housekeeping.sweep(bus, unique, "echo", applied, records=1.0, now=time.time())
        with pytest.raises(TopologyError, match="there is no operator 'chekc'"):
            await _looked_for(Client(bus=bus, app=unique), "chekc")
    assert peak() < 3 * PAGE_BYTES < count * size


async def _looked_for(client: Client, node: str) -> None:
    """What `dspex dlq ls --node` does."""
    async for _ in Selection(node=node).each(Terminal(), client):
        pass
