"""Reading a commit log: its latest entry, and the tables as of an entry. Nothing here writes.

A server that has just become the leader of a stream may not have all of it yet. So what is not found there is not gone: a log
is read again until the entry is seen that it is read up to, and a message is gone only where the stream reaches beyond it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from dspex.bus.errors import NotStored, Unreachable
from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.engine.log.entries import (
    VERSION,
    ClaimFacts,
    LogAddress,
    Snapshot,
    bases,
    damaged,
    facts,
    other_version,
    plain,
    readable,
    version,
)
from dspex.engine.log.tables import Tables

_log = structlog.get_logger("dspex.engine")
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)  # seconds between looks at a leader that is behind: a new one takes 4 to 9
WINDOW = 1000  # sequences looked at for the entry before what is none; four times as many each time

Newest = Callable[[], Awaitable[int]]
"""The version of the manifest that is applied."""


async def stored(bus: Bus, stream: str, sequence: int) -> Message | None:
    """A message that was seen in a stream; None where it is gone for good, or the stream is not there."""
    try:
        return await stored_in(bus, stream, sequence)
    except NotStored:
        return None


async def stored_in(bus: Bus, stream: str, sequence: int) -> Message | None:
    """A message that was seen in a stream; None where it is gone for good. Raises NotStored where the stream is not there."""
    for pause in (*PAUSES, 0.0):
        info = await bus.stream(stream)
        if info is None:
            raise NotStored(f"stream {stream} is not there", fix="restore it")
        if (found := await bus.get(stream, sequence)) is not None or info.last >= sequence:  # who has come so far knows
            return found
        await asyncio.sleep(pause)
    return None  # the stream was rolled back, or made anew


async def scanned(bus: Bus, stream: str, subject: str, start: int, stop: int) -> list[Message]:
    """The messages of a subject up to the one at `stop`, which was stored. Raises Unreachable where it is not seen."""
    for pause in (*PAUSES, 0.0):
        found = await bus.scan(stream, [subject], start=start, stop=stop)
        if found and found[-1].sequence == stop:
            return found
        await asyncio.sleep(pause)
    raise Unreachable(f"{stream} does not reach message {stop}, which was stored: its leader is behind", fix="try again")


# -- the latest entry ---------------------------------------------------------------------------------------------------
class Latest(NamedTuple):
    """The end of a log: the last message there, the last entry (0 for none), and what its claim says."""

    last: int = 0
    at: int = 0
    entry: Mapping[str, Any] = {}
    facts: ClaimFacts = ClaimFacts(0, "", 0, {})


async def latest(bus: Bus, address: LogAddress, newest: Newest | None = None) -> Latest:
    """The end of a log. What is not an entry is passed over.

    `newest`: where it is known, a claim for a newer manifest than that is none. Raises BusError for another version's log.
    """
    return await end_of(bus, address, await bus.last(address.stream, address.subject), newest)


async def end_of(
    bus: Bus, address: LogAddress, last: Message | None, newest: Newest | None = None, *, known: int = 0
) -> Latest:
    """The end of a log whose last message is known; see `latest`. `known`: a version that was applied: not asked for."""
    if last is None:
        return Latest()
    found, stop, width = [last], last.sequence, WINDOW
    while True:
        for message in reversed(found):
            if (entry := await _genuine(bus, address, message, newest, known)) is not None:
                return Latest(last.sequence, message.sequence, entry[0], entry[1])
            _log.error("what is no log entry is passed over", subject=address.subject, sequence=message.sequence)
        if stop <= 1:
            return Latest(last.sequence)
        start = max(1, stop - width)
        found = await bus.scan(address.stream, [address.subject], start=start, stop=stop - 1)
        stop, width = start, width * 4


async def _genuine(
    bus: Bus, address: LogAddress, message: Message, newest: Newest | None, known: int
) -> tuple[Mapping[str, Any], ClaimFacts] | None:
    """The entry that a message at the end of the log is, and the facts of its claim; None for what no engine wrote."""
    entry = readable(message.data)
    if entry is None:
        await _same_version(bus, address, message)
        return None
    found = await _facts(bus, address, message, entry)
    if found is None or (newest is not None and found.manifest > known and found.manifest > await newest()):
        return None
    return entry, found


async def _same_version(bus: Bus, address: LogAddress, message: Message) -> None:
    """Raise BusError where the log is of another version of dspex: where it begins so, or a newer one went on with it."""
    number = version(message.data)
    if number is None or number == VERSION:
        return
    first = await bus.next(address.stream, address.subject, 1)
    if number > VERSION or first is None or version(first.data) not in (None, VERSION):
        raise other_version(number)


async def _facts(bus: Bus, address: LogAddress, message: Message, entry: Mapping[str, Any]) -> ClaimFacts | None:
    """The facts of the claim that an entry stands under; None where it refers to what is not there."""
    if not _looks_back(entry, message.sequence):
        return None
    if entry["kind"] == "claim":
        after: int = entry["after"]
        before = await _entry_at(bus, address, after) if after else await _first(bus, address)
        begins = not after and entry["base"] == 0 and before is not None and is_first(before)  # nothing was committed yet
        sound = begins or (after > 0 and before is not None and _fits(entry, after, before))
        return facts(entry) if sound and await _is_last(bus, address, after, before, message.sequence) else None
    if "snapshot" in entry:
        return facts(entry)
    where = max(entry["claim"], entry["base"])
    said = await _entry_at(bus, address, where)
    return facts(said) if said is not None and "epoch" in said and _fits(entry, where, said) else None


async def _is_last(bus: Bus, address: LogAddress, commit: int, at: Mapping[str, Any] | None, sequence: int) -> bool:
    """Whether no commit follows the one at `commit` before `sequence`: else the claim there is a copy of an earlier one."""
    claim, before = (at["claim"], (commit, at)) if at is not None and commit else (0, None)
    for message in await bus.scan(address.stream, [address.subject], start=commit + 1, stop=sequence - 1):
        entry = readable(message.data)
        if entry is not None and follows(entry, claim, commit) and (before is None or _fits(entry, *before)):
            if entry["kind"] == "commit":
                return False
            claim, before = message.sequence, (message.sequence, entry)
    return True


def _looks_back(entry: Mapping[str, Any], sequence: int) -> bool:
    """Whether what an entry refers to lies before it."""
    return all(0 <= entry.get(name, 0) < sequence for name in ("claim", "after", "base", "older"))


def _fits(entry: Mapping[str, Any], sequence: int, before: Mapping[str, Any]) -> bool:
    """Whether an entry names the snapshots that were the latest as of the entry before it, at `sequence`."""
    named = bases(sequence, before)
    if (entry["base"], entry["older"]) == named:
        return True
    passed_over = before["kind"] == "claim" and entry["kind"] == "commit"  # the new owner found a snapshot damaged
    return passed_over and entry["older"] == 0 and entry["base"] in (0, *named)


async def _first(bus: Bus, address: LogAddress) -> Mapping[str, Any] | None:
    """The first entry of a log; None for none."""
    sequence = 1
    while (message := await bus.next(address.stream, address.subject, sequence)) is not None:
        if (entry := readable(message.data)) is not None:
            return entry
        sequence = message.sequence + 1
    return None


async def _entry_at(bus: Bus, address: LogAddress, sequence: int) -> Mapping[str, Any] | None:
    message = await stored(bus, address.stream, sequence) if sequence > 0 else None
    return readable(message.data) if message is not None and message.subject == address.subject else None


def is_first(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is the one that every log begins with."""
    return bool(entry["kind"] == "claim" and entry["epoch"] == 1)


