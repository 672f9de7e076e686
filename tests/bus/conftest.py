"""Connections to either bus, by the same name; and a loop whose time a test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeAlias

import pytest
import pytest_asyncio

from dspex.bus import nats
from dspex.bus.memory.server import MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.port import Bus

Connect: TypeAlias = Callable[[], Awaitable[Bus]]


@pytest_asyncio.fixture(params=["memory", "nats"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """Opens connections to one server (all of them closed at the end)."""
    opened: list[Bus] = []
    if request.param == "memory":
        server = MemoryServer()

        async def open_one() -> Bus:
            opened.append(server.connect())
            return opened[-1]
    else:
        url: str = request.getfixturevalue("nats_url")

        async def open_one() -> Bus:
            opened.append(await nats.connect(url))
            return opened[-1]

    yield open_one
    for bus in opened:
        await bus.close()


@pytest_asyncio.fixture
async def bus(connect: Connect) -> Bus:
    return await connect()


@pytest_asyncio.fixture
async def buses(connect: Connect) -> tuple[Bus, Bus]:
    """Two connections to the same server."""
    return await connect(), await connect()


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    virtual = VirtualLoop()
    yield virtual
    virtual.close()
