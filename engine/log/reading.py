"""Reading a commit log: the tables as of an entry. Nothing here writes.

A server that has just become the leader of a stream may not have all of it yet. So what is not found there is not gone: a log
is read again until the entry is seen that it is read up to, and a message is gone only where the stream reaches beyond it.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from dspex.bus import subjects
from dspex.bus.errors import BusError, NotStored, Unreachable
from dspex.bus.message import Message
from dspex.bus.port import Bus, NewMessage
from dspex.bus.seldom import logger
from dspex.bus.serving import payloads
from dspex.engine.log.entries import (
    LogAddress,
    Snapshot,
    bases,
    from_later,
    is_as_stored,
    plain,
    readable,
    requests_in,
    sum_of_pieces,
)
from dspex.engine.log.positions import Entries
from dspex.engine.log.rows import are_changes
from dspex.engine.log.tables import Tables

_log = logger("dspex.engine")
NO_PIECES: Mapping[int, Message] = MappingProxyType({})
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)  # seconds between looks at a leader that is behind: a new one takes 4 to 9


async def stored(bus: Bus, stream: str, sequence: int) -> Message | None:
    """A message that was seen in a stream; None where it is gone for good, or the stream is not there."""
    try:
        return await stored_in(bus, stream, sequence)
    except NotStored:
        return None


async def stored_in(bus: Bus, stream: str, sequence: int) -> Message | None:
    """A message that was seen in a stream; None where it is gone for good. Raises NotStored where the stream is not there."""
    try:
        if (found := await bus.get(stream, sequence)) is not None:  # the usual case, in one round trip
            return found
    except BusError as e:
        if e.retryable:
            raise  # else there may be no such stream, which is asked below
    for pause in (*PAUSES, 0.0):
        info = await bus.stream(stream)
        if info is None:
            raise NotStored(f"stream {stream} is not there", fix="restore it")
        if (found := await bus.get(stream, sequence)) is not None or info.last >= sequence:  # who has come so far knows
            return found
        await asyncio.sleep(pause)
    return None  # the stream was rolled back, or made anew


async def request_of(bus: Bus, stream: str, sequence: int, number: int) -> Message | None:
    """The request of a call, by its place: the message there, or in the log entry there. None: it is gone. Raises BusError."""
    message = await stored(bus, stream, sequence) if sequence > 0 else None
    if message is None or subjects.RECORD in message.headers:
        return message
    ask = requests_in(readable(message.data) or {}).get(number)
    return Message(ask.subject, ask.data, dict(ask.headers or {}), sequence, message.time) if ask is not None else None


async def scanned(bus: Bus, stream: str, filters: Sequence[str], start: int, stop: int) -> list[Message]:
    """The messages of subjects up to the one at `stop`, which was stored. Raises Unreachable where it is not seen."""
    for pause in (*PAUSES, 0.0):
        found = await bus.scan(stream, filters, start=start, stop=stop)
        if found and found[-1].sequence == stop:
            return found
        await asyncio.sleep(pause)
    raise _behind(stream, stop)


def _behind(stream: str, stop: int) -> Unreachable:
    return Unreachable(f"{stream} does not reach message {stop}, which was stored: its leader is behind", fix="try again")


async def entry_at(bus: Bus, address: LogAddress, sequence: int) -> Mapping[str, Any] | None:
    """What lies at a place of a log, if it can be an entry; None for what cannot, or is not there. Raises BusError."""
    message = await stored(bus, address.stream, sequence) if sequence > 0 else None
    return readable(message.data) if message is not None and message.subject == address.subject else None


def is_first(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is the one that every log begins with."""
    return bool(entry["kind"] == "claim" and entry["epoch"] == 1)


def follows(entry: Mapping[str, Any], claim: int, commit: int) -> bool:
    """Whether an entry goes on from the last claim and the last commit: a claim names that commit, a commit both."""
    if entry["kind"] == "claim":
        return bool(entry["after"] == commit)
    return bool(entry["claim"] == claim and entry["after"] == max(claim, commit))


