"""A stand-in model and a pool with real children; the rest is in pool_bench.py, which tests import."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from pool_bench import Bench, config, running


@pytest_asyncio.fixture
async def bench(model: Any) -> AsyncIterator[Bench]:
    """A pool of one child, with the programs of tests/support/programs."""
    async with running(config(model.url)) as found:
        yield found
