"""The committer: one writer for all partitions that a process owns, never two commits in flight.

A stream takes 330 to 400 atomic batches a second, however small they are, so partitions commit together and a batch grows
while the one before it is in flight. Each partition has its own log entry and its own fence; one that is fenced is dropped,
and the rest goes again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dspex.bus import telemetry
from dspex.bus.errors import BusError, DspexError, Fenced, StreamFull, Unsettled
from dspex.bus.port import COMMIT_LIMIT, WINDOW, WINDOW_BYTES, Ack, Bus, NewMessage
from dspex.bus.seldom import logger
from dspex.bus.serving import payloads
from dspex.engine.runtime.batch import MOST_BYTES
from dspex.engine.runtime.inputs.journals import SpentJournals
from dspex.engine.runtime.partition import Partition

_log = logger("dspex.engine")


class _Taken(NamedTuple):
    """A partition's part of a commit."""

    partition: Partition
    messages: list[NewMessage]


class _Alone(NamedTuple):
    """A message that is stored by itself. `at`: its index among those of its partition."""

    partition: Partition
    at: int
    message: NewMessage


class Committer:
    """Takes what partitions have walked and makes it durable. `above`: bytes of a body that is not stored in its message.

    A commit that has a few requests and no other messages is *light*: its log entry holds them, alone, and then each is sent
    by itself, fenced by that entry. An atomic batch costs a server of one replica twenty times as much, and so long a call
    would wait for its worker. Who recovers the log sends what was not sent: see docs/adr/calls/0026.

    Attributes:
        lightly: the stream has one replica.
    """

    def __init__(self, bus: Bus, app: str, clock: Callable[[], float], above: int = payloads.ABOVE) -> None:
        self.bus, self.app, self.above = bus, app, above
        self.clock = clock
        self.lightly = False
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
                if self.lightly and self.bus.sealing is None and all(partition.light for partition in self._waiting):
                    await self._commit_lightly()
                else:
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
            self._is_stored(partition, last)
            last -= len(messages)

    def _is_stored(self, partition: Partition, sequence: int) -> None:
        batch = partition.landed(sequence)
        partition.owner.landed(partition, batch)
        if batch.told:
            self.journals.landed(partition.process.stage, batch.told)
        if not partition.settled.is_set():
            self.request_commit(partition)

    async def _commit_lightly(self) -> None:
        """Commit what waits, all of which is light."""
        ready, self._waiting = [partition for partition in self._waiting if partition.ready], {}
        taken = {partition: partition.take_lightly(self.clock()) for partition in ready}
        lasts = await self._stored([_Taken(partition, [entry]) for partition, (entry, _) in taken.items()])
        asked = [
            _Taken(partition, [m._replace(expect=last, of=partition.log.address.subject) for m in taken[partition][1]])
            for partition, (last,) in lasts.items()
        ]
        for partition in await self._stored(asked):
            self.commits += 1
            self._is_stored(partition, lasts[partition][0])

    async def _stored(self, taken: Sequence[_Taken]) -> dict[Partition, list[int]]:
        """Store messages, each by itself: where those of each partition lie. One of which a message is refused is told so."""
        found = {one.partition: [0] * len(one.messages) for one in taken}
        left = [_Alone(one.partition, at, message) for one in taken for at, message in enumerate(one.messages)]
        while left:
            now, size = list[_Alone](), 0
            while left and len(now) < WINDOW and (not now or size + len(left[0].message.data) <= WINDOW_BYTES):
                now.append(left.pop(0))
                size += len(now[-1].message.data)
            full: StreamFull | None = None
            for one, outcome in zip(now, await self._published(now)):
                if one.partition not in found:
                    continue
                if isinstance(outcome, Ack):
                    found[one.partition][one.at] = outcome.sequence
                elif isinstance(outcome, StreamFull):
                    full = outcome
                    left.append(one)
                else:
                    del found[one.partition]
                    one.partition.owner.failed(one.partition, outcome)
            await self._wait_for_room(full)
        return found

    async def _published(self, messages: Sequence[_Alone]) -> Sequence[Ack | DspexError]:
        """What became of each."""
        try:
            return await self.bus.publish_all(await self._drafts([_Taken(one.partition, [one.message]) for one in messages]))
        except DspexError as e:
            if len(messages) == 1 or e.retryable:
                return [e] * len(messages)
        return [outcome for one in messages for outcome in await self._published([one])]  # one of them is to blame

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
                await self._wait_for_room(e)
                continue
            await self._wait_for_room(None)
            return sequence

    async def _wait_for_room(self, full: StreamFull | None) -> None:
        """Wait a moment where the stream has no room; None: it has."""
        self.room(full)
        if full is not None:
            await asyncio.sleep(1.0)

    def room(self, full: StreamFull | None) -> None:
        """Say that the stream has no room; None: that it has."""
        if full is not None:
            if not self.full:
                _log.error("the stream is full: waiting, nothing is lost", why=full.message, fix=full.fix)
                telemetry.emit("full", why=full.message)
            self.full = full.message
        elif self.full:
            self.full = ""
            telemetry.emit("room")
            _log.info("the stream has room again")
