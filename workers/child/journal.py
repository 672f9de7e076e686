"""The journal of a call, as the child that runs it sees it: questions to the parent, over the link."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from dspex.bus import errors
from dspex.bus.errors import WorkerLost
from dspex.workers.frames import JournalFrame, JournalledFrame
from dspex.workers.journal.entries import JournalEntry, unpack_entry


class CallJournal:
    """What a call asks of its journal. Used on the loop alone. `id`: of the call, in frames. `send`: to the parent."""

    def __init__(self, id: int, send: Callable[[JournalFrame], None]) -> None:
        self._id, self._send = id, send
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[list[bytes]]] = {}
        self._found: list[bytes] = []  # the pages of a journal that is being opened

    async def open(self) -> list[JournalEntry]:
        """Take the journal for this attempt, and what earlier ones left in it. Raises DspexError: another one has it."""
        return [unpack_entry(packed) for packed in await self._ask(None)]

    async def append(self, entry: JournalEntry) -> None:
        """Returns when the entry is stored. Raises DspexError; InvalidInput for an answer that is no plain data."""
        await self._ask(entry.pack())

    async def room(self) -> None:
        """Returns when the limits have room for a request. Raises CallError where they have none for a while."""
        await self._ask(None, asks=True)

    def failed(self) -> None:
        """What there was room for has failed: it leaves nothing behind."""
        self._send(JournalFrame(self._id, next(self._numbers), failed=True))

    async def _ask(self, entry: bytes | None, *, asks: bool = False) -> list[bytes]:
        number = next(self._numbers)
        future: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            self._send(JournalFrame(self._id, number, entry, asks))
            return await future
        finally:
            del self._asked[number]

    def take(self, frame: JournalledFrame) -> None:
        """What the parent says."""
        future = self._asked.get(frame.number)
        if future is None or future.done():
            return
        if frame.error is not None:
            future.set_exception(errors.from_dict(frame.error))
            return
        self._found += frame.entries
        if not frame.more:
            found, self._found = self._found, []
            future.set_result(found)

    def close(self) -> None:
        """The call has ended: let threads go that it has left behind, and that wait."""
        for future in self._asked.values():
            if not future.done():
                future.set_exception(WorkerLost("the call has ended"))
