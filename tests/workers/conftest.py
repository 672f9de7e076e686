"""A stand-in model and a pool with real children; the rest is in pool_bench.py, which tests import."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

# tests/standin.py and pool_bench.py: pytest's importlib mode puts no folder of tests on the path
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import standin  # noqa: E402
from pool_bench import Bench, config, running  # noqa: E402


@pytest_asyncio.fixture
async def model() -> AsyncIterator[Any]:
    """A stand-in for a language model's server."""
    async with standin.StandIn() as server:
        yield server


@pytest_asyncio.fixture
async def bench(model: Any) -> AsyncIterator[Bench]:
    """A pool of one child, with the programs of tests/workers/programs."""
    async with running(config(model.url)) as found:
        yield found
