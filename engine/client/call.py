"""Interactive calls: send a request to a worker over core NATS and wait for its result.

A worker is a member of its pool's queue group only while it has a free slot, so the server's choice is among idle workers
and the absence of workers is known at once. A call keeps its id however often it is sent.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Generic, cast

from typing_extensions import TypeVar

from dspex.bus.errors import InvalidInput, from_dict
from dspex.bus.message import new_id
from dspex.bus.port import Bus
from dspex.bus.records import CallRecord, CallRequest, Usage
from dspex.bus.serving.deployed import OUTDATED
from dspex.engine.client.calls.asking import Asking, Meanwhile
from dspex.engine.client.resolve import HasCall, Nodes, Resolved

T = TypeVar("T")
V = TypeVar("V", default=dict[str, Any])
TIMEOUT = 60.0  # seconds for a call of which nothing else is said; as for an attempt in a topology
STREAMED = 600.0  # likewise for one that is streamed: who reads meanwhile waits longer


@dataclass(frozen=True)
class Result(Generic[T]):
    """The answer to a call.

    Attributes:
        data: the outputs, with the inputs beside them where `into` was given.
        id: of the call. route: who answered: "native" or "worker" (DSPy). usage: tokens and money. lm: profile.
        worker: which one. attempts: from 1. elapsed: as the caller saw it. dspy_version: of the worker.
        state: the saved state of the program, `draft@4`; "" for none. warning: what may be wrong with it; "" for nothing.
    """

    data: T
    id: str
    route: str
    usage: Usage
    lm: str
    worker: str
    attempts: int
    elapsed: timedelta
    dspy_version: str
    state: str = ""
    warning: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As the CLI prints it (`call --json`)."""
        return {
            "id": self.id,
            "data": self.data,
            "route": self.route,
            "lm": self.lm,
            "worker": self.worker,
            "attempts": self.attempts,
            "elapsed_ms": round(self.elapsed.total_seconds() * 1000, 1),
            "dspy_version": self.dspy_version,
            "usage": asdict(self.usage),
            "state": self.state,
            "warning": self.warning,
        }


async def call(
    bus: Bus,
    nodes: Nodes,
    what: HasCall[V] | str,
    data: Any,
    *,
    timeout: float | None,
    session: str | None = None,
    told: Meanwhile | None = None,
) -> Result[V]:
    """See `Client.call`; with `told`, `Client.stream`."""
    if timeout is None:
        given = {} if isinstance(what, str) else what.options
        bounded = not isinstance(what, str) and ("timeout" in given or "deadline" in given)
        timeout = None if bounded or told is None else STREAMED
    asked, fresh = await nodes.resolve(bus, what)
    try:
        return await _call(bus, nodes.app, asked, data, timeout=timeout, session=session, told=told)
    except InvalidInput as error:
        if fresh or error.code != OUTDATED or not isinstance(what, str):
            raise
        nodes.forget(what)  # another version was applied meanwhile
        asked, _ = await nodes.resolve(bus, what)
        return await _call(bus, nodes.app, asked, data, timeout=timeout, session=session, told=told)


async def _call(
    bus: Bus,
    app: str,
    asked: Resolved[V],
    data: Any,
    *,
    timeout: float | None,
    session: str | None,
    told: Meanwhile | None,
) -> Result[V]:
    known = asked.call
    if timeout is None:
        timeout = min(known.timeout, known.deadline) if known else TIMEOUT
    inputs = dict(known.inputs(data)) if known else dict(data)
    record, elapsed = await ask(bus, app, asked, inputs, timeout=timeout, session=session, told=told)
    outputs = record.outputs or {}
    if told is not None:
        told.ended(outputs)
    answer = known.accept(data, outputs) if known else cast(V, dict(outputs))
    return Result(
        data=answer,
        id=record.call,
        route=record.route,
        usage=Usage.read(record.usage),
        lm=record.lm,
        worker=record.worker,
        attempts=record.attempt,
        elapsed=timedelta(seconds=elapsed),
        dspy_version=record.dspy_version,
        state=record.state,
        warning=record.warning,
    )


async def ask(
    bus: Bus,
    app: str,
    what: Resolved[Any],
    inputs: dict[str, Any],
    *,
    timeout: float,
    session: str | None = None,
    told: Meanwhile | None = None,
) -> tuple[CallRecord, float]:
    """One call, sent until a worker takes it. Returns its record, and the seconds that it took. `told`: of what comes before.

    Raises the call's error; Saturated when no worker takes it in time; CallTimeout; PayloadTooLarge.
    """
    id, began = new_id(), time.monotonic()
    request = CallRequest(
        call=id,
        try_number=1,
        attempt=1,
        topology=what.topology,
        node=what.node,
        spec=what.spec,
        inputs=inputs,
        run=id,
        session=session,
        timeout=timeout,
        left=timeout,
        stream=told is not None,
    )
    asking = Asking(bus, app, what.pool, request, told)
    try:
        async with asyncio.timeout(timeout):
            record = await asking.record()
    except TimeoutError:
        raise asking.gave_up(timeout) from None
    finally:
        asking.close()
    if record.error is not None:
        raise from_dict(record.error).of_call()
    return record, time.monotonic() - began
