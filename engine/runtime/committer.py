"""The committer: one writer for all partitions that a process owns, never two commits in flight.

A stream takes 330 to 400 atomic batches a second, however small they are, so partitions commit together and a batch grows
while the one before it is in flight. Each partition has its own log entry and its own fence; one that is fenced is dropped,
and the rest goes again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import structlog

from dspex.bus import telemetry
from dspex.bus.errors import BusError, DspexError, Fenced, StreamFull, Unsettled
from dspex.bus.port import COMMIT_LIMIT, Bus, NewMessage
from dspex.bus.serving import payloads
from dspex.engine.runtime.batch import MOST_BYTES
from dspex.engine.runtime.inputs.journals import SpentJournals
from dspex.engine.runtime.partition import Partition

_log = structlog.get_logger("dspex.engine")


class _Taken(NamedTuple):
    """A partition's part of a commit."""

    partition: Partition
    messages: list[NewMessage]


class Committer:
    """Takes what partitions have walked and makes it durable. `above`: bytes of a body that is not stored in its message."""

    def __init__(self, bus: Bus, app: str, clock: Callable[[], float], above: int = payloads.ABOVE) -> None:
        self.bus, self.app, self.above = bus, app, above
        self.clock = clock
        self.journals = SpentJournals(bus, app)
        self.commits = 0
        self.full = ""  # why the stream takes nothing now; "" while it does
        self._waiting: dict[Partition, None] = {}  # in the order in which they asked
        self._wake = asyncio.Event()

    def request_commit(self, partition: Partition) -> None:
        """There is something to commit."""
        self._waiting[partition] = None
        self._wake.set()

    async def run(self) -> None:
        """Commit for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._commit(self._gather())

    def _gather(self) -> list[_Taken]:
        """As many waiting partitions as fit one batch, each with the messages of its commit."""
        taken: list[_Taken] = []
        room, size = COMMIT_LIMIT, 0
        for partition in list(self._waiting):
            size += partition.weight
            if partition.pending >= room or (taken and size > MOST_BYTES):
                continue
            messages = partition.take(self.clock(), room)
            if messages is None:
                continue
            del self._waiting[partition]
            if messages:
                taken.append(_Taken(partition, messages))
                room -= len(messages)
        return taken

    async def _commit(self, taken: list[_Taken]) -> None:
        if not taken:
            return
        try:
            last = await self._write(taken)
        except Fenced as e:
            await self._without_fenced(taken, e)
        except DspexError as e:  # a DataError too: a subject or header that no server would take
            if len(taken) > 1 and not e.retryable:  # refused: find out which partition has what is refused
                for one in taken:
                    await self._commit([one])
                return
            for one in taken:
                one.partition.owner.failed(one.partition, e)
        else:
            self._landed(taken, last)

    def _landed(self, taken: list[_Taken], last: int) -> None:
        self.commits += 1
        for partition, messages in reversed(taken):
            batch = partition.landed(last)
            partition.owner.landed(partition, batch)
            if batch.told:
                self.journals.landed(partition.process.stage, batch.told)
            last -= len(messages)
            if not partition.settled.is_set():
                self.request_commit(partition)

    async def _without_fenced(self, taken: list[_Taken], error: Fenced) -> None:
        """Drop the partitions whose log has moved, and send the rest again. If none has, nobody knows what happened:
        all of them take the way of a commit whose answer never came."""
        moved = [one for one in taken if await self._has_moved(one.partition)]
        for one in moved:
            one.partition.owner.failed(one.partition, error)
        rest = [one for one in taken if one not in moved]
        if not moved:
            unknown = Unsettled("a commit was refused as fenced, and no log has moved")
            for one in rest:
                one.partition.owner.failed(one.partition, unknown)
        else:
            await self._commit(rest)

    async def _has_moved(self, partition: Partition) -> bool:
        log = partition.log
        while True:
            try:
                last = await self.bus.last(log.address.stream, log.address.subject)
                return (last.sequence if last else 0) != log.sequence
            except BusError as e:
                if not e.retryable:  # there is no such stream any more: nobody knows what happened
                    return False
            await asyncio.sleep(0.1)

    async def _drafts(self, taken: list[_Taken]) -> list[NewMessage]:
        """The messages of a commit, sealed where the bus seals. Large payloads are stored before the commit that names them, or
        touched again.

        The log itself is never checked in; of it, pieces are sealed: what operators keep is in those.
        """
        most, drafts = payloads.inline(self.bus, self.above), [m for one in taken for m in one.messages]
        logs = {one.partition.log.address.subject for one in taken}
        pieces = {one.partition.log.address.pieces for one in taken}
        sealing = self.bus.sealing
        if sealing is not None:
            most = -1
            await sealing.prepare(draft for draft in drafts if draft.subject not in logs)
        for index, draft in enumerate(drafts):
            if draft.subject in pieces:
                drafts[index] = await sealing.sealed(draft) if sealing is not None else draft
            elif len(draft.data) > most and draft.subject not in logs:
                drafts[index] = await payloads.checked_in(self.bus, self.app, draft, self.above)
        return drafts

    async def _write(self, taken: list[_Taken]) -> int:
        while True:
            try:
                sequence = await self.bus.commit(await self._drafts(taken))
            except StreamFull as e:
                if not self.full:
                    _log.error("the stream is full: waiting, nothing is lost", why=e.message, fix=e.fix)
                    telemetry.emit("full", why=e.message)
                self.full = e.message
                await asyncio.sleep(1.0)
                continue
            if self.full:
                self.full = ""
                telemetry.emit("room")
                _log.info("the stream has room again")
            return sequence