def fits(entry: Mapping[str, Any], sequence: int, before: Mapping[str, Any]) -> bool:
    """Whether an entry names the snapshots that were the latest as of the entry before it, at `sequence`."""
    named = bases(sequence, before)
    if (entry["base"], entry["older"]) == named:
        return True
    passed_over = before["kind"] == "claim" and entry["kind"] == "commit"  # the new owner found a snapshot damaged
    return passed_over and entry["older"] == 0 and entry["base"] in (0, *named)


@dataclass
class Chain:
    """The entries of a log, one after another: what does not follow is none, be it a copy of one.

    Attributes:
        claim, commit: the last ones; 0 at the begin of the log.
        before: the last entry and its sequence; None where it is not known.
    """

    bus: Bus
    address: LogAddress
    claim: int = 0
    commit: int = 0
    before: tuple[int, Mapping[str, Any]] | None = None

    async def step(self, message: Message, pieces: Mapping[int, Message] = NO_PIECES) -> Mapping[str, Any] | None:
        """Go on to a message: what it changes in the tables; None for what no engine wrote. Raises BusError.

        `pieces`: those that are known, by sequence.
        """
        entry = readable(message.data)
        if entry is None or not follows(entry, self.claim, self.commit) or not self._fits(entry):
            return None
        changed = {} if entry["kind"] == "claim" else await changes(self.bus, self.address, message, entry, pieces)
        if changed is None:
            return None
        if entry["kind"] == "claim":
            self.claim = message.sequence
        else:
            self.commit = message.sequence
        self.before = message.sequence, entry
        return changed

    def _fits(self, entry: Mapping[str, Any]) -> bool:
        if self.before is not None:
            return fits(entry, *self.before)
        return self.claim > 0 or (entry["base"], entry["older"]) == (0, 0)


class Read(NamedTuple):
    """What was read back.

    Attributes:
        bytes: of entries. passed: how many messages were no entries.
        base: the entry whose snapshot was taken, 0 for none. size: of the snapshot.
        commit: the last one.
        asks: the requests that this holds, by the numbers of their calls.
    """

    bytes: int
    passed: int
    base: int
    size: int
    commit: int
    asks: Mapping[int, NewMessage]


def say_passed_over(address: LogAddress, strange: Sequence[int]) -> None:
    """One line, however many there are."""
    if strange:
        between = {"first": min(strange), "last": max(strange)}
        _log.error("what is no log entry is passed over", subject=address.subject, messages=len(strange), **between)


async def read_back(
    bus: Bus, address: LogAddress, base: int, older: int, stop: int, tables: Tables, entries: Entries | None = None
) -> Read:
    """Bring `tables`, which are new, to the entry at `stop`. Raises BusError; Unreachable while the entry is not to be seen.

    `entries`: what of it need not be asked for, as far as it is there.
    """
    taken = await _snapshot(bus, address, base, older, tables)
    chain = Chain(bus, address, taken[2], taken[1].at) if taken else Chain(bus, address)
    start, size, strange, pieces = chain.commit + 1, 0, list[int](), dict[int, Message]()
    last: Mapping[str, Any] = {}
    found = entries.between(address, start, stop) if entries is not None else None
    if found is None:
        # With the pieces of all entries: to ask for those of each would take two questions an entry, where payloads are sealed.
        found = await scanned(bus, address.stream, [address.subject, address.pieces], start, stop)
    for message in found:
        if message.subject == address.pieces:
            pieces[message.sequence] = message
            continue
        changed = await chain.step(message, pieces)
        if changed is None:
            strange.append(message.sequence)
            continue
        size += len(message.data) + sum(len(piece.data) for piece in pieces.values())
        pieces.clear()
        tables.apply(changed, message.sequence)
        last = chain.before[1] if chain.commit == message.sequence and chain.before is not None else last
    say_passed_over(address, strange)
    return Read(size, len(strange), taken[0] if taken else 0, taken[1].size if taken else 0, chain.commit, requests_in(last))


async def _snapshot(bus: Bus, address: LogAddress, base: int, older: int, tables: Tables) -> tuple[int, Snapshot, int] | None:
    """Take over the latest snapshot that is whole: the entry that names it, the snapshot, and the claim of both."""
    for named in (base, older):
        entry = await entry_at(bus, address, named)
        if entry is not None and "snapshot" in entry:
            snapshot = Snapshot(*entry["snapshot"])
            if await restored(bus, address, snapshot, tables):
                return named, snapshot, entry["claim"]
        if named:
            _log.error("a snapshot is damaged, the one before it is taken", subject=address.subject, sequence=named)
    return None


async def named_snapshot(bus: Bus, address: LogAddress, sequence: int) -> Snapshot | None:
    """The snapshot that an entry names; None for none."""
    entry = await entry_at(bus, address, sequence)
    return Snapshot(*entry["snapshot"]) if entry is not None and "snapshot" in entry else None


async def restored(bus: Bus, address: LogAddress, snapshot: Snapshot, tables: Tables) -> bool:
    """Take over a snapshot. False, and nothing is changed, where it is damaged or gone. Raises BusError: a newer version."""
    found = await bus.scan(address.stream, [address.snapshots], start=snapshot.first, stop=snapshot.last)
    whole = await _joined(bus, address, found)
    if hashlib.sha256(whole).digest() != snapshot.sha256:
        return False
    with _no_garbage():
        if (rows := _rows(whole)) is None:
            raise from_later(snapshot.first, "snapshot")
        tables.restore(rows)
    return True


@contextmanager
def _no_garbage() -> Generator[None, None, None]:
    """Many rows come at once, and all of them stay: looking at them again and again for garbage took half of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


async def changes(
    bus: Bus, address: LogAddress, message: Message, entry: Mapping[str, Any], known: Mapping[int, Message] = NO_PIECES
) -> Mapping[str, Any] | None:
    """What an entry changed in the tables, as plain data; None where that is none: no engine wrote it, or pieces are damaged.

    `known`: pieces that need not be asked for, by sequence. Raises BusError; Unreachable while the pieces are not to be seen.
    """
    if "pieces" not in entry:
        if not (sound := are_changes(entry["tables"])) and is_as_stored(message.data):
            raise from_later(message.sequence)
        return cast("Mapping[str, Any]", entry["tables"]) if sound else None
    stream, first = address.stream, message.sequence - entry["covers"]
    if (stop := first + entry["pieces"] - 1) < entry["pieces"]:
        return None
    if all(sequence in known for sequence in range(first, stop + 1)):
        found = [known[sequence] for sequence in range(first, stop + 1)]
    else:
        if await stored(bus, stream, stop) is None and ((info := await bus.stream(stream)) is None or info.last < stop):
            raise _behind(stream, stop)
        found = await bus.scan(stream, [address.pieces], start=first, stop=stop)
    if len(found) < entry["pieces"]:
        return None
    whole = await _joined(bus, address, found)
    rows = _rows(whole) if entry.get("whole") in (None, summed_up := sum_of_pieces(whole)) else None
    if rows is None and entry.get("whole") == summed_up and is_as_stored(message.data):
        raise from_later(message.sequence)
    return rows


async def _joined(bus: Bus, address: LogAddress, pieces: Sequence[Message]) -> bytes:
    """What pieces hold together; less than that where one cannot be opened. Raises NotAllowed where the key is missing here."""
    whole = [await payloads.checked_out(bus, address.app, m) if subjects.SEALED in m.headers else m for m in pieces]
    return b"".join(m.data for m in whole if m is not None)


def _rows(data: bytes) -> Mapping[str, Any] | None:
    try:
        rows = plain(data)
    except ValueError:  # one of the pieces is not what was written
        return None
    return rows if are_changes(rows) else None