# -- the tables ---------------------------------------------------------------------------------------------------------
class Read(NamedTuple):
    """What was read back.

    Attributes:
        bytes: of entries. passed: how many messages were no entries.
        base: the entry whose snapshot was taken, 0 for none. size: of the snapshot.
        commit: the last one.
    """

    bytes: int
    passed: int
    base: int
    size: int
    commit: int


async def read_back(bus: Bus, address: LogAddress, base: int, older: int, stop: int, tables: Tables) -> Read:
    """Bring `tables`, which are new, to the entry at `stop`. Raises BusError; Unreachable while the entry is not to be seen."""
    taken = await _snapshot(bus, address, base, older, tables)
    start, claim, commit = (taken[1].at + 1, taken[2], taken[1].at) if taken else (1, 0, 0)
    size, passed, before = 0, 0, None  # the entry before, once the one that names the snapshot is read
    for message in await scanned(bus, address.stream, address.subject, start, stop):
        entry = readable(message.data)
        if entry is not None and base and not taken and not (claim or is_first(entry)):
            raise damaged(f"the snapshot of {address.subject}")  # without one the whole log must be there
        if entry is None or not (follows(entry, claim, commit) and (before is None or _fits(entry, *before))):
            passed += 1
            _log.error("what is no log entry is passed over", subject=address.subject, sequence=message.sequence)
            continue
        size += len(message.data)
        if entry["kind"] == "claim":
            claim = message.sequence
        else:
            commit = message.sequence
            await apply(bus, address, message, entry, tables)
        if taken is None or message.sequence >= taken[0]:
            before = message.sequence, entry
    return Read(size, passed, taken[0] if taken else 0, taken[1].size if taken else 0, commit)


