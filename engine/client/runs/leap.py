"""What of a run is outstanding while its history is read; and how long nothing happens to that, as snapshots tell.

A call may wait for a person for a week, in a partition that takes a million events meanwhile. A snapshot that has the row of
the call as it was opened says that no entry up to it concerns the call: they need not be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

from dspex.bus.port import Bus
from dspex.engine.client.following.progress import PartitionId
from dspex.engine.log.entries import LogAddress, bases, packed, readable
from dspex.engine.log.reading import named_snapshot, restored
from dspex.engine.log.rows import NONE, OpenCall, Position, Timer
from dspex.engine.log.tables import Tables

T = TypeVar("T")
OpenRow: TypeAlias = OpenCall | Timer
_LARGEST: Final = 16 << 20  # bytes of a snapshot: to read a larger one may take longer than to read the log
_STEP: Final = 8  # how much further it is looked each time, while nothing happens: in units of what is read at a time, at first
_APART: Final = b"pieces"  # the key of an entry that does not hold what it changes


@dataclass
class Outstanding:
    """What of a run is not done yet.

    Attributes:
        waiting: input of a partition → message → its last event of the run.
        open: table of a partition → number → row.
    """

    waiting: dict[tuple[PartitionId, str], dict[int, int]] = field(default_factory=dict)
    open: dict[tuple[PartitionId, str], dict[int, OpenRow]] = field(default_factory=dict)

    @property
    def partitions(self) -> set[PartitionId]:
        """Where something is outstanding."""
        return {partition for partition, _ in (*self.waiting, *self.open)}

    def wait(self, where: PartitionId, input: str, sequence: int, last: int) -> None:
        """A message must be taken there."""
        self.waiting.setdefault((where, input), {})[sequence] = last

    def took(self, where: PartitionId, input: str, sequence: int) -> None:
        """It was taken wholly."""
        self._drop(self.waiting, (where, input), sequence)

    def closed(self, where: PartitionId, table: str, number: int) -> None:
        """A row is gone."""
        self._drop(self.open, (where, table), number)

    @staticmethod
    def _drop(table: dict[tuple[PartitionId, str], dict[int, T]], key: tuple[PartitionId, str], one: int) -> None:
        del table[key][one]
        if not table[key]:
            del table[key]

    def may_be_in(self, where: PartitionId, entry: bytes) -> bool:
        """Whether an entry of a partition can concern it, as far as its bytes say: rows are changed by their numbers."""
        if any(partition == where for partition, _ in self.waiting):
            return True
        numbers = [number for (partition, _), rows in self.open.items() if partition == where for number in rows]
        return any(packed(number) in entry for number in numbers) or (bool(numbers) and _APART in entry)

    def is_untouched(self, where: PartitionId, tables: Tables) -> bool:
        """Whether all of it that is in a partition is in its tables as it was."""
        taken = [(input, seq) for (partition, input), seqs in self.waiting.items() if partition == where for seq in seqs]
        splits = {(place.input, place.sequence) for place in tables.splits.rows}
        if any(_begun(tables.positions.rows.get(input), seq) or (input, seq) in splits for input, seq in taken):
            return False
        return all(_same(tables, number, row) for number, row in self._rows(where))

    def _rows(self, where: PartitionId) -> Iterator[tuple[int, OpenCall | Timer]]:
        for (partition, _), rows in self.open.items():
            if partition == where:
                yield from rows.items()


def _begun(position: Position | None, sequence: int) -> bool:
    return position is not None and position.sequence >= sequence


def _same(tables: Tables, number: int, row: OpenCall | Timer) -> bool:
    """Whether a table has a row as it was; the place of a request is another one in an entry."""
    if isinstance(row, OpenCall):
        call = tables.calls.rows.get(number)
        return call is not None and call._replace(work=0) == row._replace(work=0)
    return tables.timers.rows.get(number) == row


async def leap(bus: Bus, app: str, left: Outstanding, start: int, last: int, *, near: int) -> int:
    """The sequence before which no entry from `start` on concerns what is outstanding, within about `near`; `start` where
    nothing tells. `last`: of the stream.

    What a snapshot has as it was, those before it have too. So the latest such time is found by halving, and a run that waited
    long, and is done, costs some snapshots.
    """
    reach = _Reach(bus, app, left, start)
    there, clear, over, step = start, start, last + 1, _STEP * near
    while over - clear > near and clear < last:
        at = min(clear + step, (clear + over) // 2 if over <= last else last)
        if (found := await reach.until(at)) is None:
            over = at
        else:
            there, clear, step = max(there, found), max(at, found), step * _STEP
    return min(there, last + 1)


class _Reach:
    """What snapshots tell of what is outstanding."""

    def __init__(self, bus: Bus, app: str, left: Outstanding, start: int) -> None:
        self._bus, self._app, self._left, self._start = bus, app, left, start
        self._first: dict[PartitionId, int] = {}  # the first message of its log that is not read yet
        self._told: dict[tuple[PartitionId, int], int | None] = {}  # by the snapshot

    async def until(self, at: int) -> int | None:
        """The sequence before which nothing concerns it, as the snapshots of about `at` say; None where one says that something
        did, or cannot be read."""
        found = list[int]()
        for where in self._left.partitions:
            address = LogAddress.of(self._app, *where)
            if where not in self._first:
                first = await self._bus.next(address.stream, address.subject, self._start)
                self._first[where] = first.sequence if first is not None else NONE
            there = self._first[where] if at <= self._first[where] else await self._as_of(where, address, at)
            if there is None:
                return None
            found.append(there)
        return min(found, default=None)

    async def _as_of(self, where: PartitionId, address: LogAddress, at: int) -> int | None:
        """The same of one partition, which has entries before."""
        message = await self._bus.next(address.stream, address.subject, at)
        message = message or await self._bus.last(address.stream, address.subject)
        entry = readable(message.data) if message is not None else None
        if message is None or entry is None:
            return None
        named = bases(message.sequence, entry)[0]
        if (where, named) not in self._told:
            self._told[where, named] = await self._untouched(where, address, named)
        return self._told[where, named]

    async def _untouched(self, where: PartitionId, address: LogAddress, named: int) -> int | None:
        """What is behind the snapshot that an entry names, where all is in that as it was; one of before says nothing."""
        snapshot, tables = await named_snapshot(self._bus, address, named), Tables()
        if snapshot is None or snapshot.at < self._start:
            return self._start
        if snapshot.size > _LARGEST:
            return None
        whole = await restored(self._bus, address, snapshot, tables)
        return snapshot.at + 1 if whole and self._left.is_untouched(where, tables) else None
