"""Connections of a test to the real server: as dspex connects, and as anybody else would. For the conftest of a folder."""

from __future__ import annotations

from collections.abc import AsyncIterator

import nats
import pytest_asyncio
from nats.js import JetStreamContext

from dspex.bus.nats import NatsBus, connect


@pytest_asyncio.fixture
async def bus(nats_url: str) -> AsyncIterator[NatsBus]:
    opened = await connect(nats_url)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def js(nats_url: str) -> AsyncIterator[JetStreamContext]:
    """What the server is asked for without dspex."""
    client = await nats.connect(nats_url)
    yield client.jetstream()
    await client.close()
