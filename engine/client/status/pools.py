"""The processes of pools, as they answer a question."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import orjson

from dspex.bus import subjects
from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.engine.client.status.rows import PoolRow

FIRST_ANSWER, MORE_ANSWERS = 1.0, 0.15  # seconds that pools have to answer


async def pool_rows(bus: Bus, app: str, names: Sequence[str]) -> list[PoolRow]:
    """What each process of each pool reports, or that a pool has none."""
    answers = await asyncio.gather(*(_ask(bus, app, name) for name in names))
    return [row for name, rows in zip(names, answers) for row in rows or [_absent(name)]]


def _absent(pool: str) -> PoolRow:
    return PoolRow(pool=pool, id=None, host=None, pid=None, size=0, slots=0, busy=0, ready=0, restarts=0)


async def _ask(bus: Bus, app: str, pool: str) -> list[PoolRow]:
    """The answers of all processes of a pool, which may run on several hosts."""
    answers: asyncio.Queue[Message] = asyncio.Queue()
    inbox = bus.inbox()
    subscription = await bus.subscribe(inbox, answers.put)
    found: list[PoolRow] = []
    try:
        await bus.send(subjects.control(app, pool), orjson.dumps({"kind": "status"}), reply=inbox)
        async with asyncio.timeout(FIRST_ANSWER) as limit:
            while (answer := await answers.get()).headers.get("Status") != "503":
                found.append(orjson.loads(answer.data))
                limit.reschedule(asyncio.get_running_loop().time() + MORE_ANSWERS)
    except TimeoutError:
        pass  # no more of them
    finally:
        await subscription.close()
    return sorted(found, key=lambda process: str(process["id"]))
