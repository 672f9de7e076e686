"""A batch as a process has it, the calls that wait for it here, and what their journals have of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple, Self, TypeAlias

from dspex.bus.codecs.checking import checked
from dspex.bus.errors import CallError
from dspex.operators.native.lm.batch_api import ProviderBatch
from dspex.operators.native.lm.completion import Completion
from dspex.workers.frames import BatchRow
from dspex.workers.journal.entries import JournalEntry
from dspex.workers.journal.within import Journaling

BatchOutcome: TypeAlias = Completion | CallError
"""What came of a request in a batch."""


class BatchNote(NamedTuple):
    """What the journal of a call has of its batch.

    Attributes:
        key: drawn for the batch. line: the call's name in it. batch: its id; "": it was about to be made.
        over: it has had its say: the call is to be in another one.
    """

    key: str
    line: str
    batch: str = ""
    over: bool = False

    def entry(self, lm: str) -> JournalEntry:
        """As the journal keeps it, in place of the one before."""
        digest = sha256(f"batch {lm}".encode()).hexdigest()[:32]
        return JournalEntry("model", digest, 1, lm, begun=not self.batch, answer=self._asdict())

    @classmethod
    def of(cls, entries: list[JournalEntry], lm: str) -> Self | None:
        """What earlier attempts left; None for nothing. Raises DecodeError."""
        place = cls("", "").entry(lm).place
        found = next((entry for entry in entries if entry.place == place), None)
        note: Self | None = None if found is None else checked(cls, "the note of a batch", found.answer)
        return None if note is None or note.over else note


@dataclass(eq=False)
class OpenBatch:
    """A batch, from the first call that is gathered for it until it is over.

    Attributes:
        key: see BatchNote.
        made: its id, when it is made, or the error.
        calls: those that wait here, by their lines. left: how many were here, and wait for it nowhere any more.
        seen: what the provider said of it last.
        total: its requests; 0: not known. size: bytes of them. full: it takes no more.
        closed: nobody can join it any more.
    """

    key: str
    made: asyncio.Future[str]
    calls: dict[str, WaitingCall] = field(default_factory=dict[str, "WaitingCall"])
    left: int = 0
    seen: ProviderBatch | None = None
    total: int = 0
    size: int = 0
    full: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """ "" until it is known that the provider has it."""
        if self.made.done() and self.made.exception() is None:
            return self.made.result()
        return self.seen.id if self.seen is not None else ""

    def row(self, lm: str) -> BatchRow:
        """What is said of it."""
        if self.seen is None:
            return BatchRow(lm, self.id, "runs" if self.id else "gathering", len(self.calls), self.total, 0)
        return BatchRow(lm, self.id, self.seen.status, len(self.calls), self.total, self.seen.done)

    def fail(self, error: CallError) -> None:
        """The end of all calls that wait for it."""
        if not self.made.done():
            self.made.set_exception(error)
            self.made.exception()  # nobody may wait for it any more
        for one in self.calls.values():
            one.answered(error)


@dataclass(eq=False)
class WaitingCall:
    """A call that waits.

    Attributes:
        line: its name in its batch. body: of its request, of the chat API.
        note: what an earlier attempt left; None for nothing.
        noted: set when the key of its batch lies in its journal, or it waits no more.
    """

    line: str
    body: bytes
    journal: Journaling
    note: BatchNote | None = None
    outcome: asyncio.Future[BatchOutcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    noted: asyncio.Event = field(default_factory=asyncio.Event)
    batch: OpenBatch | None = None

    def answered(self, outcome: BatchOutcome) -> None:
        """What came of it."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)
