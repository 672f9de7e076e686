"""Celery with Redis, for messages and for results: a task that returns its argument.

The worker is of processes (prefork, the default), without what it says to other workers and to monitors, and takes 64 messages
ahead, as its manual advises for short tasks. A task counts as done when it begins: a crash loses it.

Where Redis keeps what it holds, a task counts as done when it has ended, so that a crash has it run again: the nearest to a
durable call that Celery has.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from celery import Celery

from calling.load import THREADS, Threads
from calling.processes import System, module, running
from calling.where import Where

AHEAD = 64

app: Any = Celery("calls", broker=Where.here().redis, backend=Where.here().redis)
app.conf.worker_prefetch_multiplier = AHEAD
app.conf.task_acks_late = app.conf.task_reject_on_worker_lost = Where.here().keeps
app.conf.broker_pool_limit = THREADS  # connections: else the threads of the client wait for each other
app.conf.broker_connection_retry_on_startup = True


def echo(text: str) -> str:
    """Give the argument back."""
    return text


task = app.task(echo)


def ask(text: str) -> object:
    """Send a task, and wait for its result."""
    return task.delay(text).get(timeout=60)


@asynccontextmanager
async def system(where: Where) -> AsyncGenerator[System]:
    """The worker; the client is one thread for each call that is open."""
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "warning")
    command = module("celery", "-A", "calling.in_celery", "worker", "--concurrency", str(where.processes), *quiet)
    async with running(command, where.variables()) as pid:
        yield System(Threads(ask), {"worker": pid})
