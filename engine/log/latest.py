"""The end of a commit log: its latest entry. Nothing here writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dspex.bus import subjects
from dspex.bus.errors import RecordingIncomplete
from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.bus.seldom import logger
from dspex.engine.log.entries import (
    VERSION,
    ClaimFacts,
    LogAddress,
    bases,
    facts,
    other_version,
    readable,
    version,
    without_begin,
)
from dspex.engine.log.positions import Entries, pages
from dspex.engine.log.reading import (
    Chain,
    entry_at,
    fits,
    follows,
    is_first,
    named_snapshot,
    read_back,
    say_passed_over,
)
from dspex.engine.log.rows import NONE
from dspex.engine.log.tables import Tables

_log = logger("dspex.engine")
AT_ONCE = 16  # logs that are read
EACH = 500  # entries for each log that one pass brings; those of a log that was seldom used lie too far back for it
WINDOW = 1000  # sequences looked at for the entry before what is none; four times as many each time

Newest = Callable[[], Awaitable[int]]
"""The version of the manifest that is applied."""


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
    found, stop, width, goes_on = [last], last.sequence, WINDOW, False
    strange: list[int] = []
    while True:
        for message in reversed(found):
            if (entry := await _genuine(bus, address, message, newest, known)) is not None:
                say_passed_over(address, strange)
                return Latest(last.sequence, message.sequence, entry[0], entry[1])
            strange.append(message.sequence)
            goes_on = goes_on or _goes_on(message)
        if stop <= 1:
            say_passed_over(address, strange)
            if goes_on and await _has_commits(bus, address):
                raise without_begin(address.subject)
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
    """The facts of the claim that an entry stands under; None where it does not follow the one that it names."""
    if not _looks_back(entry, message.sequence):
        return None
    after: int = entry["after"]
    own = entry["kind"] == "claim" or "snapshot" in entry  # it says the facts itself
    where = after if own else max(entry["claim"], entry["base"])
    before, first, said = await asyncio.gather(  # all at once: over a slow wire each costs a round trip
        entry_at(bus, address, after),
        bus.next(address.stream, address.subject, after + 1),
        entry_at(bus, address, where) if where != after else _nothing(),
    )
    if not await _is_next(bus, address, message, entry, before, first):
        return None
    if own:
        return facts(entry)
    said = before if where == after else said
    return facts(said) if said is not None and "epoch" in said and fits(entry, where, said) else None


async def _nothing() -> None:
    return None


async def _is_next(
    bus: Bus,
    address: LogAddress,
    message: Message,
    entry: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    first: Message | None,
) -> bool:
    """Whether an entry is the next one behind `before`, which it names: a copy of one is not. `first`: what is behind it."""
    after = entry["after"]
    if before is not None:
        last = (after, before["after"]) if before["kind"] == "claim" else (before["claim"], after)
        chain = Chain(bus, address, *last, (after, before))
    elif "snapshot" in entry and entry["kind"] == "commit":  # it says again what was removed before it
        chain = Chain(bus, address, entry["claim"], after)
    elif not after and await _begins(bus, address):
        chain = Chain(bus, address)
    else:
        return False
    if first is not None and first.sequence < message.sequence:  # what lies between them must be no entry
        await chain.step(first)
        if not follows(entry, chain.claim, chain.commit):
            return False
        start, stop = first.sequence + 1, message.sequence - 1
        for between in await bus.scan(address.stream, [address.subject], start=start, stop=stop):
            await chain.step(between)
    return await chain.step(message) is not None


async def _has_commits(bus: Bus, address: LogAddress) -> bool:
    """Whether engines have committed here: entries were stored together with others. Copies of entries were not."""
    async for page in pages(bus, address.stream, [address.subject]):
        if any(message.in_batch and _goes_on(message) for message in page):
            return True
    return False


def _goes_on(message: Message) -> bool:
    """Whether a message can be an entry behind others."""
    entry = readable(message.data)
    return entry is not None and _looks_back(entry, message.sequence) and bool(entry["after"])


def _looks_back(entry: Mapping[str, Any], sequence: int) -> bool:
    """Whether what an entry refers to lies before it."""
    return all(0 <= entry.get(name, 0) < sequence for name in ("claim", "after", "base", "older"))


async def _begins(bus: Bus, address: LogAddress) -> bool:
    """Whether the log has its begin: the first entry is the first claim."""
    sequence = 1
    while (message := await bus.next(address.stream, address.subject, sequence)) is not None:
        if (entry := readable(message.data)) is not None:
            return is_first(entry)
        sequence = message.sequence + 1
    return False


async def look(
    bus: Bus, app: str, topology: str, stage: str, partition: int, names: Mapping[str, str] | None = None, *, at: int = NONE
) -> Tables:
    """The tables of a partition as its log says, without a claim: its owner may change them at once.

    `names`: old name → new name of operators. `at`: as of the last entry up to this sequence of the stream.
    Raises RecordingIncomplete where what was then is not kept any more.
    """
    address, tables = LogAddress.of(app, topology, stage, partition), Tables(names=names)
    last = await bus.last(address.stream, address.subject)
    if last is not None and last.sequence > at:
        return (await as_of(bus, address, at, names))[0]
    end = await end_of(bus, address, last)
    if end.at:
        await read_back(bus, address, *bases(end.at, end.entry), end.at, tables)
    return tables


async def as_of(bus: Bus, address: LogAddress, at: int, names: Mapping[str, str] | None) -> tuple[Tables, Chain]:
    """The tables as of the last entry up to a sequence, from the snapshot that was the latest then and what follows it; and
    the entries up to it."""
    stop, width = at, WINDOW
    while stop > 0:
        start = max(1, stop - width + 1)
        for message in reversed(await bus.scan(address.stream, [address.subject], start=start, stop=stop)):
            if (entry := readable(message.data)) is None:
                continue
            tables, sequence = Tables(names=names), message.sequence
            claims = entry["kind"] == "claim"
            claim, commit = (sequence, entry["after"]) if claims else (entry["claim"], sequence)
            if (await read_back(bus, address, *bases(sequence, entry), sequence, tables)).commit != commit:
                raise _not_kept(address)
            return tables, Chain(bus, address, claim, commit, (sequence, entry))
        stop, width = start - 1, width * 4
    if await _begins(bus, address):
        return Tables(names=names), Chain(bus, address)  # it had not begun
    raise _not_kept(address)


def _not_kept(address: LogAddress) -> RecordingIncomplete:
    why = f"what {address.subject} said then is not kept any more"
    return RecordingIncomplete(why, fix="ask for a later time: what is older than the topology's retention= is removed")


async def look_at_many(
    bus: Bus, app: str, topology: str, stage: str, partitions: Sequence[int], names: Mapping[str, str] | None = None
) -> list[Tables]:
    """The tables of partitions of a stage, as `look` gives them of one. Raises BusError.

    For the entries of one log the server looks through all that is stored meanwhile: of 64, one by one, that takes seconds. So
    nearly all of them are read in one pass.
    """
    limit, addresses = asyncio.Semaphore(AT_ONCE), [LogAddress.of(app, topology, stage, i) for i in partitions]

    async def end(address: LogAddress) -> tuple[Latest, int]:
        async with limit:
            found = await latest(bus, address)
            snapshot = await named_snapshot(bus, address, bases(found.at, found.entry)[0]) if found.at else None
            return found, snapshot.at + 1 if snapshot is not None else 1

    async def read(address: LogAddress, found: Latest) -> Tables:
        tables = Tables(names=names)
        if found.at:
            async with limit:
                await read_back(bus, address, *bases(found.at, found.entry), found.at, tables, entries)
        return tables

    ends = await asyncio.gather(*map(end, addresses))
    whole = [subjects.log(app, topology, stage, "*"), subjects.pieces(app, topology, stage, "*")]
    entries = await _entries(bus, subjects.stream(app), whole, sorted(start for found, start in ends if found.at))
    return await asyncio.gather(*(read(address, found) for address, (found, _) in zip(addresses, ends, strict=True)))


async def _entries(bus: Bus, stream: str, whole: Sequence[str], starts: Sequence[int]) -> Entries | None:
    """The entries of all logs, with pieces, from where on there are not too many. `starts`: where each log is read from."""
    low, high = 0, len(starts)
    while len(starts) > 1 and low < high:
        middle = (low + high) // 2
        if await bus.count(stream, whole[:1], after=starts[middle] - 1) <= EACH * len(starts):
            high = middle
        else:
            low = middle + 1
    if len(starts) - low < 2:
        return None
    found: dict[str, list[Message]] = {}
    for pattern in whole:  # with two filters at once the server looks at each message
        async for page in pages(bus, stream, [pattern], start=starts[low]):
            for message in page:
                found.setdefault(message.subject, []).append(message)
    return Entries(starts[low], found)
