"""The committer: one writer for all partitions that a process owns, never two commits in flight.

A stream takes 330 to 400 atomic batches a second, however small they are, so partitions commit together and a batch grows
while the one before it is in flight. Each partition has its own log entry and its own fence; one that is fenced is dropped,
and the rest goes again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from dspex.bus.errors import DspexError, StreamFull
from dspex.bus.port import COMMIT_LIMIT, Bus, NewMessage
from dspex.engine.runtime.partition import MOST_BYTES, Partition

_log = structlog.get_logger("dspex.engine")


class Owner(Protocol):
    """What owns a partition: it handles the failure of a commit."""

    def failed(self, partition: Partition, error: DspexError, /) -> None: ...


class Committer:
    """Takes what partitions have walked and makes it durable."""

    def __init__(self, bus: Bus, clock: Callable[[], float]) -> None:
        self.bus = bus
        self.clock = clock
        self.commits = 0
        self.full = ""  # why the stream takes nothing now; "" while it does
        self._waiting: dict[Partition, Owner] = {}
        self._wake = asyncio.Event()

    def request_commit(self, partition: Partition, owner: Owner) -> None:
        """There is something to commit."""
        self._waiting[partition] = owner
        self._wake.set()

    async def run(self) -> None:
        """Commit for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._commit(self._gather())

    def _gather(self) -> list[tuple[Partition, Owner, list[NewMessage]]]:
        """As many waiting partitions as fit one batch, each with the messages of its commit."""
        taken: list[tuple[Partition, Owner, list[NewMessage]]] = []
        room, size = COMMIT_LIMIT, 0
        for partition, owner in list(self._waiting.items()):
            size += partition.weight
            if partition.pending >= room or (taken and size > MOST_BYTES):
                continue
            del self._waiting[partition]
            drafts = partition.take(self.clock(), room)
            if drafts:
                taken.append((partition, owner, drafts))
                room -= len(drafts)
        return taken

    async def _commit(self, taken: list[tuple[Partition, Owner, list[NewMessage]]]) -> None:
        if not taken:
            return
        try:
            last = await self._write([d for _, _, drafts in taken for d in drafts])
        except DspexError as e:  # a DataError too: a subject or header that no server would take
            if len(taken) > 1 and not e.retryable:  # refused: find out which partition has what is refused
                for one in taken:
                    await self._commit([one])
                return
            for partition, owner, _ in taken:
                owner.failed(partition, e)
            return
        self.commits += 1
        for partition, owner, drafts in reversed(taken):
            partition.landed(last)
            last -= len(drafts)
            if not partition.settled.is_set():
                self.request_commit(partition, owner)

    async def _write(self, drafts: list[NewMessage]) -> int:
        while True:
            try:
                sequence = await self.bus.commit(drafts)
            except StreamFull as e:
                if not self.full:
                    _log.error("the stream is full: waiting, nothing is lost", why=e.message, fix=e.fix)
                self.full = e.message
                await asyncio.sleep(1.0)
                continue
            if self.full:
                self.full = ""
                _log.info("the stream has room again")
            return sequence
