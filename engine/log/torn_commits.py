"""Removes what a torn commit has left behind.

A commit is all or nothing, but for two cases: a server that loses power before it has synced, and one that reaches its limit
in the middle of a batch (seen with 2.15.1: what comes before the limit is stored, and nobody gets an answer). The log entry
is the last message of its commit, and says how many before it belong to it. So once a claim has a sequence, every message of
ours below it that no entry covers is a remainder: it is removed, and the new owner emits the same again, under the same ids.
A reader that has it already sees a repeat under the same id. Ours is what was stored in a batch, on a subject that commits
write to: what others publish there, be it a copy of an output with its headers, stays.

Housekeeping removes entries, and leaves what they covered: sinks and dead letters are the user's. An entry that was removed
leaves a hole in the sequences, right behind what it covered, and a torn commit leaves none.

What was looked at stays as it is, so the bucket keeps up to where that was done: a partition that was idle for months would
else let each start read all that others have stored since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import orjson

from dspex.bus import subjects
from dspex.bus.message import Message
from dspex.bus.port import COMMIT_LIMIT, Bus
from dspex.bus.seldom import logger
from dspex.engine.graph.graph import Graph
from dspex.engine.log.entries import VERSION, readable, version

_log = logger("dspex.engine")
PAGE = 5_000  # sequences that are judged at a time


class _Seen(NamedTuple):
    """What counts of a message.

    Attributes:
        covers: how many messages before it belong to its commit.
        log: it lies in a log, or is a record. foreign: another version of dspex wrote that.
        ours: only a commit writes such messages.
    """

    sequence: int
    covers: int
    log: bool
    foreign: bool
    ours: bool


Span = tuple[int, int]
"""The first and the last of some sequences that follow each other."""


class TornCommits:
    """Looks at what lies before the claims of one process. Each message is looked at once, however many partitions claim."""

    def __init__(self, bus: Bus, app: str, graphs: Sequence[Graph]) -> None:
        self.bus, self._app, self._topologies = bus, app, [g.name for g in graphs]
        self.stream = subjects.stream(app)
        self._looked: list[Span] = []  # in order, and apart: partitions come to their claims from different entries
        self._logs, self._records = subjects.log(app, "*", "*", "*"), subjects.record(app, "*", "*", "*", "*")
        self._written = [p for g in graphs for p in (subjects.work_of(app, g.name), subjects.pieces(app, g.name, "*", "*"))]
        self._marked = [subjects.dead_pattern(app, g.name) for g in graphs]
        self._marked += [n.sink.pattern for g in graphs for n in g.sinks]

    async def before(self, claim: int, entry: int) -> None:
        """Remove what is torn between the last `entry` of a log and the `claim` that follows it. Raises BusError."""
        if self._looked and claim <= self._looked[-1][1]:
            self._looked.clear()  # the stream was rolled back: what is there now was never looked at
        created, kept = await self._kept()
        begin = max(entry, min(kept.values(), default=0))
        for start, stop in list(self._unseen(begin + 1, claim - 1)):
            for first in range(start, stop + 1, PAGE):
                await self._remove(first, min(first + PAGE - 1, stop), claim - 1)
        self._looked = _joined([*self._looked, (entry + 1, claim - 1)])
        bucket = await self.bus.bucket(subjects.bucket(self._app))
        for topology in [topology for topology, up_to in kept.items() if entry <= up_to < claim - 1]:
            await bucket.put(subjects.torn_key(topology), orjson.dumps([created, claim - 1]))

    async def _kept(self) -> tuple[float, dict[str, int]]:
        """When the stream was made, and up to which sequence everything was looked at, by topology of this process."""
        kept = dict.fromkeys(self._topologies, 0)
        asked = asyncio.gather(*[self._value(topology) for topology in kept])
        info, values = await asyncio.gather(self.bus.stream(self.stream), asked)
        for topology, found in zip(kept, values):
            try:
                created, sequence = orjson.loads(found[0]) if found is not None else (0.0, 0)
            except (ValueError, TypeError):  # nobody of ours wrote it
                continue
            if isinstance(sequence, int) and info is not None and created == info.created and 0 < sequence <= info.last:
                kept[topology] = sequence
        return info.created if info is not None else 0.0, kept

    async def _value(self, topology: str) -> tuple[bytes, int] | None:
        bucket = await self.bus.bucket(subjects.bucket(self._app))
        return await bucket.get(subjects.torn_key(topology))

    def _unseen(self, start: int, stop: int) -> Iterator[Span]:
        """The parts of `start` to `stop` that were not looked at."""
        for first, last in self._looked:
            if first > start:
                yield start, min(first - 1, stop)
            start = max(start, last + 1)
            if start > stop:
                return
        if start <= stop:
            yield start, stop

    async def _remove(self, first: int, last: int, end: int) -> None:
        """Remove what is torn from `first` to `last`. `end`: before the claim; no commit goes beyond it."""
        found = await self._seen(first, last)
        torn = _torn(found, first, last)
        if torn and last < end:  # the entry of the last ones may lie behind them
            stop = min(last + COMMIT_LIMIT, end)
            behind = await self._seen(last + 1, stop)
            torn = [sequence for sequence in _torn([*found, *behind], first, stop) if sequence <= last]
        if torn:
            _log.error("removes what a torn commit left", stream=self.stream, messages=len(torn), first=torn[0], last=torn[-1])
        for sequence in torn:
            await self.bus.delete(self.stream, sequence)

    async def _seen(self, first: int, last: int) -> list[_Seen]:
        """What counts of the messages from `first` to `last`. No more of them than a page is kept: others may have stored large
        ones there."""
        found: list[_Seen] = []
        while first <= last and (page := await self.bus.page(self.stream, [">"], start=first, stop=last, most=PAGE)):
            found += map(self._judged, page)
            first = found[-1].sequence + 1
        return found

    def _judged(self, m: Message) -> _Seen:
        log, covers = subjects.matches(self._logs, m.subject), 0
        # A copy of an entry covers nothing: what has messages before it was stored with them.
        if log and m.in_batch and (entry := readable(m.data)) is not None:
            covers = entry.get("covers", 0)
        if log or subjects.matches(self._records, m.subject):
            return _Seen(m.sequence, covers, True, version(m.data) not in (None, VERSION), False)
        return _Seen(m.sequence, 0, False, False, self._is_ours(m))

    def _is_ours(self, m: Message) -> bool:
        """Whether only a commit writes such messages. One alone is never torn, so what was stored alone is none."""
        if not m.in_batch:
            return False
        if any(subjects.matches(p, m.subject) for p in self._marked):
            return subjects.EVENT_ID in m.headers
        return any(subjects.matches(p, m.subject) for p in self._written)


def _torn(found: Sequence[_Seen], first: int, last: int) -> list[int]:
    """The sequences from `first` to `last` that only a commit writes, and whose commit has no entry and never had one.

    Where something was removed behind them, that may have been their entry: what is emitted stays longer than the log.
    """
    covered, torn = set[int](), list[int]()
    for m in found:
        covered.update(range(max(first, m.sequence - m.covers), m.sequence))
    behind, may_have = last + 1, False
    for m in reversed(found):
        may_have = may_have or m.sequence + 1 < behind
        behind = m.sequence
        if m.sequence in covered or m.log:
            may_have = m.sequence not in covered and m.foreign
        elif not may_have and m.ours:
            torn.append(m.sequence)
    return torn[::-1]


def _joined(spans: Sequence[Span]) -> list[Span]:
    """The same, in order, where those that overlap or touch are one."""
    joined: list[Span] = []
    for first, last in sorted(span for span in spans if span[0] <= span[1]):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined
