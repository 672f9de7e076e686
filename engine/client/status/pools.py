"""The processes of pools, as they answer a question."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import orjson
import structlog

from dspex.bus import codecs, subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import DecodeError
from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.engine.client.status.rows import PoolRow

_log = structlog.get_logger("dspex.client")
FIRST_ANSWER, MORE_ANSWERS = 1.0, 0.15  # seconds that pools have to answer


async def pool_rows(bus: Bus, app: str, names: Sequence[str]) -> list[PoolRow]:
    """What each process of each pool reports, or that a pool has none."""
    answers = await asyncio.gather(*(processes(bus, app, name) for name in names))
    return [row for name, rows in zip(names, answers) for row in rows or [_absent(name)]]


def pool_row(answer: Message) -> PoolRow | None:
    """What a process of a pool says of itself; None for what no pool says: whoever may listen on its subject can answer."""
    try:
        said = codecs.decode(answer.data)
        checked(PoolRow, "what a pool says", said)
    except DecodeError as e:
        _log.warning("what no pool says is left out", why=e.message)
        return None
    row: PoolRow = said  # with what a newer version says besides
    return row


def _absent(pool: str) -> PoolRow:
    return PoolRow(pool=pool, id=None, host=None, pid=None, size=0, slots=0, busy=0, ready=0, restarts=0)


async def processes(bus: Bus, app: str, pool: str) -> list[PoolRow]:
    """The answers of all processes of a pool, which may run on several hosts."""
    queue: asyncio.Queue[Message] = asyncio.Queue()
    inbox = bus.inbox(queue.put_nowait)
    found: list[PoolRow] = []
    try:
        await bus.send(subjects.control(app, pool), orjson.dumps({"kind": "status"}), reply=inbox.subject)
        async with asyncio.timeout(FIRST_ANSWER) as limit:
            while (answer := await queue.get()).headers.get("Status") != "503":
                if (row := pool_row(answer)) is not None:
                    found.append(row)
                limit.reschedule(asyncio.get_running_loop().time() + MORE_ANSWERS)
    except TimeoutError:
        pass  # no more of them
    finally:
        inbox.close()
    return sorted(found, key=lambda process: str(process["id"]))
