"""A stand-in model and a pool with real children; the rest is in pool_bench.py, which tests import."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
import standin
from pool_bench import Bench, config, light, running


@pytest_asyncio.fixture
async def bench(model: Any) -> AsyncIterator[Bench]:
    """A pool of one child, with the programs of tests/support/programs."""
    async with running(config(model.url)) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_model() -> AsyncIterator[Any]:
    """The stand-in that the shared pool asks."""
    async with standin.StandIn() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(shared_model: Any) -> AsyncIterator[Bench]:
    """As `bench`, one for all tests of a file that neither stop it nor kill its child: a child that imports DSPy costs seconds.

    Tests that use it are marked `asyncio(loop_scope="module")`.
    """
    async with running(config(shared_model.url)) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def quick(shared_model: Any) -> AsyncIterator[Bench]:
    """As `shared`, for what is the same whoever answers: its child imports no DSPy."""
    async with running(light(shared_model.url)) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mortal(shared_model: Any) -> AsyncIterator[Bench]:
    """As `quick`, for tests that end its child: the next test begins with the new one."""
    async with running(light(shared_model.url, restart_max=1000)) as found:
        yield found
