"""What of a run is outstanding while its history is read; and how long nothing happens to that, as snapshots tell.

A call may wait for a person for a week, in a partition that takes a million events meanwhile. A snapshot that has the row of
the call as it was opened says that no entry up to it concerns the call: they need not be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from dspex.bus.port import Bus
from dspex.engine.client.following.progress import PartitionId
from dspex.engine.log.entries import LogAddress, bases, packed
from dspex.engine.log.latest import latest
from dspex.engine.log.reading import named_snapshot, restored
from dspex.engine.log.rows import OpenCall, Position, Timer
from dspex.engine.log.tables import Tables

T = TypeVar("T")
_LARGEST: Final = 16 << 20  # bytes of a snapshot: to read a larger one may take longer than to read the log
_APART: Final = b"pieces"  # the key of an entry that does not hold what it changes


@dataclass
class Outstanding:
    """What of a run is not done yet.

    Attributes:
        waiting: input of a partition → message → its last event of the run.
        open: table of a partition → number → row.
    """

    waiting: dict[tuple[PartitionId, str], dict[int, int]] = field(default_factory=dict)
    open: dict[tuple[PartitionId, str], dict[int, OpenCall | Timer]] = field(default_factory=dict)

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


async def leap(bus: Bus, app: str, left: Outstanding, start: int) -> int:
    """The sequence before which no entry from `start` on concerns what is outstanding; `start` where nothing tells."""
    found = list[int]()
    for where in left.partitions:
        address = LogAddress.of(app, *where)
        end = await latest(bus, address)
        snapshot = await named_snapshot(bus, address, bases(end.at, end.entry)[0]) if end.at else None
        if snapshot is None or snapshot.at < start or snapshot.size > _LARGEST:
            return start
        tables = Tables()
        if not await restored(bus, address, snapshot, tables) or not left.is_untouched(where, tables):
            return start
        found.append(snapshot.at + 1)
    return min(found, default=start)
