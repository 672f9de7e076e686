"""What the journal of a call holds. It lies on one subject, in the stream of requests, and is read by that subject alone.

A message is a part, written by one attempt at the call. Its first part has no entries, and is its claim: each part expects the
one before it, so an attempt that another one came after can append nothing more (as with commit logs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, TypeAlias

from dspex.bus import codecs, telemetry
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import DecodeError
from dspex.bus.records import CallRequest, Usage
from dspex.workers.journal.replies import exchange

RequestPlace: TypeAlias = tuple[str, str, int]
"""Which request an entry is about: kind, digest, and the how many-th with that digest. Never its position: requests that run
side by side have no order.
"""


class JournalEntry(NamedTuple):
    """A request of a call: begun, or answered.

    Attributes:
        kind, digest, occurrence: see RequestPlace.
        name: the profile that was asked, or the tool.
        asked: messages and named parameters of a model's request, the arguments of a tool; no headers, keys or addresses.
        begun: its effect may have happened, and nothing is known of what came of it.
        answer: what came of it, where it is not only begun.
        usage: what it cost, as a map of Usage.
        within: it was made by a tool, so it is not asked for again where the tool's own answer is there.
        seconds: that it took.
    """

    kind: Literal["model", "tool"]
    digest: str
    occurrence: int
    name: str = ""
    asked: Mapping[str, Any] | None = None
    begun: bool = False
    answer: Any = None
    usage: Mapping[str, Any] | None = None
    within: bool = False
    seconds: float = 0.0

    @property
    def place(self) -> RequestPlace:
        return self.kind, self.digest, self.occurrence

    def pack(self) -> bytes:
        """As `unpack_entry` takes it. Raises InvalidInput for an answer that is no plain data."""
        return codecs.msgpack_bytes(self._asdict())

    @property
    def used(self) -> Usage | None:
        """What it cost. Raises DecodeError for what is no usage."""
        return None if self.usage is None else Usage.read(self.usage)


def unpack_entry(data: bytes) -> JournalEntry:
    """The entry that `JournalEntry.pack` wrote: a child may write anything. Raises DecodeError."""
    return _sound(checked(JournalEntry, "an entry of a journal", codecs.decode(data, codecs.MSGPACK)))


def _sound(entry: JournalEntry) -> JournalEntry:
    _ = entry.used
    return entry


@dataclass(frozen=True)
class JournalPart:
    """One message of a journal.

    Attributes:
        attempt: drawn by the attempt that wrote it.
        work: where the request lies that the attempt serves: a later request has a higher sequence.
        number: of the call in its partition. A dead letter that is redriven makes the same call again, under another number:
            what the journal has of the time before does not count.
        try_number, invalid: of the request.
        entries: none in a claim.
        state: the version of the saved state that the attempt has; "" for none.
    """

    attempt: str
    work: int
    number: int
    try_number: int
    invalid: int = 0
    entries: Sequence[JournalEntry] = ()
    state: str = ""

    def pack(self) -> bytes:
        """As `unpack` takes it."""
        return codecs.msgpack_bytes(vars(self) | {"entries": [entry._asdict() for entry in self.entries]})

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The part that `pack` wrote. Raises DecodeError."""
        raw = codecs.decode(data, codecs.MSGPACK)
        try:
            part = cls(**checked(cls, "a part of a journal", raw))
        except TypeError as e:
            raise DecodeError(f"not a part of a journal: {e}") from None
        for entry in part.entries:
            _sound(entry)
        return part


class JournalRest(NamedTuple):
    """What a journal has for the attempt that has claimed it last.

    Attributes:
        entries: the last one of each request, in the order in which they came.
        spent: what executions of the same try have cost before: they died without a record, so nobody has counted it.
    """

    entries: list[JournalEntry]
    spent: Usage | None


def kept(parts: Iterable[JournalPart], claim: JournalPart) -> JournalRest:
    """What the parts before a claim, and the claim itself, leave.

    An attempt that was asked for because the last answer did not fit does without the last answer of a model: it would be the
    same again. Whether it was unfit for the worker or for the engine alone, the request says how many such answers there were.
    """
    found: dict[RequestPlace, JournalEntry] = {}
    invalid, spent = 0, None
    for part in (*parts, claim):
        if part.number != claim.number:
            continue
        if part.invalid > invalid:
            invalid = part.invalid
            last = next((place for place in reversed(found) if place[0] == "model"), None)
            found.pop(last, None) if last is not None else None
        for entry in part.entries:
            found.pop(entry.place, None)
            found[entry.place] = entry
            if part.try_number == claim.try_number and (used := entry.used) is not None:
                spent = spent + used if spent is not None else used
    return JournalRest(list(found.values()), spent)


def tell(pool: str, work: CallRequest, entries: Iterable[JournalEntry]) -> None:
    """Say to who listens which requests of a call are stored now with their answers."""
    for entry in entries if telemetry.listeners else ():
        if not entry.begun:
            kind, digest, occurrence = entry.place
            where = {"kind": kind, "name": entry.name, "digest": digest, "occurrence": occurrence}
            said = exchange(entry.kind, entry.name, entry.asked, entry.answer, entry.used, entry.seconds)
            telemetry.emit("request", pool=pool, work=work, **where, usage=entry.usage, seconds=entry.seconds, exchange=said)
