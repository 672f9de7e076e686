"""Interactive calls: send a request to a worker over core NATS and wait for its result.

A worker is a member of its pool's queue group only while it has a free slot, so the server's choice is among idle workers
and the absence of workers is known at once. A call keeps its id however often it is sent.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Generic, cast

import orjson
from typing_extensions import TypeVar

from dspex.bus import subjects
from dspex.bus.errors import BusError, CallError, CallTimeout, InvalidInput, PayloadTooLarge, Saturated, from_dict
from dspex.bus.message import Message, in_session, new_id
from dspex.bus.port import Bus, NewMessage
from dspex.bus.records import ACCEPTED, BUSY, RESULT, CallRecord, CallRequest, Usage
from dspex.bus.serving import payloads
from dspex.bus.serving.clear_text import may_store
from dspex.bus.serving.deployed import OUTDATED
from dspex.engine.client.resolve import HasCall, Nodes, Resolved
from dspex.engine.client.status.pools import pool_row, pool_rows
from dspex.engine.client.status.rows import PoolRow

T = TypeVar("T")
V = TypeVar("V", default=dict[str, Any])
TIMEOUT = 60.0  # seconds for a call of which nothing else is said; as for an attempt in a topology
ACCEPT_WITHIN = 2.0  # seconds for the accepted frame: a worker that is alive sends it before it runs anything


@dataclass(frozen=True)
class Result(Generic[T]):
    """The answer to a call.

    Attributes:
        data: the outputs, with the inputs beside them where `into` was given.
        id: of the call. route: who answered: "native" or "worker" (DSPy). usage: tokens and money. lm: profile.
        worker: which one. attempts: from 1. elapsed: as the caller saw it. dspy_version: of the worker.
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
        }


async def call(
    bus: Bus, nodes: Nodes, what: HasCall[V] | str, data: Any, *, timeout: float | None, session: str | None = None
) -> Result[V]:
    """See `Client.call`."""
    asked, fresh = await nodes.resolve(bus, what)
    try:
        return await _call(bus, nodes.app, asked, data, timeout=timeout, session=session)
    except InvalidInput as error:
        if fresh or error.code != OUTDATED or not isinstance(what, str):
            raise
        nodes.forget(what)  # another version was applied meanwhile
        asked, _ = await nodes.resolve(bus, what)
        return await _call(bus, nodes.app, asked, data, timeout=timeout, session=session)


async def _call(bus: Bus, app: str, asked: Resolved[V], data: Any, *, timeout: float | None, session: str | None) -> Result[V]:
    known = asked.call
    if timeout is None:
        timeout = min(known.timeout, known.deadline) if known else TIMEOUT
    inputs = dict(known.inputs(data)) if known else dict(data)
    record, elapsed = await ask(bus, app, asked, inputs, timeout=timeout, session=session)
    outputs = record.outputs or {}
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
    )


