"""The journal as a program's requests see it; and one that lasts as long as an attempt, where nothing is stored."""

from __future__ import annotations

from typing import Protocol

from dspex.bus.errors import DspexError
from dspex.bus.records import Usage
from dspex.workers.journal.entries import JournalEntry


class Journaling(Protocol):
    """The journal of the call. They raise DspexError where another attempt has it."""

    async def open(self) -> list[JournalEntry]:
        """What earlier attempts left."""
        ...

    async def append(self, entry: JournalEntry) -> None:
        """Returns when the entry is stored. Raises InvalidInput for what is no plain data."""
        ...

    async def room(self) -> None:
        """Returns when the limits have room for a request of a model. Raises CallError where they have none for a while."""
        ...

    def failed(self) -> None:
        """A request for which there was room has failed."""
        ...


class Metering(Protocol):
    """Counts what a call asks of models, and says when it may not ask more."""

    def begin(self) -> DspexError | None:
        """A request is about to be made, or answered from the journal; why it must not be."""
        ...

    def add(self, used: Usage | None) -> None:
        """It was answered."""
        ...


class WithinAttempt:
    """The journal of a call that has no second attempt: an interactive one. Its program may begin anew all the same, with the
    next profile of a list, or because a reply did not fit; what it has done by then is done, and is not done again.

    Requests remember by themselves what they were told: so there is nothing to do here.
    """

    async def open(self) -> list[JournalEntry]:
        """There were no earlier attempts."""
        return []

    async def append(self, entry: JournalEntry) -> None:
        """Nobody comes later."""

    async def room(self) -> None:
        """It is counted when it ends: what it has paid for would be lost."""

    def failed(self) -> None:
        """Nothing was kept for it."""
