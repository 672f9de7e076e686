"""The worker loop: take work, have it answered, store the record, then ack. Pools and their stand-ins in tests share it.

This order loses nothing. A process that dies before the ack leaves work that is delivered again. The record of the
second answer has the same id, and the bus does not store it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import subjects, tasks
from dspex.bus.errors import BusError, DecodeError, OutputTooLarge
from dspex.bus.port import Bus, Delivery, NewMessage, WorkQueue
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.tasks import Tasks

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

ACK_WAIT: Final = 15.0
SIGN_OF_LIFE: Final = 5.0
OPEN_AGAIN: Final = 1.0  # seconds between two tries to open the work queue
STORE_AGAIN: Final = 10.0  # seconds until work whose record the bus refuses is delivered again
MESSAGE_ROOM: Final = 4096  # bytes of a message kept for headers

Job = Callable[[], Awaitable[CallRecord | None]]  # None: there is no record to store, and the work is done
Accept = Callable[[CallRequest, Delivery], Job]


class RecordStore:
    """Stores the records of calls in the stream. `pending`: how many the bus has not taken yet."""

    def __init__(self, bus: Bus, app: str, pool: str) -> None:
        self.bus, self.app, self.pool = bus, app, pool
        self.pending = 0

    async def store(self, record: CallRecord, request: CallRequest) -> bool:
        """Store the record where its request says; False if the bus refuses it for good.

        Tries again for as long as the bus may still take it.
        """
        to = request.record
        if to is None:
            subject, id = subjects.interactive_record(self.app, self.pool), f"{request.call}.{request.try_number}"
        else:
            subject, id = to.subject, to.id
            record = replace(record, number=to.number, event=to.event)
        message = NewMessage(subject, self._sized(record), {subjects.MESSAGE_ID: id, subjects.RUN: request.run})
        self.pending += 1
        try:
            return await self._publish(message, request.call)
        finally:
            self.pending -= 1

    async def _publish(self, message: NewMessage, call: str) -> bool:
        pause = 0.1
        while True:
            try:
                await self.bus.publish(message)
                return True
            except BusError as error:
                log.warning("record not stored", pool=self.pool, call=call, error=error.message)
                if not error.retryable:
                    return False
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    def _sized(self, record: CallRecord) -> bytes:
        """The packed record. One that no message can hold becomes a short error that says so."""
        data = record.pack()
        room = self.bus.max_payload - MESSAGE_ROOM
        if len(data) <= room:
            return data
        too_large = f"{record.node}: the answer has {len(data)} bytes, and a message holds {room}"
        error = record.error or OutputTooLarge(too_large, node=record.node).as_dict()
        short = {**error, "message": str(error["message"])[:200], "traceback": ""}
        return replace(record, outputs=None, error=short).pack()


class WorkLoop:
    """Serves the durable calls of one pool.

    Args:
        bus: an open connection; it stays the caller's.
        accept: called at once with each piece of work that was taken. What it returns answers the work, in a task of its own.
        free: how many more pieces of work may start now; asked before work is taken.
        failed: called with an error that the loop cannot go on after, which is a bug of dspex.
        records: where the records go; a store of its own by default.
        ack_wait: seconds without a sign of life after which work is given to somebody else.
        sign_of_life: seconds between two signs.

    Attributes:
        calls: the tasks that answer; their owner may start more, and `drain` waits for those too.
        served: pieces of work that are answered and acked.
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
        ack_wait: float = ACK_WAIT,
        sign_of_life: float = SIGN_OF_LIFE,
    ) -> None:
        self.bus, self.app, self.pool = bus, app, pool
        self._accept, self._free = accept, free
        self.records = records or RecordStore(bus, app, pool)
        self._ack_wait, self._sign_of_life = ack_wait, sign_of_life
        self.served = 0
        self.calls = Tasks(f"calls of {pool}", lambda name, error: self._not_served(error))
        self._loops = Tasks(f"work of {pool}", lambda name, error: failed(error))
        self._taking: asyncio.Task[None] | None = None
        self._queue: WorkQueue | None = None
        self._held: set[Delivery] = set()  # taken and not settled

    def start(self) -> None:
        """Begin to take work."""
        self._taking = self._loops.start(self._take(), "take")
        self._loops.start(self._signs_of_life(), "signs of life")

    async def drain(self, grace: float) -> None:
        """Take nothing more, let the calls end within `grace` seconds, and hand the rest back to the bus."""
        if self._taking is not None:
            await tasks.cancel([self._taking])
        if self._queue is not None:
            await self._queue.close()
        if self.calls:
            log.info("pool drains", pool=self.pool, calls=len(self.calls), grace=grace)
            await self.calls.finish(grace)
        await self.calls.stop()
        await self._loops.stop()
        for delivery in self._held:
            await self._hand_back(delivery)
        self._held.clear()

    async def kill(self) -> None:
        """Stop as a killed process does: nothing is handed back, and what was taken comes again after `ack_wait`."""
        await self._loops.stop()
        await self.calls.stop()

    # -- taking work -----------------------------------------------------------------------------------------------
    async def _take(self) -> None:
        """Take work for ever. The application's stream may not be there yet: then wait for it."""
        reported = ""
        while True:
            try:
                self._queue = await self._open()
                reported = ""
                await self._take_from(self._queue)
            except BusError as error:
                if error.message != reported:
                    log.warning("cannot take work, trying again", pool=self.pool, why=error.message)
                reported = error.message
            await asyncio.sleep(OPEN_AGAIN)

    async def _take_from(self, queue: WorkQueue) -> None:
        """Take work until the queue fails, and close it then: what it holds goes to others now, not after `ack_wait`."""
        try:
            while True:
                self._begin(await queue.next())
        except BusError:
            self._queue = None
            await queue.close()
            raise

    async def _open(self) -> WorkQueue:
        return await self.bus.work(
            subjects.stream(self.app),
            subjects.work_pattern(self.app, self.pool),
            name=subjects.work_consumer(self.pool),
            ack_wait=self._ack_wait,
            free=self._free,
        )

    async def _signs_of_life(self) -> None:
        while True:
            await asyncio.sleep(self._sign_of_life)
            for delivery in list(self._held):
                try:
                    await delivery.in_progress()
                except BusError as error:
                    log.warning("no sign of life sent", pool=self.pool, error=error.message)

    # -- one piece of work -----------------------------------------------------------------------------------------
    def _begin(self, delivery: Delivery) -> None:
        try:
            request = CallRequest.unpack(delivery.message.data)
        except DecodeError as error:
            call = self._drop(delivery, error)
        else:
            call = self._serve(delivery, request, self._accept(request, delivery))
        self._held.add(delivery)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():  # a cancelled call is still held: `drain` hands it back
                self._held.discard(delivery)

        self.calls.start(call, "work").add_done_callback(ended)

    async def _serve(self, delivery: Delivery, request: CallRequest, job: Job) -> None:
        try:
            record = await job()
            if record is None or await self.records.store(record, request):
                await delivery.ack()
                self.served += 1
            else:
                await delivery.nak(STORE_AGAIN)
        except BusError as error:
            log.warning("work not settled; it will come again", pool=self.pool, error=error.message)

    async def _drop(self, delivery: Delivery, error: DecodeError) -> None:
        """The reply subject is inside the unreadable payload, so the caller learns of it by its deadline."""
        log.error("unreadable work dropped", pool=self.pool, subject=delivery.message.subject, why=error.message)
        await delivery.ack()

    async def _hand_back(self, delivery: Delivery) -> None:
        try:
            await delivery.nak()
        except BusError as error:
            log.warning("work not handed back; it will come again", pool=self.pool, error=error.message)

    def _not_served(self, error: BaseException) -> None:
        log.error("a call was not served", pool=self.pool, exc_info=error)
