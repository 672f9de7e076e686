"""The size of a pool, and what its processes are told: to drain, to restart. Each change leaves an entry in the audit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

import orjson
import structlog
from typing_extensions import TypedDict

from dspex.bus import subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import ConfigError, DecodeError, Fenced, Saturated
from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.bus.records import MOST_PROCESSES, PoolSize
from dspex.bus.serving import audit
from dspex.engine.client.status.pools import FIRST_ANSWER, MORE_ANSWERS, processes

_log = structlog.get_logger("dspex.client")
OrderKind: TypeAlias = Literal["drain", "restart", "look", "cancel"]
PATIENCE: Final = 600.0  # seconds that processes have for what they are told
LOOK: Final = 5.0  # seconds between two looks whether they are still there


class Managed(NamedTuple):
    """What became of an order in one process of a pool. `why`: it failed; "" where it did not."""

    pool: str
    id: str
    why: str


class _Said(TypedDict):
    id: str
    state: Literal["begun", "done", "failed"]
    why: str


async def scale(bus: Bus, app: str, pool: str, size: object, *, replicas: int = 1) -> list[Managed]:
    """Have `size` worker processes in a pool from now on; None: as the settings say. Returns when they are ready.

    Raises ConfigError (DX105), Saturated where no process of the pool is there, Fenced where somebody else sets it now.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MOST_PROCESSES):
        fix = f'give a number from 0 to {MOST_PROCESSES:,}, or None ("default"), as the settings say'
        raise ConfigError(f"a pool cannot have {size!r} processes", code="DX105", fix=fix)
    if size is not None and not await processes(bus, app, pool):
        raise absent(pool)
    bucket = await bus.bucket(subjects.bucket(app), replicas=replicas)
    key = subjects.size_key(pool)
    before = await bucket.get(key)
    try:
        await bucket.put(key, PoolSize(size).pack(), revision=before[1] if before else 0)
    except Fenced as e:
        e.fix = "look at what it is now, and decide anew: dspex pools ls"
        raise
    await audit.leave(bus, app, "scale", pool=pool, size="default" if size is None else size)
    return await manage(bus, app, pool, "look")


async def wanted(bus: Bus, app: str, pool: str) -> int | None:
    """How many worker processes an operator has set; None where nobody has."""
    if not await bus.has("bucket", subjects.bucket(app)):
        return None
    found = await (await bus.bucket(subjects.bucket(app))).get(subjects.size_key(pool))
    try:
        return PoolSize.read(found[0]).size if found is not None else None
    except DecodeError as e:
        _log.warning("what no operator set is left out", pool=pool, why=e.message)
        return None


async def drain(bus: Bus, app: str, pool: str, process: str | None, grace: float) -> list[Managed]:
    """Have the processes of a pool, or one of them, take no more calls, until they are restarted. What does not end within
    `grace` seconds is handed back. Raises Saturated where there are none.
    """
    done = await _told(bus, app, pool, "drain", process, grace)
    await audit.leave(bus, app, "drain", pool=pool, processes=[one.id for one in done])
    return done


async def restart(bus: Bus, app: str, pool: str, process: str | None) -> list[Managed]:
    """Have the processes of a pool, or one of them, replace their workers one after the other; no call fails for it. Those that
    were drained take calls again. Raises Saturated where there are none.
    """
    done = await _told(bus, app, pool, "restart", process, 0.0)
    await audit.leave(bus, app, "restart", pool=pool, processes=[one.id for one in done])
    return done


def absent(pool: str, process: str | None = None) -> Saturated:
    """No process serves the pool, or not this one."""
    which = f"no process {process} of pool {pool}" if process else f"no process of pool {pool}"
    fix = f"dspex pools ls shows which there are; dspex worker {pool} starts one"
    return Saturated(f"{which} is running", fix=fix, node=pool)


async def _told(bus: Bus, app: str, pool: str, kind: OrderKind, process: str | None, grace: float) -> list[Managed]:
    found = await manage(bus, app, pool, kind, process=process, grace=grace)
    if not found:
        raise absent(pool, process)
    return found


async def manage(
    bus: Bus,
    app: str,
    pool: str,
    kind: OrderKind,
    *,
    process: str | None = None,
    grace: float = 0.0,
    patience: float = PATIENCE,
    calls: Mapping[str, int] | None = None,
) -> list[Managed]:
    """Tell the processes of a pool, or one, and wait until each is done, `patience` seconds beyond `grace`.

    `calls`: that are cancelled, each with the attempt up to which that holds.
    """
    queue: asyncio.Queue[Message] = asyncio.Queue()
    inbox = bus.inbox(queue.put_nowait)
    order = {"kind": kind, "process": process, "grace": grace, "calls": dict(calls or {})}
    states: dict[str, _Said] = {}
    end = asyncio.get_running_loop().time() + grace + patience
    try:
        await bus.send(subjects.manage(app, pool), orjson.dumps(order), reply=inbox.subject)
        await _hear(queue, states, FIRST_ANSWER, MORE_ANSWERS)
        while open := {id for id, said in states.items() if said["state"] == "begun"}:
            if asyncio.get_running_loop().time() > end:
                break
            await _hear(queue, states, LOOK, LOOK, until_all=True)
            for id in open - {str(row["id"]) for row in await processes(bus, app, pool)}:
                if states[id]["state"] == "begun":
                    states[id] = _Said(id=id, state="failed", why="it does not answer any more")
    finally:
        inbox.close()
    late = f"it was not done within {grace + patience:.0f} s"
    return [Managed(pool, id, late if s["state"] == "begun" else s["why"]) for id, s in sorted(states.items())]


async def _hear(
    queue: asyncio.Queue[Message], states: dict[str, _Said], first: float, more: float, *, until_all: bool = False
) -> None:
    """Hear what processes say for `first` seconds, and `more` behind each answer. `until_all`: or until all are done."""
    try:
        async with asyncio.timeout(first) as limit:
            while not until_all or any(said["state"] == "begun" for said in states.values()):
                answer = await queue.get()
                if answer.headers.get("Status") == "503":
                    return
                try:
                    said: _Said = checked(_Said, "what a process of a pool says", orjson.loads(answer.data))
                except (ValueError, DecodeError) as e:
                    _log.warning("what no process of a pool says is left out", why=str(e))
                    continue
                states[said["id"]] = said
                limit.reschedule(asyncio.get_running_loop().time() + more)
    except TimeoutError:
        return