async def ask(
    bus: Bus, app: str, what: Resolved[Any], inputs: dict[str, Any], *, timeout: float, session: str | None = None
) -> tuple[CallRecord, float]:
    """One call, sent until a worker takes it. Returns its record, and the seconds that it took.

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
    )
    asking = _Asking(bus, app, what.pool, request)
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


class _Asking:
    """One call on its way to a worker.

    Its frames are taken as they come, outside the task that waits, which wakes once: for the result, or to ask again.
    """

    def __init__(self, bus: Bus, app: str, pool: str, request: CallRequest) -> None:
        self.bus, self.app, self.pool, self.request = bus, app, pool, request
        self.inbox = bus.inbox(self._take)
        self.taken = False  # a worker has accepted it
        self._answered = False
        self.seen: PoolRow | None = None  # what a pool reported when no worker took the call
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Future[Message | None] = self._loop.create_future()  # the result; None: no worker took it
        self._late: asyncio.TimerHandle | None = None

    async def record(self) -> CallRecord:
        """Ask until a worker takes it, then wait for the result."""
        subject, headers = self.request.called_on(self.app, self.pool), in_session(self.request.session)
        pause, draft = 0.05, NewMessage(subject, self.request.pack(), headers)
        if (size := len(draft.data)) > (most := payloads.most(self.bus)):
            raise PayloadTooLarge(f"{size:,} bytes for {draft.subject}, and one payload may have {most:,}", node=self.pool)
        if payloads.must_be_stored(self.bus, draft):
            await may_store(self.bus, self.app)
        draft = await payloads.sent(self.bus, self.app, draft)
        while True:
            if (result := await self._asked(draft)) is not None:
                result = await payloads.required(self.bus, self.app, result)
                return CallRecord.unpack(result.data)
            self.seen = await _someone_there(self.bus, self.app, self.pool)
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)

    async def _asked(self, draft: NewMessage) -> Message | None:
        """The result; None where no worker takes the call: all are busy or frozen, or there is none."""
        if not self.taken:  # else one that was slow has taken it meanwhile
            self._heard = self._loop.create_future()
            self._late = self._loop.call_later(ACCEPT_WITHIN, self._not_taken)
            await self.bus.send(draft.subject, draft.data, headers=draft.headers, reply=self.inbox.subject)
        return await self._heard

    def _take(self, frame: Message) -> None:
        kind = frame.headers.get(subjects.KIND, "")
        if kind in (ACCEPTED, RESULT):  # the result alone is a refusal
            if not self.taken and self._heard.done():
                self._heard = self._loop.create_future()  # of a worker that was taken for frozen
            self.taken = True
            self._answered = self._answered or kind == RESULT
            if kind == RESULT and not self._heard.done():
                self._heard.set_result(frame)
        elif kind == BUSY or frame.headers.get("Status") == "503":
            self._not_taken()

    def _not_taken(self) -> None:
        if not self.taken and not self._heard.done():
            self._heard.set_result(None)

    def close(self) -> None:
        """It is over: what still comes is dropped, and a worker that has it and has not answered stops it."""
        self.inbox.close()
        if self._late is not None:
            self._late.cancel()
        if self.taken and not self._answered:
            said = orjson.dumps({"kind": "cancel", "call": self.request.call})
            with suppress(BusError):  # who cannot be told finds out by its deadline
                self.bus.tell(subjects.control(self.app, self.pool), said)

    def gave_up(self, timeout: float) -> CallError:
        """The error for a call that got no result in time."""
        run = self.request.call
        if self.taken or not self.seen:
            return CallTimeout(f"no answer from pool {self.pool} within {timeout:g} s", node=self.pool, run=run).of_call()
        slots = self.seen["slots"] * self.seen["ready"]
        return Saturated(
            f"pool {self.pool} is saturated ({self.seen['busy']} of {slots} slots busy); gave up after {timeout:g} s",
            node=self.pool,
            run=run,
            fix=f"wait, raise --timeout, or start more workers: dspex worker {self.pool}",
        )


async def _someone_there(bus: Bus, app: str, pool: str) -> PoolRow | None:
    """What a pool says of itself; None for what no pool says. Raises Saturated where there is no worker to wait for."""
    why = "has no worker"
    try:
        row = pool_row(await bus.request(subjects.control(app, pool), orjson.dumps({"kind": "status"}), timeout=ACCEPT_WITHIN))
        if row is None or not row.get("draining"):
            return row
        rows = await pool_rows(bus, app, [pool])  # others of its processes may stay
        if staying := [row for row in rows if row["id"] is not None and not row.get("draining")]:
            return staying[0]
        why = "has no worker that takes calls: its processes finish what they run, and end"
    except Saturated:
        pass
    fix = f"start one: dspex worker {pool}   (or dspex run, which starts all pools)"
    raise Saturated(f"pool {pool} {why}", node=pool, fix=fix)
