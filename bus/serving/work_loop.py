"""The worker loop: take work, have it answered, store the record, then ack. Pools and their stand-ins in tests share it.

This order loses nothing. A process that dies before the ack leaves work that is delivered again. The record of the
second answer has the same id, and the bus does not store it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Literal

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import subjects, tasks
from dspex.bus.errors import BusError, DataError
from dspex.bus.port import Bus, Delivery, WorkQueue
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving import payloads
from dspex.bus.serving.record_store import RecordStore
from dspex.bus.serving.sayings import AnswerStore
from dspex.bus.serving.server_clock import STILL, ServerClock, Stillness
from dspex.bus.serving.sessions.turns import Turns
from dspex.bus.serving.shares import Charge, Shares, tokens_of
from dspex.bus.tasks import Tasks

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

SIGN_OF_LIFE: Final = 5.0
OPEN_AGAIN: Final = 1.0  # seconds between two tries to open the work queue
ASK_TIME: Final = 10.0  # seconds between two questions for the server's time

PASSED_ON: Final = "passed on"  # another process has the work now
HANDED_BACK: Final = "handed back"  # somebody else is to be given it
Job = Callable[[], Awaitable[CallRecord | Literal["passed on", "handed back"] | None]]  # None: there is no record to store
Accept = Callable[[CallRequest, Delivery], Job]


class WorkLoop:
    """Serves the durable calls of one pool.

    Args:
        bus: an open connection; it stays the caller's.
        accept: called at once with each piece of work that was taken. What it returns answers the work, in a task of its own.
        free: how many more pieces of work may start now; asked before work is taken.
        failed: called with an error that the loop cannot go on after: a bug. records: where they go; a store of its own, else.
        sign_of_life: seconds between two signs. sessions: whether a call that is to be a turn waits for it, and becomes one.

    Attributes:
        calls: the tasks that answer; their owner may start more, and `drain` waits for those too.
        served: pieces of work that are answered and acked.
        refused: requests that nobody who knows dspex could have sent, and that were not run.
        clock: tells how long ago work was stored. answers: of submitted calls. turns: of sessions. stillness: of this process.
    """

    def __init__(
        self,
        bus: Bus,
        app: str,
        pool: str,
        accept: Accept,
        *,
        free: Callable[[], int],
        failed: Callable[[BaseException], None],
        records: RecordStore | None = None,
        sign_of_life: float = SIGN_OF_LIFE,
        sessions: bool = True,
    ) -> None:
        self.bus, self.app, self.pool = bus, app, pool
        self._accept, self._free, self._sessions = accept, free, sessions
        self.records = records or RecordStore(bus, app, pool)
        self.answers = AnswerStore(bus, app, pool)
        self.turns = Turns(bus, app)
        self._sign_of_life = sign_of_life
        self.served = self.refused = 0
        self.clock = ServerClock(bus, subjects.stream(app))
        self.calls = Tasks(
            f"calls of {pool}", lambda name, error: log.error("a call was not served", pool=pool, exc_info=error)
        )
        self._loops = Tasks(f"work of {pool}", lambda name, error: failed(error))
        self._taking: list[asyncio.Task[None]] = []
        self._queues: dict[int, WorkQueue] = {}  # band → what is open of it
        self._shares = {band: Shares() for band in subjects.BANDS if not subjects.is_behind(band)}
        self._found = {band: asyncio.Event() for band in subjects.BANDS}  # its consumer has been there
        self._looking = 0  # pieces of work whose record is being looked for
        self._held: dict[Delivery, None] = {}  # taken and not settled, in the order in which they came
        self.stillness = Stillness(sign_of_life)

    def start(self) -> None:
        """Begin to take work; also after `drain`."""
        self._taking = [self._loops.start(self._take(band), f"take {band}") for band in subjects.BANDS]
        self.stillness.begin()
        self._loops.start(self._signs_of_life(), "signs of life")
        self._loops.start(self._ask_time(), "time")

    async def drain(self, grace: float, closed: Callable[[], None] = lambda: None) -> None:
        """Take nothing more, let the calls end within `grace` seconds, and hand the rest back to the bus. `closed`: called when
        nothing more is taken.
        """
        await tasks.cancel(self._taking)
        for queue in list(self._queues.values()):
            await queue.close()
        self._queues.clear()
        closed()
        if self.calls:
            log.info("pool drains", pool=self.pool, calls=len(self.calls), grace=grace)
            await self.calls.finish(grace)
            await self.answers.hurry()
        await self.calls.stop()
        await self.answers.stop()
        await self._loops.stop()
        for delivery in self._held:
            await self._hand_back(delivery)
        self._held.clear()

    async def kill(self) -> None:
        """Stop as a killed process does: nothing is handed back, and what was taken comes again after `ack_wait`."""
        await self._loops.stop()
        await self.calls.stop()
        await self.answers.stop()
        await self.records.drain(0)

    def freed(self) -> None:
        """There is room for more: have it asked for now, and not when a record is stored and its work acked."""
        for queue in (queue for queue in self._queues.values() if not queue.dry):
            queue.ask_for_more()

    # -- taking work -----------------------------------------------------------------------------------------------
    async def _take(self, band: int) -> None:
        """Take work of a band for ever. Its consumer may not be there yet: engines make it, and it is waited for."""
        reported, front = "", subjects.front_of(band)
        first = subjects.side_queues(front)[0]
        if band != front:  # engines make them together, and older ones the first one only: it is enough to look for that
            await self._found[front if band == first else first].wait()
        while True:
            try:
                if not self.clock.known:  # before any work is taken, because work counts its time from when it was stored
                    await self.clock.ask()
                queue = await self.bus.work(
                    subjects.stream(self.app),
                    name=subjects.work_consumer(self.pool, band),
                    free=lambda: self._free_for(band),
                )
                reported = ""
                if queue is not None:
                    self._found[band].set()
                    await self._take_from(queue, band)
            except BusError as error:
                if error.message != reported:
                    log.warning("cannot take work, trying again", pool=self.pool, why=error.message)
                reported = error.message
            await asyncio.sleep(OPEN_AGAIN)

    def _free_for(self, band: int) -> int:
        """How many calls of a band may start: none while more urgent work is known to wait. Where calls wait in several queues
        of one priority, one at a time: of the queue whose turn it is, and of those in which none is known to wait.
        """
        front = subjects.front_of(band)
        if any(subjects.front_of(other) < front and not queue.dry for other, queue in self._queues.items()):
            return 0
        free, waiting = max(0, self._free() - self._looking), self._waiting(front)
        if band in waiting:
            turn = waiting == [band] or self._shares[front].first(waiting) == band
            return (free if waiting == [band] else min(free, 1)) if turn else 0
        return min(free, 1) if waiting or band != front else free

    def _waiting(self, front: int) -> list[int]:
        """The bands of a priority in which calls are known to wait."""
        return [band for band, queue in self._queues.items() if subjects.front_of(band) == front and not queue.dry]

    async def _take_from(self, queue: WorkQueue, band: int) -> None:
        """Take work until the queue fails, and close it then: what it holds goes to others now, not after `ack_wait`."""
        self._queues[band] = queue
        try:
            while True:
                await self._begin(await queue.next())
        except BusError:
            del self._queues[band]
            await queue.close()
            raise

    async def _ask_time(self) -> None:
        while True:
            await asyncio.sleep(ASK_TIME)
            try:
                await self.clock.ask()
            except BusError as error:
                log.debug("the server did not tell the time", pool=self.pool, error=error.message)

    async def _signs_of_life(self) -> None:
        while True:
            await asyncio.sleep(self._sign_of_life)
            self.stillness.woke()
            for delivery in list(self._held):
                try:
                    await delivery.in_progress()
                except BusError as error:
                    log.warning("no sign of life sent", pool=self.pool, error=error.message)

    def _stood_still(self) -> bool:
        """Whether this process was stopped a moment ago: what it has just read may have been given to others meanwhile."""
        return asyncio.get_running_loop().time() - self.stillness.woke() < STILL

    # -- one piece of work -----------------------------------------------------------------------------------------
    async def adopt(self, delivery: Delivery, accept: Accept) -> None:
        """Serve a piece of work that another process had, and has given to this one. Raises BusError."""
        await self._begin(delivery, accept)

    async def _begin(self, delivery: Delivery, accept: Accept | None = None) -> None:
        self._held[delivery] = None
        try:
            whole = await payloads.checked_out(self.bus, self.app, delivery.message)
            request = CallRequest.unpack(whole.data) if whole else payloads.named_in_headers(self.app, delivery.message)
            self.records.check(request)
        except DataError as error:
            call = self._drop(delivery, error)
        except BusError:
            del self._held[delivery]  # with signs of life from here, it would never come again
            raise
        else:
            delivery.message = whole or delivery.message
            take, age = accept or self._accept, self.clock.age(delivery.message.time)
            take = take if request.turn is None or not self._sessions else self.turns.taking(self.pool, take, age)
            accepted = partial(take if whole else _without_payload, request, delivery)
            looks = delivery.delivered > 1 or self._stood_still()
            job = partial(self._again, request, delivery, accepted) if looks else accepted()
            band = subjects.band_of(self.app, self.pool, delivery.message.subject) or 0
            front = subjects.front_of(band)
            charge = self._shares[front].took(band, request.tenant, self._waiting(front))
            call = self._serve(delivery, request, job, charge)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():  # a cancelled call is still held: `drain` hands it back
                self._held.pop(delivery, None)

        self.calls.start(call, "work").add_done_callback(ended)

    async def _again(
        self, request: CallRequest, delivery: Delivery, accepted: Callable[[], Job]
    ) -> CallRecord | Literal["passed on", "handed back"] | None:
        """Answer work that was delivered before, unless its record is stored: who stored it died before the ack, and perhaps
        before the answer.
        """
        self._looking += 1  # until it is accepted it has no slot, and nobody else is to be given it
        try:
            found = await self.records.found(request, delivery.message.sequence)
        finally:
            self._looking -= 1
        if found is None:
            return await accepted()()
        await self.answers.give(found, request)
        return None

    async def _serve(self, delivery: Delivery, request: CallRequest, job: Job, charge: Charge) -> None:
        made: CallRecord | None = None
        try:
            try:
                record = await job()
                made = record if isinstance(record, CallRecord) else None
            finally:
                self._settle(charge, made)
            if record == PASSED_ON:
                return
            if record == HANDED_BACK:
                await self._hand_back(delivery)
                return
            if record is not None and (stored := await self.records.store(record, request)) is not None:
                await self.answers.give(stored, request)
            await delivery.ack()
            self.served += 1
        except BusError as error:
            log.warning("work not settled; it will come again", pool=self.pool, error=error.message)

    def _settle(self, charge: Charge, record: CallRecord | None) -> None:
        """A call is over here: there is room for one of the band whose turn it is now, which need not be that of the call.
        Without a record it has used nothing: another process goes on with it.
        """
        front, answered = subjects.front_of(charge.queue), record is not None and record.error is None
        self._shares[front].settle(charge, tokens_of(record) if record is not None else 0.0, answered=answered)
        if len(waiting := self._waiting(front)) > 1:
            self._queues[self._shares[front].first(waiting)].ask_for_more()

    async def _drop(self, delivery: Delivery, error: DataError) -> None:
        """No engine wrote it, so no call waits for it."""
        self.refused += 1
        log.error("unreadable work dropped", pool=self.pool, subject=delivery.message.subject, why=error.message)
        await delivery.ack()

    async def _hand_back(self, delivery: Delivery) -> None:
        try:
            await delivery.nak()
        except BusError as error:
            log.warning("work not handed back; it will come again", pool=self.pool, error=error.message)


def _without_payload(request: CallRequest, delivery: Delivery) -> Job:
    """Give the record of a call that nobody can make any more, so that its event need not wait for the deadline."""
    return partial(asyncio.sleep, 0.0, CallRecord.of(request, error=payloads.gone(request.node).as_dict()))
