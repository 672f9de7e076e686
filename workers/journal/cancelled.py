"""The step that ends a job of an optimizer which somebody has cancelled, whenever and wherever it is to begin.

That is stored beside the journals, because nobody may be there to be told: no process of the pool, or another one than runs the
next attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import structlog

from dspex.bus import subjects
from dspex.bus.errors import BusError, Cancelled
from dspex.bus.port import Bus
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.seldom import Seldom
from dspex.bus.serving.programs.optimizers import OPTIMIZE
from dspex.workers.answer import Answer
from dspex.workers.journal.keeping import PAUSES

if TYPE_CHECKING:
    from dspex.workers.pool.execution import Execution

log = structlog.get_logger("dspex.workers")


def job_cancelled(work: CallRequest) -> Cancelled:
    """What such a job ends in."""
    return Cancelled("somebody cancelled the job", node=work.node)


class CancelledJobs:
    """Knows which jobs of a pool are cancelled."""

    def __init__(self, bus: Bus, app: str, pool: str) -> None:
        self._bus, self._app, self._pool = bus, app, pool
        self._seldom = Seldom(log)

    def before(self, execution: Execution) -> Coroutine[Any, Any, Answer | None] | None:
        """See CallStep."""
        work = execution.work
        return self._look(work, work.answer.call) if work.answer is not None and work.spec.kind == OPTIMIZE else None

    def after(self, execution: Execution, record: CallRecord) -> None:
        """See CallStep."""

    async def _look(self, work: CallRequest, call: str) -> None:
        """Raises Cancelled. Until the bus says whether it is, it is not begun: the call's own time ends that."""
        stream, pause = subjects.requests(self._app), PAUSES[0]
        while True:
            try:
                if await self._bus.last(stream, subjects.job_end(self._app, self._pool, call)) is not None:
                    raise job_cancelled(work)
                return
            except BusError as error:
                if not error.retryable:
                    raise
                self._seldom.warning("nobody knows whether a job is cancelled", pool=self._pool, why=error.message)
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSES[1])
