"""A pool's parent process: takes work from the bus and has it run in children. Never runs a program itself.

So nothing that a program does, not even in C with the GIL held, can stop the signs of life that keep its work from being
given to somebody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any, Literal

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus.errors import BusError, CallTimeout, DspexError, Fenced, WorkerLost
from dspex.bus.message import new_id
from dspex.bus.port import Bus, Delivery, Subscription
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.keys.clear_text import need_none
from dspex.bus.serving.keys.signatures import keys_of
from dspex.bus.serving.record_store import RecordStore
from dspex.bus.serving.work_loop import HANDED_BACK, PASSED_ON, SIGN_OF_LIFE, Job, WorkLoop
from dspex.bus.tasks import Tasks, patiently
from dspex.workers.answer import Answer
from dspex.workers.config import PoolConfig, check_keys
from dspex.workers.journal.cancelled import CancelledJobs
from dspex.workers.journal.keeping import Journals
from dspex.workers.limits.step import Limits
from dspex.workers.models import weights
from dspex.workers.models.local import LocalModels
from dspex.workers.pool.cache.caching import Caching
from dspex.workers.pool.cache.shared import SharedAnswers
from dspex.workers.pool.children.child_process import Child
from dspex.workers.pool.children.handing import HandedCall, Handing
from dspex.workers.pool.children.holding import Holding
from dspex.workers.pool.children.managing import Managing
from dspex.workers.pool.children.scaling import Scaling
from dspex.workers.pool.children.supervisor import Supervisor
from dspex.workers.pool.execution import Execution
from dspex.workers.pool.executions import Executions
from dspex.workers.pool.interactive import Interactive
from dspex.workers.pool.routing.routing import Routing
from dspex.workers.pool.saved_programs import SavedPrograms
from dspex.workers.pool.service import PoolService
from dspex.workers.pool.status import PoolStatus
from dspex.workers.pool.steps import CallStep, SecretFields
from dspex.workers.pool.telling import Watchers

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

LAST_WORDS = 1.0  # seconds for the results and records of the interactive calls that end last


class Pool:
    """The workers of one pool on this machine.

    Args:
        bus: an open connection; it stays the caller's.
        config: see `dspex.workers.config.resolve`. Raises ConfigError (DX112) where the key that signs records is not set.
        sign_of_life: seconds between two signs.

    Attributes:
        id: of this pool process. `worker`: the name that goes into its records.
        children, executions, models: who answers calls. steps: what is asked before them.
        saved: the first one, which finds the saved state of a program. routing: the one that chooses the models.
        journals: of the requests inside calls.
        work: the loop that serves durable calls; `interactive` serves the others.
        limits: of profiles, and budgets: the last one, which knows what was chosen.
        status: answers questions about the pool. service: those that any NATS service is asked.
        handing: which process, or which child, answers the calls of a key.
        scaling: how many children there are. managing: does what operators ask.
        draining: it takes nothing more; of one that an operator drained, until `renew`.
    """

    def __init__(self, bus: Bus, config: PoolConfig, *, sign_of_life: float = SIGN_OF_LIFE) -> None:
        self.bus, self.config = bus, config
        self.id = new_id()[-12:]
        self.worker = f"{config.name}-{self.id}"
        self.draining = False
        self.children = Supervisor(config, self._fail)
        self.models = LocalModels(config)
        self.routing = Routing(config, asyncio.get_running_loop().time)
        self.saved = SavedPrograms(bus, config.app, config.name)
        self.steps: list[CallStep] = [self.saved, self.routing, CancelledJobs(bus, config.app, config.name)]
        self.journals = Journals(bus, config.app, config.name, config.claim_check_above)
        self.executions = Executions(self.children, self.models, self.worker, self.steps, self.journals)
        keys = keys_of(config.name, config.hmac_key_env)
        self.records = RecordStore(bus, config.app, config.name, config.claim_check_above, keys)
        self.work = WorkLoop(
            bus,
            config.app,
            config.name,
            self._accept,
            free=self.free,
            failed=self._fail,
            records=self.records,
            sign_of_life=sign_of_life,
        )
        self.executions.watchers = Watchers(bus)
        self.limits = Limits(bus, config, self.id, self.work.clock)
        self.steps.append(self.limits)
        self.executions.limits = self.limits
        self.executions.overtaken = self._overtaken
        shared = SharedAnswers(bus, config.app, config.name, self.work.clock, keys)
        dspy, generation = (lambda: self.children.hello.dspy_version), (lambda: self.children.generation)
        self.cache = Caching(config, shared, dspy, generation, sealed=bus.sealing is not None)
        # behind the saved states: which one a program has is a part of what is equal
        self.steps[1:1] = SecretFields(bus), self.cache
        self.interactive = Interactive(self)
        self.children.slots.freed = self._freed
        self.status = PoolStatus(self)
        self.service = PoolService(self)
        self.scaling = Scaling(bus, config, self.id, self.children.resize, self._load, self._fail)
        self.managing = Managing(self)
        self.handing = Handing(self, Holding(self))
        self._tasks = Tasks(f"pool {config.name}", lambda name, error: self._fail(error))
        self._control: Subscription | None = None
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Start the children and begin to take work. Raises ConfigError, BusError."""
        check_keys(self.config)
        sealing, app = self.bus.sealing, self.config.app
        verify = sealing.verify if sealing is not None else partial(need_none, self.bus, app)
        await patiently(verify, lambda why: log.warning("waiting for the server", pool=self.config.name, why=why))
        size = await self.scaling.begin()
        profile = self.config.default_profile()
        if profile is not None and profile.local:
            await asyncio.to_thread(weights.require, profile.model)  # before processes are started in vain
            await asyncio.gather(self.children.start(size), self.models.url(profile.name))
        else:
            await self.children.start(size)
        self._control = await self.status.subscribe()
        await self.service.start()
        await self.limits.start()
        await self.managing.start()
        await self.handing.start()
        self.work.start()
        self.scaling.start()
        await self.interactive.group.settle()  # who reads that it is ready may call at once
        self._tasks.start(self.interactive.group.run(), "interactive calls")
        log.info("pool ready", **self.status.summary())

    async def drain(self, grace: float) -> None:
        """Take nothing more, let what runs finish within `grace` seconds, hand the rest back, end the children."""
        self.draining = True
        end = asyncio.get_running_loop().time() + grace
        await asyncio.gather(self.managing.stop(), self.handing.stop())
        await self._tasks.stop()
        await asyncio.gather(
            self.scaling.stop(), self.work.drain(grace, self.executions.hand_back), self.executions.drain(grace)
        )
        await self.executions.stop()
        left = max(LAST_WORDS, end - asyncio.get_running_loop().time())
        await asyncio.gather(self.interactive.drain(left), self.records.drain(left), self.cache.drain(left))
        await self.work.turns.stop()
        if self._control is not None:
            await self._control.close()
        await self.service.stop()
        await self.limits.stop()
        await self.children.stop()
        await self.journals.tasks.stop()
        await self.models.stop()
        log.info("pool stopped", pool=self.config.name, served=self.served)

    async def rest(self, grace: float) -> None:
        """Take nothing more, let what runs finish within `grace` seconds, hand the rest back, and have no children, until
        `renew`. The process stays: whoever starts it again when it ends would undo this.
        """
        self.draining = self.scaling.resting = True
        self.children.slots.freed()  # so that it leaves the queue group
        await self.service.stop()
        await asyncio.gather(self.work.drain(grace, self.executions.hand_back), self.executions.drain(grace))
        await self.executions.stop()
        await self.scaling.look()

    async def renew(self) -> None:
        """Replace the children by others, which have imported everything anew, and take calls again after `rest`. No call
        fails for it. Raises WorkerLost where one does not start.
        """
        await self.children.restart()
        if self.draining:
            self.draining = self.scaling.resting = False
            await self.scaling.look()
            self.work.start()
            await self.service.start()
            self.children.slots.freed()

    def _load(self) -> tuple[int, int]:
        """Slots that are taken, and calls that wait for one or were sent away since this was asked last.

        Calls that wait for batches take none, and count as one: they need a process.
        """
        slots = self.children.slots
        return max(slots.busy, int(self.executions.batched > 0)), slots.waiting + self.interactive.sent_away()

    def _fail(self, error: BaseException) -> None:
        """A task that the pool cannot do without has died: a process that only looks healthy must not go on."""
        log.error("a part of the pool failed", pool=self.config.name, exc_info=error)
        if not self._failed.done():
            failure = WorkerLost(f"pool {self.config.name}: a part of it failed: {error!r}", node=self.config.name)
            failure.__cause__ = error
            self._failed.set_exception(failure)
            self._failed.exception()  # so that asyncio does not warn where nobody waits

    async def failed(self) -> None:
        """Wait until a part of the pool fails, which is a bug of dspex. Raises WorkerLost: who runs the pool starts it anew."""
        await asyncio.shield(self._failed)

    # -- work ------------------------------------------------------------------------------------------------------
    def free(self) -> int:
        """How many more calls may be accepted.

        0 while the records that are not stored yet exceed the slots: before a full stream each call would add one more, and
        calls would be paid for whose records may be lost.
        """
        slots = self.children.slots
        if self.draining or self.records.pending > slots.total:
            return 0
        return max(0, slots.free - self.executions.preparing)

    @property
    def served(self) -> int:
        """Calls that were answered here, whether somebody waits for them or an engine."""
        return self.work.served + self.service.requests

    def _freed(self) -> None:
        if self.draining or not self.interactive.group.joined:  # else it has nothing to do for one more that is free
            self.interactive.group.look()
        self.work.freed()

    def _accept(self, work: CallRequest, delivery: Delivery) -> Job:
        if self.handing.decides(work):
            return partial(self._placed, work, delivery)
        return self._answering(work, delivery, None).record

    def accept_handed(self, work: CallRequest, delivery: Delivery) -> Job:
        """The same for a call that another process has given to this one."""
        return partial(self._placed, work, delivery) if work.required else self._answering(work, delivery, None).record

    async def _placed(self, work: CallRequest, delivery: Delivery) -> CallRecord | Literal["passed on", "handed back"] | None:
        """Have the call answered where it belongs."""
        left = work.left - self.work.clock.age(delivery.message.time)
        self.executions.preparing += 1
        try:
            until = asyncio.get_running_loop().time() + left
            place = await self.handing.place(work, HandedCall.of(delivery.message, delivery.token), until)
        except BusError:
            raise
        except (DspexError, TimeoutError) as error:
            late = CallTimeout("the worker that it requires was not free in time", node=work.node)
            failed = Answer.failed(late if isinstance(error, TimeoutError) else error, self.children.hello.dspy_version)
            return failed.record(work, self.worker)
        finally:
            self.executions.preparing -= 1
        return PASSED_ON if place == PASSED_ON else await self._answering(work, delivery, place).record()

    def _overtaken(self, execution: Execution) -> Coroutine[Any, Any, CallRecord | None] | None:
        """Looks for the record of a durable call that waited here while this process stood still; None for any other."""
        waited = execution.work.record is not None and self.work.stillness.woke() > execution.since
        return self.records.found(execution.work, execution.at) if waited else None

    def _answering(self, work: CallRequest, delivery: Delivery, only: Child | None) -> _Answering:
        return _Answering(self.executions, work, delivery, self.work.clock.age(delivery.message.time), only)


class _Answering:
    """A durable call that is being answered, from when it is accepted: its slot counts from then on."""

    def __init__(self, executions: Executions, work: CallRequest, delivery: Delivery, age: float, only: Child | None) -> None:
        self._over = asyncio.Event()
        self._record: CallRecord | None = None
        message, delivered = delivery.message, delivery.delivered
        at, packed = message.sequence, message.data if work.turn is None else work.pack()  # its history was filled
        self._execution = executions.start(work, packed, self._ended, delivered=delivered, age=age, at=at, only=only)

    async def record(self) -> CallRecord | Literal["handed back"] | None:
        """Its record, when it has one. Cancelled, it first has the child give the call up: it is handed back after that.

        None where a later request for the call is served: nobody waits for this one. Raises Fenced where the same request is,
        by somebody else: this process must not ack it. HANDED_BACK where somebody else shall go on with it.
        """
        try:
            await self._over.wait()
        except asyncio.CancelledError:
            self._execution.give_up(WorkerLost("the pool was stopped"))
            await self._over.wait()
            raise
        if (outdone := self._execution.outdone) is not None and not outdone.later:
            raise Fenced("somebody else serves this request")
        if self._execution.handed_back:
            return HANDED_BACK
        return self._record if outdone is None else None

    def _ended(self, record: CallRecord) -> None:
        self._record = record
        self._over.set()
