"""The journal of a call, as the parent of the child that runs it keeps it: the child has no connection.

Nothing is stored for a call that asks for nothing: its first request opens the journal. To open it is to append a claim, and
then to read what lies before it from the leader. Whoever claims later makes the next append of an earlier attempt fail.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import subjects
from dspex.bus.errors import (
    BusError,
    CallError,
    DataError,
    DecodeError,
    DspexError,
    Fenced,
    NotStored,
    PayloadTooLarge,
    WorkerLost,
)
from dspex.bus.message import Message, in_session, new_id
from dspex.bus.port import Bus, NewMessage
from dspex.bus.records import CallRequest, Usage
from dspex.bus.seldom import Seldom
from dspex.bus.serving import payloads
from dspex.bus.tasks import Tasks
from dspex.workers.answer import Answer, error_map
from dspex.workers.frames import JournalFrame, JournalledFrame
from dspex.workers.journal.entries import JournalEntry, JournalPart, kept, tell, unpack_entry

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

TOGETHER: Final = 128 << 10  # bytes of the entries of one part, about: those that came while another part was being stored
PAGE: Final = 8 << 20  # bytes of the entries that a child gets in one frame, about
MOST_WAIT: Final = 60.0  # seconds that a call waits for room in a limit, before its next request
PAUSES: Final = (0.1, 5.0)  # seconds until a part is stored again: at first, and at most


@dataclass(frozen=True)
class Outdone:
    """Another attempt has the journal of the call. `later`: it serves a later request: nobody waits for this one's record."""

    later: bool


class RequestLimits(Protocol):
    """The limits of the profiles and budgets of a call, as its requests are counted one by one."""

    async def room(self) -> None:
        """Reserve what a request will use. Raises CallError where there is no room for it."""
        ...

    def spent(self, used: Usage) -> None:
        """A request has used this, and it is stored."""
        ...

    def failed(self) -> None:
        """A request for which there was room has failed."""


class Journals:
    """Makes the journals of a pool's calls. `above`: bytes of a part that is not stored in its message."""

    def __init__(self, bus: Bus, app: str, pool: str, above: int = payloads.ABOVE) -> None:
        self.bus, self.app, self.pool, self.above = bus, app, pool, above
        self.tasks = Tasks(f"journals of {pool}", lambda name, error: log.error("a journal failed", exc_info=error))
        self.seldom = Seldom(log)


