"""Dramatiq with Redis, for messages and for results: an actor that returns its argument. 8 threads a process, the default."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from redis import Redis

from calling.load import THREADS, Threads
from calling.processes import System, module, running
from calling.where import Where

redis = Redis.from_url(Where.here().redis, max_connections=2 * THREADS)  # each thread that waits for a result has one
broker = RedisBroker(client=redis)
broker.add_middleware(Results(backend=RedisBackend(client=redis)))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def echo(text: str) -> str:
    """Give the argument back."""
    return text


def ask(text: str) -> object:
    """Send a message, and wait for its result."""
    return echo.send(text).get_result(block=True, timeout=60_000)


@asynccontextmanager
async def system(where: Where) -> AsyncGenerator[System]:
    """The worker; the client is one thread for each call that is open."""
    command = module("dramatiq", "calling.in_dramatiq", "--processes", str(where.processes), "--skip-logging")
    async with running(command, where.variables()) as pid:
        yield System(Threads(ask), {"worker": pid})
