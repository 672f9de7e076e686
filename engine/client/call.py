"""Interactive calls: send a request to a worker over core NATS and wait for its result.

A worker is a member of its pool's queue group only while it has a free slot, so the server's choice is among idle workers
and the absence of workers is known at once. A call keeps its id however often it is sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Generic, NamedTuple, cast

from typing_extensions import TypeVar

from dspex.bus import telemetry
from dspex.bus.codecs import tracing
from dspex.bus.codecs.checking import made
from dspex.bus.codecs.plain import check_writable
from dspex.bus.errors import ConfigError, DspexError, InvalidInput, from_dict
from dspex.bus.message import new_id
from dspex.bus.port import Bus
from dspex.bus.records import CallRecord, CallRequest, KeptInSession, Usage
from dspex.bus.serving.deployed import OUTDATED
from dspex.bus.serving.keys.secret_fields import need_key
from dspex.bus.serving.sessions.line import with_history
from dspex.bus.serving.sessions.state import StoredTurn, check_inputs
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
        id: of the call. route: who answered: "native", "worker" (DSPy), or "cache". usage: tokens and money. lm: profile.
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


class Speaking(NamedTuple):
    """A call that is to be the next turn of its session.

    Attributes:
        call: its id, which has the first place in the session's line. turn: the name of the turn.
        turns: those before it. kept: what its program is given of the session; None: nothing.
    """

    call: str
    turn: str
    turns: Sequence[StoredTurn] = ()
    kept: KeptInSession | None = None


async def call(
    bus: Bus,
    nodes: Nodes,
    what: HasCall[V] | str,
    data: Any,
    *,
    timeout: float | None,
    session: str | None = None,
    told: Meanwhile | None = None,
    speaking: Speaking | None = None,
) -> Result[V]:
    """See `Client.call`; with `told`, `Client.stream`; with `speaking`, it is its turn in the session."""
    asked, fresh = await nodes.resolve(bus, what)
    limit = limit_of(what, asked, timeout, streamed=told is not None)
    try:
        return await _call(bus, nodes.app, asked, data, limit, session, told, speaking)
    except InvalidInput as error:
        if fresh or error.code != OUTDATED or not isinstance(what, str):
            raise
        nodes.forget(what)  # another version was applied meanwhile
        asked, _ = await nodes.resolve(bus, what)
        return await _call(bus, nodes.app, asked, data, limit, session, told, speaking)


def limit_of(what: HasCall[V] | str, asked: Resolved[V], timeout: float | None, *, streamed: bool = False) -> float:
    """Seconds for a call, where its caller said `timeout`."""
    if timeout is not None:
        return timeout
    given = {} if isinstance(what, str) else what.options
    if streamed and not ("timeout" in given or "deadline" in given):
        return STREAMED
    return min(asked.call.timeout, asked.call.deadline) if asked.call else TIMEOUT


async def _call(
    bus: Bus,
    app: str,
    asked: Resolved[V],
    data: Any,
    timeout: float,
    session: str | None,
    told: Meanwhile | None,
    speaking: Speaking | None,
) -> Result[V]:
    known = asked.call
    if asked.affinity == "require" and not session:
        fix = "client.session(id).call(…), or dspex call --session ID"
        raise ConfigError('affinity="require" asks for the worker of a session, and the call has none', code="DX105", fix=fix)
    if speaking is not None:
        need_key(bus, asked.spec, "a turn of a session", asked.node)
    given = with_history(asked.spec, data, speaking.turns) if speaking is not None else data
    if not known and not isinstance(given, Mapping):
        raise InvalidInput(f"a call takes fields, and this is {type(given).__name__}", fix='give a mapping: {"text": "…"}')
    inputs = dict(known.inputs(given)) if known else dict(given)
    check_writable(inputs, "inputs")
    if speaking is not None:
        check_inputs(inputs)
    tenant = known.tenant(data) if known and known.tenant is not None else None
    record, elapsed = await ask(
        bus, app, asked, inputs, timeout=timeout, session=session, told=told, speaking=speaking, tenant=tenant
    )
    outputs = record.outputs or {}
    if told is not None:
        told.ended(outputs)
    answer = known.accept(data, outputs) if known else cast(V, dict(outputs))
    said: dict[str, Any] = {
        "data": answer,
        "id": record.call,
        "route": record.route,
        "usage": Usage.read(record.usage),
        "lm": record.lm,
        "worker": record.worker,
        "attempts": record.attempt,
        "elapsed": timedelta(seconds=elapsed),
        "dspy_version": record.dspy_version,
        "state": record.state,
        "warning": record.warning,
    }
    return made(Result, said)


async def ask(
    bus: Bus,
    app: str,
    what: Resolved[Any],
    inputs: dict[str, Any],
    *,
    timeout: float,
    session: str | None = None,
    told: Meanwhile | None = None,
    speaking: Speaking | None = None,
    tenant: str | None = None,
    describe: bool = False,
) -> tuple[CallRecord, float]:
    """One call, sent until a worker takes it. Returns its record, and the seconds that it took. `told`: of what comes before;
    `describe`: see CallRequest.

    Raises the call's error; Saturated when no worker takes it in time; WorkerLost; CallTimeout; PayloadTooLarge.
    """
    id, began = new_id() if speaking is None else speaking.call, time.monotonic()
    request = CallRequest.at_once(
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
        turn=None if speaking is None else speaking.turn,
        kept=None if speaking is None else speaking.kept,
        tenant=tenant,
        describe=describe,
        affinity=session if what.affinity != "none" else None,
        required=what.affinity == "require",
        trace=_handed_on(app, id, above := tracing.current()),
    )
    asking, failed = Asking(bus, app, what.pool, request, told), "Cancelled"
    try:
        async with asyncio.timeout(timeout):
            record = await asking.record()
        failed = str((record.error or {}).get("type", ""))
    except (TimeoutError, DspexError) as e:
        error = asking.gave_up(timeout) if isinstance(e, TimeoutError) else e
        failed = type(error).__name__
        raise error from None
    finally:
        asking.close()
        if telemetry.listeners:
            telemetry.emit(
                "asked", pool=what.pool, request=request, above=above, seconds=time.monotonic() - began, error=failed
            )
    if record.error is not None:
        raise from_dict(record.error).of_call()
    return record, time.monotonic() - began


def _handed_on(app: str, call: str, above: str | None) -> str | None:
    """What a worker is told of the trace: where spans are made here, the one of the call is between it and who asked."""
    if not telemetry.listeners:
        return above
    return tracing.traceparent(tracing.trace_of(above, call), tracing.span_of(app, call, "asked"))
