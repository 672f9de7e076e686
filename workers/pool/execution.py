"""One execution of a call: a slot, a child, a time limit, and what becomes of a child that does not react."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus.errors import CallTimeout, DspexError, NoBatchAnswer, WorkerLost
from dspex.bus.records import CallRecord, CallRequest, Tried, Usage
from dspex.workers.answer import Answer
from dspex.workers.frames import FurtherFrame, JournalFrame
from dspex.workers.journal.keeping import Journal, Outdone
from dspex.workers.pool.children.child_process import Child, GivenState
from dspex.workers.pool.steps import CallStep, OfCall
from dspex.workers.pool.telling import Telling

if TYPE_CHECKING:
    from dspex.workers.pool.executions import Executions

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

REACT_WITHIN = 2.0  # seconds a child has to give up a call before it is killed

Ended = Callable[[CallRecord], None]


class Execution:
    """One execution of a call, until it has a record.

    Attributes:
        work: the request.
        slots: how many it takes. only: the child that is to run it; None: any.
        ended: gets the record.
        lms: the profiles to try, in order, where a step has chosen; None: those of the request, or the pool's.
        routing: what the steps have decided about profiles. hedge: see CallFrame.
        passed: the steps that let it pass.
        telling: what its caller is told with, before its record; None: nothing is.
        outdone: another attempt at the call goes on: what is made of this one is not recorded.
        state, version: the saved state of its program, where it has one, and its name; see saved_programs.py.
        said: what its program has said last of how it goes; "" for nothing.
        batch: it waits for the answer of a provider's batch, in a child and without a slot, and is not asked live.
        handed_back: somebody else shall go on with it: this one is not recorded. again: there may have been attempts before.
        ended_worker: its process ended, and by nothing else.
        at: the sequence at which its request lies. since, until: accepted, and its deadline, on the clock of the loop.
    """

    def __init__(
        self,
        executions: Executions,
        work: CallRequest,
        packed: bytes,
        ended: Ended,
        until: float,
        at: int,
        only: Child | None = None,
    ) -> None:
        self._all, self.work, self._packed, self.ended, self.until = executions, work, packed, ended, until
        self._loop = asyncio.get_running_loop()
        self._live_at = until - work.left + work.batch
        self.batch = bool(work.batch) and self._loop.time() < self._live_at
        self.slots = 0 if self.batch else executions.children.slots.per_child if work.alone else work.spec.cost
        self.affinity, self.only = work.affinity, None if self.batch else only
        self.handed_back = self._moving = self.again = self.ended_worker = False
        self._child: Child | None = None
        self._number = 0  # of the call in the child; 0: it does not have it
        self._started: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._record: CallRecord | None = None
        self._error: DspexError | None = None  # why it is given up
        self.at, self.since = at, self._loop.time()
        self._journal: Journal | None = None  # where its requests are, once it has made one
        self.outdone: Outdone | None = None
        self.lms: Sequence[str] | None = None
        self.routing: list[Tried] = []
        self.hedge: Mapping[str, float] | None = None
        self.passed: list[CallStep] = []
        self.telling: Telling | None = None
        self.state: GivenState | None = None
        self.said = self.version = ""
        self._to_ask: Iterator[CallStep] = iter(executions.steps[:1] if work.describe else executions.steps)

    # -- the steps
    def go_on(self) -> None:
        """Ask the steps that have not been asked, and then for slots."""
        for step in self._to_ask:
            try:
                found = step.before(self)
            except DspexError as error:
                self.fail(error)
                return
            if found is not None and isinstance(found, Coroutine):  # to ask whether None is one takes long
                self._all.preparing += 1
                self._all.tasks.start(self._ask_step(step, found), "step")
                return
            if not self._goes_on(step, found):
                return
        if self.in_time():
            self._all.children.slots.take(self)

    async def _ask_step(self, step: CallStep, asked: Coroutine[Any, Any, Answer | None]) -> None:
        try:
            found = await asked
        except DspexError as error:
            self.fail(error)
            return
        except asyncio.CancelledError:  # the pool rests, and the call was given up: the step holds nothing for it
            if self._record is not None:
                step.after(self, self._record)
            raise
        finally:
            self._all.preparing -= 1
        if self._record is not None:  # given up meanwhile
            step.after(self, self._record)
        elif self._goes_on(step, found):
            self.go_on()

    def _goes_on(self, step: CallStep, found: Answer | None) -> bool:
        if found is not None:
            self._over(found)
            return False
        self.passed.append(step)
        return True

    # -- what slots say
    def begin(self, child: Child) -> None:
        """It has its slots."""
        self._child, self._started = child, time.time()
        if self.in_time() and not self._all.looks_first(self, child):
            self.ask(child)

    def ask(self, child: Child) -> None:
        """Have its child run it."""
        if (model := self._all.models.needed(self.work, self.lms)) is None:
            self._ask(child, None)
        elif (url := self._all.models.running(model)) is not None:
            self._ask(child, url)
        else:
            self._all.tasks.start(self._ask_with(child, model), "local model")

    def refuse(self, error: DspexError) -> None:
        self.fail(error)

    @property
    def over(self) -> bool:
        """Whether it has its record."""
        return self._record is not None

    @property
    def inherited(self) -> Usage | None:
        """What those before it have cost, of the same try, that ended without a record: its own has it too."""
        return self._journal.inherited if self._journal is not None else None

    @property
    def ran(self) -> float:
        """Seconds since a child got it; 0 where none did."""
        return 0.0 if self._started is None else time.time() - self._started

    # -- what the child says
    def answered(self, answer: Answer) -> None:
        """The child has answered, which it may also do while it is asked to give up: an answer is kept."""
        if self._moving and self._error is None and (answer.error or {}).get("type") == "Cancelled":
            self._elsewhere()
            return
        if self._error is not None and answer.outputs is None:
            answer = answer.given_up(self._error)
        self._over(answer if self._journal is None else self._journal.charged(answer))

    def lost(self, error: WorkerLost, *, known: bool) -> None:
        """The child has ended. What only waited there goes on in another one, where it joins its batch."""
        if self.batch and self._error is None:
            self._elsewhere()
        else:
            self.ended_worker = known and self._error is None
            self.fail(self._error or error)

    def retiring(self) -> None:
        """Its child takes no more calls, and ends when it has none."""
        if self.batch and self._child is not None and not self._moving:
            self._moving = True
            self._child.cancel(self._number)

    def hand_back(self) -> None:
        """Let somebody else wait for the batch: it ends here, and its batch runs on."""
        self.handed_back = True
        self.give_up(WorkerLost("the pool was stopped", node=self.work.node))

    def _elsewhere(self) -> None:
        """Begin again, in another child."""
        if self._journal is not None:
            self._journal.close()
        self._child = self._journal = None
        self._number, self._moving = 0, False
        if self.in_time():
            self._all.children.slots.take(self)

    def status(self, text: str) -> None:
        """What the program says."""
        self.said = text
        self._all.status(self, text)

    def chunk(self, field: str, text: str) -> None:
        """What the model writes."""
        if self.telling is not None:
            self.telling.chunk(field, text)

    def journal(self, frame: JournalFrame) -> None:
        """The program makes a request, or has made one."""
        if self.work.record is None or self._child is None:
            return  # the child would not ask
        if self._journal is None:
            tell, limits = self._child.tell, OfCall(self._all.limits, self) if self._all.limits is not None else None
            self._journal = Journal(self._all.journals, self.work, self.at, tell, self.outdone_by, limits, self.version)
        self._journal.take(frame)

    def further(self, frame: FurtherFrame) -> None:
        """Its profile cannot be had, and it wants to ask the next one."""
        if self._child is not None:
            self._all.go_further(self, frame, self._child.tell)

    def outdone_by(self, other: Outdone) -> None:
        """Somebody else answers it, or has."""
        self.outdone = other
        self.give_up(WorkerLost("another attempt at the call goes on", node=self.work.node))

    # -- the end
    def fail(self, error: DspexError) -> None:
        """End with an error."""
        answer = Answer.failed(error, self._all.children.hello.dspy_version, started=self._started)
        self._over(answer if self._journal is None else self._journal.charged(answer, lost=True))

    def in_time(self) -> bool:
        """Whether its deadline is still to come; else it has failed."""
        if self._loop.time() < self.until:
            return True
        self.fail(CallTimeout("its deadline passed before a worker was free", node=self.work.node))
        return False

    def _over(self, answer: Answer) -> None:
        if self._record is not None:
            return  # it has ended already
        record = answer.record(self.work, self._all.worker, self.version)
        self._record = record = replace(record, routing=[*self.routing, *record.routing]) if self.routing else record
        if self._journal is not None:
            self._journal.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._child is not None:
            self._all.children.slots.vacate(self._child, self.slots)
        self._all.over(self, record)

    def _ask(self, child: Child, local: str | None) -> None:
        now = self._loop.time()
        limit = self._live_at - now if self.batch else min(self.work.timeout, self.until - now)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, limit) + REACT_WITHIN * self.batch, self._late, limit)
        self._number = child.call(self._packed, local, self, self.lms, limit, self.state, self.hedge, batch=self.batch)

    async def _ask_with(self, child: Child, model: str) -> None:
        """The same with a local model, whose server has to be started first."""
        try:
            url = await self._all.models.url(model)
        except DspexError as error:
            self.fail(error)
        else:
            if self._record is None:
                self._ask(child, url)

    def _late(self, limit: float) -> None:
        why = f"no answer within {limit:.1f} s"
        node = self.work.node
        self.give_up(NoBatchAnswer(why, node=node) if self.batch else CallTimeout(why, node=node))

    def give_up(self, error: DspexError) -> None:
        """Stop it: it ends with this error, unless its answer is on its way.

        The child is asked to, and killed if it does not react, which ends its other calls in WorkerLost.
        """
        if self._child is None or not self._number:
            self._all.children.slots.leave(self)
            self.fail(error)
            return
        if self._error is not None:
            return  # the child is asked to already: who asks again and again must not put off its end
        if self._timer is not None:
            self._timer.cancel()
        self._error = error
        self._child.cancel(self._number, over=not isinstance(error, WorkerLost))
        self._timer = self._loop.call_later(REACT_WITHIN, self._unmoved, self._child)

    def _unmoved(self, child: Child) -> None:
        log.error("worker does not react, killing it", pool=self._all.pool, pid=child.pid, calls=child.busy)
        child.kill("it did not react when a call was to end")
