"""To cancel a run: its calls are ended in their workers, each in Cancelled, which nobody retries and no fallback stands in for;
and what waits for a person's decision has it.

So a call that is cancelled ends as every call that failed for good: as a dead letter, which holds its event and can be
redriven. The engine learns nothing new, and a replay finds what it has always found: a record, or a decision.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, NamedTuple

from dspex.bus import subjects
from dspex.bus.errors import DataError
from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving import audit
from dspex.engine.client.runs.history import History, history
from dspex.engine.client.status import approvals
from dspex.engine.client.status.scaling import absent, manage
from dspex.engine.graph.manifest import Manifest

WITHIN: Final = 10.0  # seconds for workers to end what they run, and for engines to take it
_LOOK: Final = 0.2  # seconds between two looks at a run that ends


class CancelledRun(NamedTuple):
    """What came of cancelling. `calls`: that were told to end. `approvals`: that were withdrawn. `over`: nothing of the run is
    open any more.
    """

    calls: int
    approvals: int
    over: bool


async def cancel(bus: Bus, app: str, applied: Mapping[str, Manifest], run: str) -> CancelledRun:
    """Cancel a run, and what comes of it meanwhile. `run`: its full id.

    Raises Saturated where a call waits for a pool of which no process is there; RunNotFound; BusError.
    """
    clock, told = asyncio.get_running_loop().time, dict[str, int]()
    withdrawn, looked = 0, frozenset[str]()
    end, past = clock() + WITHIN, await history(bus, app, applied, run)
    while not past.done and clock() < end:
        for pool, calls in _open(past).items():
            new = {call: attempt for call, attempt in calls.items() if told.get(call, 0) < attempt}
            if new and not await manage(bus, app, pool, "cancel", calls=new):
                raise absent(pool)
            told |= new
        if past.alarms - looked:  # each approval has one, under its id
            withdrawn, looked = withdrawn + await approvals.withdraw(bus, app, run), looked | past.alarms
        await asyncio.sleep(_LOOK)
        past = await history(bus, app, applied, run)
    await audit.leave(bus, app, "cancel", run=run, calls=len(told), approvals=withdrawn)
    return CancelledRun(len(told), withdrawn, past.done)


def _open(past: History) -> dict[str, dict[str, int]]:
    """The calls of a run that have no record yet, by pool, each with its attempt."""
    found: dict[str, dict[str, int]] = {}
    ended = {(record.call, record.try_number) for record in map(_record, past.records) if record is not None}
    for request in filter(None, map(_request, past.messages)):
        if request.record is not None and (request.call, request.try_number) not in ended:
            calls = found.setdefault(subjects.pool_of_record(request.record.subject), {})
            calls[request.call] = max(request.attempt, calls.get(request.call, 0))
    return found


def _record(message: Message) -> CallRecord | None:
    try:
        return CallRecord.unpack(message.data)
    except DataError:
        return None  # no worker wrote it, or it is damaged


def _request(message: Message) -> CallRequest | None:
    if not subjects.is_work(message.subject):
        return None
    try:
        return CallRequest.unpack(message.data)
    except DataError:
        return None  # it is sealed, and the key is gone
