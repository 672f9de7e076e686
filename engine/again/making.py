"""A call that is made for a run that is done again: asked of a worker of the application, as no event of any log."""

from __future__ import annotations

import asyncio

from dspex.bus.errors import CallError, Saturated
from dspex.bus.message import new_id
from dspex.bus.port import Bus
from dspex.bus.records import CallRecord, CallRequest
from dspex.engine.client.calls.asking import Asking

_GRACE = 5.0  # seconds beyond the time of an attempt, after which a worker that took it is not heard of any more


async def made(bus: Bus, app: str, pool: str, request: CallRequest) -> CallRecord:
    """The record of a call, made as the engine asked for it: with its spec, its tenant and its time, and once. It waits for a
    free slot until the call's deadline.

    Raises Saturated where the pool has no worker, or none was free in time; CallTimeout where no answer came; BusError.
    """
    id, time = new_id(), request.timeout
    asked = CallRequest(
        call=id,
        try_number=1,
        attempt=1,
        topology="",
        node="",
        spec=request.spec,
        inputs=request.inputs,
        run=id,
        session=request.session,
        timeout=time,
        left=time,
        invalid=request.invalid,
        tenant=request.tenant,
        affinity=request.affinity,
    )
    clock = asyncio.get_running_loop().time
    end = clock() + max(request.left, time)
    while True:
        asking = Asking(bus, app, pool, asked)
        try:
            async with asyncio.timeout(time + _GRACE):
                return await asking.record()
        except TimeoutError:
            late: CallError = asking.gave_up(time)
        finally:
            asking.close()
        if not isinstance(late, Saturated) or clock() >= end:
            raise late