def follows(entry: Mapping[str, Any], claim: int, commit: int) -> bool:
    """Whether an entry goes on from these: each claim names the commit before it, and each commit its claim."""
    return bool(entry["after"] == commit if entry["kind"] == "claim" else entry["claim"] == claim)


async def _snapshot(bus: Bus, address: LogAddress, base: int, older: int, tables: Tables) -> tuple[int, Snapshot, int] | None:
    """Take over the latest snapshot that is whole: the entry that names it, the snapshot, and the claim of both."""
    for named in (base, older):
        entry = await _entry_at(bus, address, named)
        if entry is not None and "snapshot" in entry:
            snapshot = Snapshot(*entry["snapshot"])
            if await restored(bus, address, snapshot, tables):
                return named, snapshot, entry["claim"]
        if named:
            _log.error("a snapshot is damaged, the one before it is taken", subject=address.subject, sequence=named)
    return None


async def named_snapshot(bus: Bus, address: LogAddress, sequence: int) -> Snapshot | None:
    """The snapshot that an entry names; None for none."""
    entry = await _entry_at(bus, address, sequence)
    return Snapshot(*entry["snapshot"]) if entry is not None and "snapshot" in entry else None


async def restored(bus: Bus, address: LogAddress, snapshot: Snapshot, tables: Tables) -> bool:
    """Take over a snapshot. False, and nothing is changed, where it is damaged or gone."""
    found = await bus.scan(address.stream, [address.snapshots], start=snapshot.first, stop=snapshot.last)
    whole = b"".join(m.data for m in found)
    if hashlib.sha256(whole).digest() != snapshot.sha256:
        return False
    tables.restore(plain(whole))
    return True


async def apply(bus: Bus, address: LogAddress, message: Message, entry: Mapping[str, Any], tables: Tables) -> None:
    """Take over what an entry changed. Raises BusError where its pieces are not whole."""
    tables.apply(await changes(bus, address, message, entry), message.sequence)


async def changes(bus: Bus, address: LogAddress, message: Message, entry: Mapping[str, Any]) -> Any:
    """What an entry changed in the tables, as plain data. Raises BusError where its pieces are not whole."""
    if "pieces" not in entry:
        return entry["tables"]
    first = message.sequence - entry["covers"]
    found = await scanned(bus, address.stream, address.pieces, first, first + entry["pieces"] - 1)
    return _joined(found, entry["pieces"])


def _joined(found: Sequence[Message], count: int) -> Any:
    if len(found) == count:
        try:
            return plain(b"".join(m.data for m in found))
        except ValueError:
            pass  # one of them is not what was written
    raise damaged("a log entry")


async def look(bus: Bus, app: str, topology: str, stage: str, partition: int) -> Tables:
    """The tables of a partition as its log says now, without a claim: its owner may change them at once."""
    address, tables = LogAddress.of(app, topology, stage, partition), Tables()
    end = await latest(bus, address)
    if end.at:
        await read_back(bus, address, *bases(end.at, end.entry), end.at, tables)
    return tables
