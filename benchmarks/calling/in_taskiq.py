"""taskiq with NATS: a JetStream pull consumer for messages, and its object store for results. A task that returns its argument.

Its client asks again and again whether there is a result. It waits 0.2 s in between by default; here 5 ms, since each look is a
request or more. Its worker takes one message at a time, the default: it would wait until there are as many as it may take.
Reading a result makes two consumers that live for 5 s, and a stream has at most 1,000 by default, which is 100 results a
second: so the stream of the results is allowed more.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from taskiq_nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker

from calling.load import Coroutines
from calling.processes import System, module, running
from calling.where import Where

AGAIN = 0.005  # seconds between two looks for a result
CONSUMERS = 1_000_000  # that the stream of the results may have

results = NATSObjectStoreResultBackend[str](Where.here().nats)
broker = PullBasedJetStreamBroker(Where.here().nats).with_result_backend(results)


@broker.task
async def echo(text: str) -> str:
    """Give the argument back."""
    return text


async def ask(text: str) -> object:
    """Send a task, and look for its result until it is there."""
    task = await echo.kiq(text)
    result = await task.wait_result(check_interval=AGAIN, timeout=60)
    return result.return_value


@asynccontextmanager
async def system(where: Where) -> AsyncGenerator[System]:
    """The worker, and a client."""
    quiet = ("--max-async-tasks", str(where.slots))
    command = module("taskiq", "worker", "calling.in_taskiq:broker", "--workers", str(where.processes), *quiet)
    await broker.startup()  # it makes the streams, on which the worker relies
    stored = (await results.nats_jetstream.stream_info(f"OBJ_{results.bucket_name}")).config
    stored.max_consumers = CONSUMERS
    await results.nats_jetstream.update_stream(stored)
    async with running(command, where.variables()) as pid:
        yield System(Coroutines(ask), {"worker": pid})
    await broker.shutdown()
