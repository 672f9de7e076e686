"""One attempt at a call: a slot, a child, a time limit, and what becomes of a child that does not react."""

from __future__ import annotations

import asyncio
import time

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import telemetry
from dspex.bus.errors import CallTimeout, DspexError, WorkerLost
from dspex.bus.records import CallRecord, CallRequest
from dspex.workers.answer import Answer
from dspex.workers.models.local import LocalModels
from dspex.workers.pool.child_process import Child
from dspex.workers.pool.slots import Reservation
from dspex.workers.pool.supervisor import Supervisor

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

REACT_WITHIN = 2.0  # seconds a child has to give up a call before it is killed
DELIVERIES = 10  # work that was delivered more often has killed its workers, parents included


class Attempts:
    """Has calls answered by the children of one pool. `worker`: the name that goes into the records."""

    def __init__(self, children: Supervisor, models: LocalModels, worker: str) -> None:
        self._children, self._models = children, models
        self._pool, self._worker = children.config.name, worker

    async def run(
        self, work: CallRequest, packed: bytes, reservation: Reservation, *, delivered: int = 1, age: float = 0.0
    ) -> CallRecord:
        """One execution of a call, from waiting for a slot to its record. An error is a record too.

        Args:
            age: seconds since the request was stored or sent.
        """
        about = {"pool": self._pool, "topology": work.topology, "node": work.node, "call": work.call, "attempt": work.attempt}
        telemetry.emit("call_started", **about)
        record = await self._record(work, packed, reservation, delivered, age)
        telemetry.emit(
            "call_ended",
            **about,
            route=record.route,
            lm=record.lm,
            seconds=record.elapsed,
            error=(record.error or {}).get("type", ""),
            usage=record.usage,
        )
        return record

    async def _record(
        self, work: CallRequest, packed: bytes, reservation: Reservation, delivered: int, age: float
    ) -> CallRecord:
        started: float | None = None
        until = asyncio.get_running_loop().time() + work.left - age
        try:
            if delivered > DELIVERIES:
                raise WorkerLost(f"{delivered - 1} pools took this call and none came back", node=work.node)
            _check_deadline(work, until)
            child = await reservation.child()
            started = time.time()
            _check_deadline(work, until)
            answer = await self._run_in(child, work, packed, until, await self._models.url_for(work))
        except DspexError as error:
            return self.failed(work, error, started)
        return answer.record(work, self._worker)

    def failed(self, work: CallRequest, error: DspexError, started: float | None = None) -> CallRecord:
        """The record of an attempt that no child answered. `started`: when a child got it; None: none ever did."""
        answer = Answer.failed(error, self._children.hello.dspy_version, started=started)
        return answer.record(work, self._worker)

    async def _run_in(self, child: Child, work: CallRequest, packed: bytes, until: float, local: str | None) -> Answer:
        number, future = child.call(packed, local, lambda text: self._log_status(work, text))
        limit = min(work.timeout, until - asyncio.get_running_loop().time())
        try:
            await asyncio.wait([future], timeout=limit)
        except asyncio.CancelledError:
            await self._give_up(child, number, future)
            raise
        if future.done():
            return future.result()
        await self._give_up(child, number, future)
        if future.exception() is None and future.result().outputs is not None:
            return future.result()  # the result arrived while the call was being cancelled: keep it
        raise CallTimeout(f"no answer within {limit:.1f} s", node=work.node)

    async def _give_up(self, child: Child, number: int, future: asyncio.Future[Answer]) -> None:
        """Ask the child to stop the call; kill it if it does not react, which ends its other calls in WorkerLost."""
        child.cancel(number)
        await asyncio.wait([future], timeout=REACT_WITHIN)
        if not future.done():
            log.error("worker does not react, killing it", pool=self._pool, pid=child.pid, calls=child.busy)
            child.kill()
            await asyncio.wait([future])

    def _log_status(self, work: CallRequest, text: str) -> None:
        log.info("status", pool=self._pool, call=work.call, node=work.node, text=text)


def _check_deadline(work: CallRequest, until: float) -> None:
    if asyncio.get_running_loop().time() >= until:
        raise CallTimeout("its deadline passed before a worker was free", node=work.node)