class Journal:
    """The journal of one call, while one attempt at it runs.

    Args:
        work: the request that is served. at: the sequence at which that lies.
        tell: sends the child what came of what it asked.
        limits: asked before each request of a model, and told what it has used. state: see JournalPart.
        outdone: called once, where another attempt has the journal: this one must end.

    Attributes:
        paid: what this attempt has cost, as far as it is journaled.
        inherited: what earlier executions of the same try have cost, which died without a record.
    """

    def __init__(
        self,
        journals: Journals,
        work: CallRequest,
        at: int,
        tell: Callable[[JournalledFrame], None],
        outdone: Callable[[Outdone], None],
        limits: RequestLimits | None = None,
        state: str = "",
    ) -> None:
        self._all, self._tell, self._outdone, self._limits = journals, tell, outdone, limits
        assert work.record is not None, "an interactive call has no second attempt, and no journal"
        claim = JournalPart(new_id(), at, work.record.number, work.try_number, work.invalid, state=state)
        self._claim, self._session, self._work_of = claim, work.session, work
        self._stream = subjects.requests(journals.app)
        self._subject = subjects.request(journals.app, journals.pool, work.call)
        self._last = 0  # sequence of the last part
        self._waiting: deque[JournalFrame] = deque()
        self._task: asyncio.Task[None] | None = None
        self._over: DspexError | None = None  # why nothing more can be appended
        self._asking: set[asyncio.Task[None]] = set()
        self.paid: Usage | None = None
        self.inherited: Usage | None = None

    def take(self, frame: JournalFrame) -> None:
        """Do what a child asks. It is told later."""
        if frame.failed:
            if self._limits is not None:
                self._limits.failed()
        elif frame.asks:  # others may be answered meanwhile
            task = self._all.tasks.start(self._room(frame), "room in limits")
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        else:
            self._waiting.append(frame)
            self._task = self._task or self._all.tasks.start(self._work(), "journal")

    def close(self) -> None:
        """The call has ended: store nothing more of it."""
        for task in (*self._asking, *([self._task] if self._task is not None else ())):
            task.cancel()

    async def _work(self) -> None:
        try:
            while self._waiting:
                if self._over is not None:
                    self._refuse([self._waiting.popleft()], self._over)
                elif self._waiting[0].entry is None:
                    await self._open(self._waiting.popleft())
                else:
                    await self._append()
        finally:
            self._task = None

    # -- opening
    async def _open(self, frame: JournalFrame) -> None:
        pause = PAUSES[0]
        while True:
            try:
                entries, self.inherited = kept(await self._claimed(), self._claim)
                break
            except DspexError as error:
                if self._over is not None or not (isinstance(error, BusError) and error.retryable):
                    self._refuse([frame], error)
                    return
                self._all.seldom.warning("a journal is not read, trying again", pool=self._all.pool, why=error.message)
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSES[1])
        *pages, last = _pages(entries)
        for page in pages:
            self._tell(JournalledFrame(frame.id, frame.number, page, more=True))
        self._tell(JournalledFrame(frame.id, frame.number, last))

    async def _claimed(self) -> list[JournalPart]:
        """Claim the journal; the parts that lie before the claim. Raises BusError."""
        while True:  # most have none before, so it is not asked first
            if (other := await self._stored(self._claim)) is None:
                break
            if other.work > self._claim.work:
                raise self._lost(later=True)
        end, parts, at = self._last, [], 1
        while first := await self._all.bus.next(self._stream, self._subject, at):
            if first.sequence >= end:
                break
            if (part := await self._read(first)) is not None:
                parts.append(part)
            at = first.sequence + 1
        return parts

    async def _read(self, message: Message) -> JournalPart | None:
        """A part; None for what nobody can read any more: its requests are made again."""
        try:
            whole = await payloads.checked_out(self._all.bus, self._all.app, message)
            return None if whole is None else JournalPart.unpack(whole.data)
        except DecodeError as error:
            log.error("a part of a journal cannot be read", subject=self._subject, why=error.message)
            return None

    # -- appending
    async def _append(self) -> None:
        """Append what waits, as one part."""
        frames, entries, size = list[JournalFrame](), list[JournalEntry](), 0
        while (
            self._waiting and (packed := self._waiting[0].entry) is not None and (not frames or size + len(packed) < TOGETHER)
        ):
            frame = self._waiting.popleft()
            try:
                entries.append(unpack_entry(packed))
            except DecodeError as error:
                self._refuse([frame], error)
                continue
            frames.append(frame)
            size += len(packed)
        try:
            if entries and (other := await self._stored(replace(self._claim, entries=entries))) is not None:
                raise self._lost(later=other.work > self._claim.work)
        except DspexError as error:
            self._refuse(frames, error)
            return
        tell(self._all.pool, self._work_of, entries)
        for used in filter(None, (entry.used for entry in entries)):
            self.paid = self.paid + used if self.paid else used
            if self._limits is not None:
                self._limits.spent(used)
        for frame in frames:
            self._tell(JournalledFrame(frame.id, frame.number))

    async def _room(self, frame: JournalFrame) -> None:
        """Tell the child when there is room for a request in the limits, or that there is none for a while."""
        while True:
            try:
                if self._limits is not None:
                    await self._limits.room()
            except CallError as error:
                if not error.retryable or (error.retry_after or 0.0) > MOST_WAIT:
                    self._refuse([frame], error)
                    return
                await asyncio.sleep(max(PAUSES[0], error.retry_after or 0.0))
            else:
                self._tell(JournalledFrame(frame.id, frame.number))
                return

    async def _stored(self, part: JournalPart) -> JournalPart | None:
        """Store a part behind the last one; None where it is. Else what another attempt has stored there.

        Tries again after an error that may pass: the call's own time ends it. Raises BusError where none of that helps.
        """
        bus, app, pause, unsure = self._all.bus, self._all.app, PAUSES[0], False
        message = NewMessage(self._subject, part.pack(), in_session(self._session))
        while True:
            try:
                if unsure and (other := await self._moved(part)) is not None:
                    return other if other.attempt != part.attempt else None
                ready = await payloads.checked_in(bus, app, message, self._all.above)
                self._last = (await bus.publish(ready._replace(expect=self._last))).sequence
                return None
            except (NotStored, PayloadTooLarge, DataError):
                raise
            except BusError as error:
                if unsure or not isinstance(error, Fenced):
                    self._all.seldom.warning("a journal is not stored, trying again", pool=self._all.pool, why=error.message)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, PAUSES[1])
                unsure = True

    async def _moved(self, part: JournalPart) -> JournalPart | None:
        """What lies behind the last part that is known, which from now on is that one; None where nothing does."""
        last = await self._all.bus.last(self._stream, self._subject)
        if (last.sequence if last else 0) == self._last:
            return None
        if last is None or last.sequence < self._last:
            raise self._lost(later=False)  # it was purged: the call is over, or somebody did that, and it comes again
        self._last = last.sequence
        found = await self._read(last)
        return found if found is not None else replace(part, attempt="", work=0, entries=())  # by somebody, at some time

    # -- the end
    def charged(self, answer: Answer, *, lost: bool = False) -> Answer:
        """The answer of this attempt with what executions of the same try have cost that died without one. `lost`: this one has
        died too, and says nothing of what it has cost.
        """
        for more in (self.inherited, self.paid if lost else None):
            if more is not None:
                answer = replace(answer, usage=answer.usage + more if answer.usage else more)
        return answer

    def _lost(self, *, later: bool) -> DspexError:
        self._over = WorkerLost("another attempt at the call has taken its journal")
        self._outdone(Outdone(later))
        return self._over

    def _refuse(self, frames: list[JournalFrame], error: DspexError) -> None:
        for frame in frames:
            self._tell(JournalledFrame(frame.id, frame.number, error=error_map(error)))


def _pages(entries: list[JournalEntry]) -> Iterator[list[bytes]]:
    """Entries as frames hold them: what was asked stays here, because only the answers are needed. At least one page."""
    page, size = list[bytes](), 0
    for entry in entries:
        packed = entry._replace(asked=None).pack()
        if page and size + len(packed) > PAGE:
            yield page
            page, size = [], 0
        page.append(packed)
        size += len(packed)
    yield page
