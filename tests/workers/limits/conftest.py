"""The loop of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dspex.bus.memory.virtual import VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.close()
