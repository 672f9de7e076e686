"""A call that is made for a run that is done again: asked of a worker of the application, as no event of any log."""

from __future__ import annotations

import asyncio

from dspex.bus.errors import CallError, RecordingIncomplete, Saturated
from dspex.bus.message import new_id
from dspex.bus.port import Bus
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.sessions.line import with_history
from dspex.bus.serving.sessions.store import SessionStore
from dspex.engine.client.calls.asking import Asking

_GRACE = 5.0  # seconds beyond the time of an attempt, after which a worker that took it is not heard of any more


async def made(bus: Bus, app: str, pool: str, request: CallRequest) -> CallRecord:
    """The record of a call, made as the engine asked for it: with its spec, its tenant and its time, and once. It waits for a
    free slot until the call's deadline. What is a turn of a session has the history of then, and becomes none.

    Raises RecordingIncomplete where that is not known; Saturated where the pool has no worker, or none was free in time;
    CallTimeout where no answer came; BusError.
    """
    request = await _with_history(bus, app, request) if request.turn is not None else request
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


async def _with_history(bus: Bus, app: str, request: CallRequest) -> CallRequest:
    """A turn of a session with what was said before it. Raises RecordingIncomplete where that is not known; BusError."""
    state = await SessionStore(bus, app).read(str(request.session))
    turns = state.turns if state is not None and not state.ended else []
    at = next((at for at, turn in enumerate(turns) if turn.id == request.turn), None)
    why = ""
    if state is None or at is None:
        why = "the session does not have that turn any more"
    elif state.count > len(turns):
        why = f"of {state.count:,} turns the session has the last {len(turns):,} only"
    elif request.spec.runs_code and state.revision:
        why = "its program may use what the session keeps, which is known as it is now, and not as it was then"
    if why:
        what = f"{request.node} is a turn of session {request.session}, and cannot be asked with what was said before it: {why}"
        fix = "replay it strictly; or ask it anew, in a session of its own"
        raise RecordingIncomplete(what, node=request.node, run=request.run, fix=fix)
    return request.with_inputs(with_history(request.spec, request.inputs, turns[:at]))
