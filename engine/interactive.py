"""Interactive calls: ask a worker over core NATS and wait for its answer.

A worker is a member of its class's queue group only while it has a free slot, so the server's choice is among idle workers
and "nobody there" is known at once. A call keeps its id however often it is asked.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

import orjson

from dspex.bus import subjects
from dspex.bus.errors import CallTimeout, Saturated, from_dict
from dspex.bus.event import Message, new_id
from dspex.bus.port import Bus
from dspex.bus.wire import ACCEPTED, BUSY, KIND_HEADER, CallSpec, Outcome, Usage, Work

T = TypeVar("T")
ACCEPT_WITHIN = 2.0  # seconds for the accepted frame: a worker that is alive sends it before it runs anything


@dataclass(frozen=True)
class Result(Generic[T]):
    """The answer to a call.

    Attributes:
        data: the outputs, with the inputs beside them where `into` was given.
        id: of the call. route: who answered ("worker", …). usage: tokens and money. lm: profile.
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


async def ask(
    bus: Bus, app: str, pool: str, spec: CallSpec, inputs: dict[str, Any], *, timeout: float, session: str | None = None
) -> tuple[Outcome, float]:
    """One call, asked until a worker takes it. Its outcome, and seconds that it took.

    Raises the call's error; Saturated when nobody takes it in time; CallTimeout.
    """
    id, began = new_id(), time.monotonic()
    origin = {"id": id, "subject": "", "run": id, "session": session}
    work = Work(
        call=id,
        ordinal=-1,
        attempt=1,
        topology="",
        node="",
        reply="",
        spec=asdict(spec),
        inputs=inputs,
        origin=origin,
        timeout=timeout,
        deadline=time.time() + timeout,
    )
    frames: asyncio.Queue[Message] = asyncio.Queue()
    inbox = bus.inbox()
    subscription = await bus.subscribe(inbox, frames.put)
    try:
        async with asyncio.timeout(timeout):
            outcome = await _until_answered(bus, app, pool, work, inbox, frames)
    except TimeoutError:
        raise CallTimeout(f"no answer from pool {pool} within {timeout:g} s", node=pool, run=id) from None
    finally:
        await subscription.close()
    if outcome.error is not None:
        raise from_dict(outcome.error)
    return outcome, time.monotonic() - began


async def _until_answered(bus: Bus, app: str, pool: str, work: Work, inbox: str, frames: asyncio.Queue[Message]) -> Outcome:
    pause = 0.05
    while True:
        await bus.send(subjects.call(app, pool), work.pack(), reply=inbox)
        first = await _accepted(frames)
        if first is not None:
            return await _result(frames)
        await _someone_there(bus, app, pool)
        await asyncio.sleep(pause)
        pause = min(1.0, pause * 2)


async def _accepted(frames: asyncio.Queue[Message]) -> Message | None:
    """The accepted frame; None where the worker was busy, nobody was there, or it is frozen."""
    try:
        async with asyncio.timeout(ACCEPT_WITHIN):
            while True:
                frame = await frames.get()
                kind = frame.headers.get(KIND_HEADER, "")
                if kind == ACCEPTED:
                    return frame
                if kind == BUSY or frame.headers.get("Status") == "503":
                    return None
    except TimeoutError:
        return None


async def _someone_there(bus: Bus, app: str, pool: str) -> None:
    """Raises Saturated where the pool has no worker at all: waiting would not help."""
    try:
        await bus.request(subjects.control(app, pool), orjson.dumps({"kind": "status"}), timeout=ACCEPT_WITHIN)
    except Saturated:
        raise Saturated(
            f"pool {pool} has no worker",
            node=pool,
            fix=f"start one: dspex worker {pool}   (or dspex run, which starts all pools)",
        ) from None


async def _result(frames: asyncio.Queue[Message]) -> Outcome:
    while True:
        frame = await frames.get()
        if frame.headers.get(KIND_HEADER) not in (ACCEPTED, BUSY):
            return Outcome.unpack(frame.data)
