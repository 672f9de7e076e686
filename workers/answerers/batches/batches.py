"""The batches of a profile in one process: calls that may wait are gathered, sent to their provider in one file, and answered
when that is over.

What a call must not forget lies in its journal: the key that was drawn for its batch, before that is made, and then the batch.
So whoever gets the call after a death joins its batch, or finds it by its key, and nothing is paid for twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus.errors import CallError, NoBatchAnswer
from dspex.bus.message import new_id
from dspex.bus.tasks import Tasks
from dspex.operators.native.lm.batch_api import BatchApi, ProviderBatch
from dspex.operators.native.lm.completion import Completion
from dspex.workers.answerers.batches.batch import BatchNote, OpenBatch, WaitingCall
from dspex.workers.answerers.batches.provider import PatientProvider
from dspex.workers.frames import BatchRow

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

AT_ONCE: Final = 32  # journals that are asked at a time: after a death thousands of calls come together
MOST_BYTES: Final = 64 << 20  # of one file; providers take 100 MB and more


class Batches:
    """The batches of one profile.

    Args:
        gather, calls, poll: see BatchSettings.
        changed: called when what `rows` gives is different.
    """

    def __init__(
        self, lm: str, api: BatchApi, *, gather: float, calls: int, poll: float, changed: Callable[[], None] = lambda: None
    ) -> None:
        self._lm, self._provider = lm, PatientProvider(lm, api, poll)
        self._gather, self._most, self._changed = gather, calls, changed
        self._loop = asyncio.get_running_loop()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._gathering: OpenBatch | None = None
        self._running: dict[OpenBatch, None] = {}
        self._found: dict[str, asyncio.Task[ProviderBatch | None]] = {}  # by key
        self._tasks = Tasks(f"batches of {lm}", lambda name, error: log.error("a batch failed", lm=lm, exc_info=error))

    async def ask(self, one: WaitingCall, seconds: float, over: Callable[[], bool] = lambda: False) -> Completion:
        """The answer to a call, which waits in a batch for so many seconds at most.

        `over`: whether nobody goes on with it, where it is cancelled. Raises NoBatchAnswer where it is to be asked live, else
        the error of its line, or of the batch; DspexError where another attempt has the journal.
        """
        left = False
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                batch = await self._joined(one)
                id = await asyncio.shield(batch.made)
                await self._note(one, BatchNote(batch.key, one.line, id))
                outcome = await one.outcome
        except TimeoutError as error:
            if not limit.expired():
                raise
            left = True
            raise NoBatchAnswer(f"lm.{self._lm}: its batch gave no answer before the deadline was near") from error
        except asyncio.CancelledError:
            left = over()
            raise
        finally:
            one.noted.set()
            self._leave(one, left=left)
        if isinstance(outcome, Completion):
            return outcome
        if not isinstance(outcome, NoBatchAnswer):  # the next try is in another batch
            await self._note(one, BatchNote(batch.key, one.line, id, over=True))
        raise outcome

    def rows(self) -> list[BatchRow]:
        """Each batch that runs, or is being gathered."""
        return [batch.row(self._lm) for batch in self._running]

    async def close(self) -> None:
        """Look at no batch any more. They run on, and the next attempts at their calls join them."""
        await self._tasks.stop()

    # -- getting in, and out
    async def _joined(self, one: WaitingCall) -> OpenBatch:
        """The batch that the call is in from now on: where an earlier attempt has put it, or one that is being gathered."""
        batch = await self._of_earlier(one.note) if one.note is not None else None
        if one.note is not None and batch is not None:
            one.line = one.note.line
            self._enter(batch, one)
            return batch
        batch = self._group(len(one.body))
        self._enter(batch, one)
        await self._note(one, BatchNote(batch.key, one.line))
        one.noted.set()
        return batch

    async def _note(self, one: WaitingCall, note: BatchNote) -> None:
        async with self._turns:
            await one.journal.append(note.entry(self._lm))

    def _group(self, size: int) -> OpenBatch:
        """The batch that is being gathered; a new one where there is none, or where the call does not fit."""
        batch = self._gathering
        if batch is None or batch.full.is_set() or batch.size + size > MOST_BYTES:
            if batch is not None:
                batch.full.set()
            batch = self._gathering = OpenBatch(new_id(), self._loop.create_future())
            self._running[batch] = None
            batch.task = self._tasks.start(self._make(batch), "batch")
        batch.size += size
        if len(batch.calls) + 1 >= self._most:
            batch.full.set()
        return batch

    def _enter(self, batch: OpenBatch, one: WaitingCall) -> None:
        one.batch = batch
        batch.calls[one.line] = one
        self._changed()

    def _leave(self, one: WaitingCall, *, left: bool) -> None:
        """A call waits no more. A batch for which no call waits here is not looked at. Where all of its calls were here, and
        wait for it nowhere any more, it is cancelled. Any other one runs on: whoever gets its calls next joins it.
        """
        batch = one.batch
        if batch is None or batch.calls.get(one.line) is not one:
            return
        del batch.calls[one.line]
        batch.left += left
        self._changed()
        if batch.calls or batch.closed:
            return
        self._close(batch)
        unwanted = batch.left >= max(1, batch.total)
        if unwanted and batch.total and not batch.id:
            return  # it is being made, and perhaps is there already: `_make` sees to it
        if batch.task is not None:
            batch.task.cancel()
        if unwanted and batch.id:
            self._tasks.start(self._provider.cancel(batch), "cancel")

    def _close(self, batch: OpenBatch) -> None:
        batch.closed = True
        self._running.pop(batch, None)
        if self._gathering is batch:
            self._gathering = None
        self._changed()

    # -- of an earlier attempt
    async def _of_earlier(self, note: BatchNote) -> OpenBatch | None:
        """The batch that a note speaks of; None where it was never made."""
        if note.batch:
            return self._watched(note.key, note.batch)
        looking = self._found.get(note.key)
        if looking is None:  # its other calls ask the same
            looking = self._found[note.key] = self._tasks.start(self._provider.find(note.key), "find")
            looking.add_done_callback(lambda _: self._found.pop(note.key, None))
        made = await asyncio.shield(looking)
        return None if made is None else self._watched(note.key, made.id)

    def _watched(self, key: str, id: str) -> OpenBatch:
        """The batch of this id, whose end is waited for from now on."""
        batch = next((one for one in self._running if one.id == id), None)
        if batch is None:
            batch = OpenBatch(key, self._loop.create_future())
            batch.made.set_result(id)
            self._running[batch] = None
            batch.task = self._tasks.start(self._follow(batch), "batch")
        return batch

    # -- its course
    async def _make(self, batch: OpenBatch) -> None:
        """Gather its calls, have it made, and see to its end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._gather):
                await batch.full.wait()
        if self._gathering is batch:
            self._gathering = None
        for one in list(batch.calls.values()):
            await one.noted.wait()
        batch.total, batch.left = len(batch.calls), 0  # who left before is not in it
        try:
            found = await self._provider.make(batch, partial(self._see, batch))
        except CallError as error:
            self._close(batch)
            batch.fail(error)
            return
        if found is None:
            return
        batch.seen = found
        batch.made.set_result(found.id)
        await (self._follow(batch) if batch.calls else self._provider.cancel(batch))

    def _see(self, batch: OpenBatch, found: ProviderBatch) -> None:
        batch.seen, batch.total = found, found.total or batch.total
        self._changed()

    async def _follow(self, batch: OpenBatch) -> None:
        """Wait until a batch is over, and give its calls what it has for them."""
        found = await self._provider.end(batch, partial(self._see, batch))
        self._close(batch)
        if found is None:
            batch.fail(NoBatchAnswer(f"lm.{self._lm}: the provider does not know batch {batch.id} any more"))
            return
        await self._provider.answer(batch, found)
        why = f": {found.why}" if found.why else ""
        batch.fail(NoBatchAnswer(f"lm.{self._lm}: batch {batch.id} is {found.status}, without an answer for the call{why}"))
