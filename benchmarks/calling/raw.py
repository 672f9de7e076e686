"""A request of nats-py, answered by a process that has nothing else to do: nothing that crosses a server is faster with it.

python -m calling.raw       # the one that answers
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import nats
from nats.aio.msg import Msg

from calling.load import Coroutines
from calling.processes import System, module, running
from calling.where import Where

SUBJECT = "calls.raw"


@asynccontextmanager
async def system(where: Where) -> AsyncGenerator[System]:
    """The one that answers, and a connection."""
    async with running(module("calling.raw"), where.variables(), ready="ready") as pid:
        nc = await nats.connect(where.nats)

        async def ask(text: str) -> str:
            answer = await nc.request(SUBJECT, text.encode(), timeout=60)
            return answer.data.decode()

        yield System(Coroutines(ask), {"worker": pid})
        await nc.close()


async def _answer() -> None:
    nc = await nats.connect(Where.here().nats)

    async def heard(message: Msg) -> None:
        await message.respond(message.data)

    await nc.subscribe(SUBJECT, cb=heard)
    await nc.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_answer())
