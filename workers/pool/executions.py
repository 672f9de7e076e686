"""The calls that a pool is answering."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import telemetry
from dspex.bus.errors import BusError, Cancelled, DspexError, Saturated, WorkerLost
from dspex.bus.records import CallRecord, CallRequest, Usage
from dspex.bus.serving.keys.secret_fields import shown
from dspex.bus.serving.programs.optimizers import OPTIMIZE
from dspex.bus.tasks import Tasks
from dspex.workers.answer import error_map
from dspex.workers.answerers.context import in_logs
from dspex.workers.frames import FurtheredFrame, FurtherFrame
from dspex.workers.journal.cancelled import job_cancelled
from dspex.workers.journal.keeping import Journals, Outdone
from dspex.workers.models.local import LocalModels
from dspex.workers.pool.children.child_process import Child
from dspex.workers.pool.children.supervisor import Supervisor
from dspex.workers.pool.execution import Ended, Execution
from dspex.workers.pool.routing.routes import Routes
from dspex.workers.pool.steps import CallLimits, CallStep
from dspex.workers.pool.telling import Watchers

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

MOST_LEFT = 1000  # calls whose callers have left that are remembered: one may be about to begin
MOST_CALL = 100  # characters of the id of a call that is remembered: who may ask could otherwise fill the memory
MOST_BATCHED = 5_000  # calls that wait for batches: a consumer holds 10,000 that are not acked
DELIVERIES = 10  # work that was delivered more often has killed its workers, parents included


class Executions:
    """Has calls answered: by a step, or by a child of the pool. `worker`: the name that goes into the records.

    No call has a task or a thread here: what happens to it calls what comes next. At thousands of calls a second a task for
    each, with its timeout and its futures, is most of what a call costs.

    Attributes:
        steps: what is asked before a child is.
        preparing: executions that wait for a step; each will want a slot.
        batched: those that wait for a batch.
        routes: which way they went.
        limits: asked while calls run. watchers: told what programs say.
        overtaken: asked where a call gets a child: looks for its record, where others may have answered it meanwhile.
    """

    def __init__(
        self, children: Supervisor, models: LocalModels, worker: str, steps: Sequence[CallStep], journals: Journals
    ) -> None:
        self.children, self.models, self.steps, self.journals = children, models, steps, journals
        self.preparing = self.batched = 0
        self.pool, self.worker = children.config.name, worker
        self.open: dict[Execution, None] = {}
        self.routes = Routes()
        self.limits: CallLimits | None = None
        self.watchers: Watchers | None = None
        self.overtaken: Callable[[Execution], Coroutine[Any, Any, CallRecord | None] | None] = lambda execution: None
        self._going_further: set[Execution] = set()
        self._closed: asyncio.Event | None = None  # set when none is open any more
        self._left: dict[str, int] = {}  # calls that nobody wants any more → up to which attempt: one may not have begun yet
        self.tasks = Tasks(f"calls of {self.pool}")

    def status(self, execution: Execution, text: str) -> None:
        """What the program of a call says: to the log, to who waits for the call, and to who watches its operator."""
        work = execution.work
        log.info("status", pool=self.pool, call=work.call, node=work.node, text=shown(work.spec, text), **self.in_logs(work))
        if execution.telling is not None:
            execution.telling.status(text)
        if self.watchers is not None:
            self.watchers.said(work, shown(work.spec, text))

    def in_logs(self, work: CallRequest) -> dict[str, str]:
        """The span of a call, for lines about it, where spans are made."""
        return in_logs(self.children.config.app, work) if telemetry.listeners else {}

    def watch(self, node: str, reply: str) -> None:
        """Somebody watches an operator, and is told at first what its programs have said last."""
        if self.watchers is not None and self.watchers.watch(node, reply):
            for execution in self.open:
                if execution.said:
                    self.watchers.said(execution.work, shown(execution.work.spec, execution.said), reply)

    def start(
        self,
        work: CallRequest,
        packed: bytes,
        ended: Ended,
        *,
        delivered: int = 1,
        age: float = 0.0,
        at: int = 0,
        only: Child | None = None,
    ) -> Execution:
        """Begin one execution of a call: the steps, then a slot. Its record goes to `ended`. An error is a record too.

        Args:
            packed: the request as it came.
            delivered: how often it was, this time included.
            age: seconds since the request was stored or sent.
            at: the sequence at which it is stored; 0 for one of an interactive call.
            only: the child that is to run it; None: any.
        """
        if telemetry.listeners:
            telemetry.emit("call_started", **self._about(work))
        until = asyncio.get_running_loop().time() + work.left - age
        execution = Execution(self, work, packed, ended, until, at, only)
        execution.again = delivered > 1 or work.try_number > 1
        self.open[execution] = None
        self.batched += execution.batch
        if self.batched > MOST_BATCHED and execution.batch:
            why = f"{MOST_BATCHED:,} calls of pool {self.pool} wait for batches in this process"
            execution.fail(Saturated(why, node=work.node, fix=f"wait, or start more workers: dspex worker {self.pool}"))
        elif delivered > DELIVERIES:
            execution.fail(WorkerLost(f"{delivered - 1} pools took this call and none came back", node=work.node))
        elif work.call in self._left and (work.record is None or work.attempt <= self._left[work.call]):
            execution.fail(_given_up(work))
        else:
            execution.go_on()
        return execution

    def looks_first(self, execution: Execution, child: Child) -> bool:
        """Whether it is to be seen first whether a call that has a child now was answered while it waited for that."""
        if (look := self.overtaken(execution)) is None:
            return False
        self.tasks.start(self._look_first(execution, child, look), "look for a record")
        return True

    async def _look_first(self, execution: Execution, child: Child, look: Coroutine[Any, Any, CallRecord | None]) -> None:
        try:
            found = await look
        except BusError:  # it is not known, and comes again
            execution.outdone_by(Outdone(later=False))
            return
        if found is not None:
            execution.outdone_by(Outdone(later=True))
        elif not execution.over:
            execution.ask(child)

    def over(self, execution: Execution, record: CallRecord) -> None:
        """The end of an execution."""
        del self.open[execution]
        self.batched -= execution.batch
        if self._closed is not None and not self.open:
            self._closed.set()
        if telemetry.listeners:
            telemetry.emit(
                "call_ended",
                **self._about(execution.work),
                route=record.route,
                lm=record.lm,
                seconds=record.elapsed,
                error=(record.error or {}).get("type", ""),
                usage=record.usage,
                routing=record.routing,
            )
        self.routes.count(execution.work, record)
        execution.ended(record)
        for step in reversed(execution.passed):
            step.after(execution, record)

    def cancel(self, call: str, attempt: int = 0) -> None:
        """Stop a call that nobody wants any more; also one that comes later: its request may still be on its way here, from
        another process of the pool, or wait for its worker.

        `attempt`: of a durable call, up to which one: its run is cancelled. 0: an interactive call, whose caller has left; who
        may make calls can say so, so no durable one is stopped for it.
        """
        if len(call) <= MOST_CALL:
            self._left[call] = max(attempt, self._left.pop(call, 0))
            if len(self._left) > MOST_LEFT:
                del self._left[next(iter(self._left))]
        for execution in [e for e in self.open if e.work.call == call and (e.work.record is None or e.work.attempt <= attempt)]:
            execution.give_up(_given_up(execution.work))

    def go_further(self, execution: Execution, frame: FurtherFrame, tell: Callable[[FurtheredFrame], None]) -> None:
        """Have a call's child told whether it may ask the next profile. One at a time: a program may write any frames."""
        if execution not in self._going_further:
            self._going_further.add(execution)
            self.tasks.start(self._go_further(execution, frame, tell), "next profile")

    async def _go_further(self, execution: Execution, frame: FurtherFrame, tell: Callable[[FurtheredFrame], None]) -> None:
        refused: DspexError | None = None
        try:
            used = Usage.read(frame.used) if frame.used is not None else None
            if self.limits is not None and frame.again:
                await self.limits.again(execution, frame.lm)
            elif self.limits is not None:
                await self.limits.further(execution, frame.lm, used)
        except DspexError as error:
            refused = error
        finally:
            self._going_further.discard(execution)
        tell(FurtheredFrame(frame.id, error_map(refused) if refused is not None else None))

    def end_job(self, call: str) -> bool:
        """Cancel the job of an optimizer; whether it runs here. `call`: as who submitted it names it.

        One that has not begun, or is to begin again, is not begun: that is stored, see workers/journal/cancelled.py.
        """
        found = self._jobs(call)
        for execution in found:
            execution.give_up(job_cancelled(execution.work))
        return bool(found)

    def said_of_job(self, call: str) -> str | None:
        """What the job of an optimizer has said last of how it goes; None where it does not run here."""
        return next((execution.said for execution in self._jobs(call)), None)

    def _jobs(self, call: str) -> list[Execution]:
        return [e for e in self.open if _job_of(e.work) == call]

    def hand_back(self) -> None:
        """Let others go on with the calls that wait for batches."""
        for execution in [e for e in self.open if e.batch]:
            execution.hand_back()

    async def drain(self, grace: float) -> None:
        """Wait until none is open; after `grace` seconds have the children give up interactive calls.

        Not durable ones: the work loop gives those up, and hands them back. Who did it here as well would come first now and
        then, and that the pool was stopped would be their record, and one of their attempts.
        """
        try:
            async with asyncio.timeout(grace):
                await self._all_over()
        except TimeoutError:
            self._give_up([execution for execution in self.open if execution.work.record is None])

    async def stop(self) -> None:
        """Wait until the children have given up what is open. Behind `drain`, and when the work loop has ended."""
        self._give_up(list(self.open))
        await self._all_over()
        await self.tasks.stop()

    def _give_up(self, executions: Sequence[Execution]) -> None:
        for execution in executions:
            execution.give_up(WorkerLost("the pool was stopped", node=execution.work.node))

    async def _all_over(self) -> None:
        self._closed = asyncio.Event()
        if self.open:
            await self._closed.wait()

    def _about(self, work: CallRequest) -> dict[str, object]:
        return {"pool": self.pool, "topology": work.topology, "node": work.node, "call": work.call, "attempt": work.attempt}


def _job_of(work: CallRequest) -> str | None:
    """How who submitted it names a job of an optimizer; None for another call."""
    return work.answer.call if work.answer is not None and work.spec.kind == OPTIMIZE else None


def _given_up(work: CallRequest) -> Cancelled:
    return Cancelled("its caller gave it up" if work.record is None else "its run was cancelled", node=work.node)
