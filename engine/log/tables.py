"""The tables of a stage partition: everything durable that it knows, and the only code that edits it.

A table is rows by key. It says what changed since it was asked last, takes changes over from a log entry, and gives and
restores a snapshot. So a new durable row needs no new field anywhere: neither in the log entry, nor in recovery, nor in
the snapshot. All iterations are sorted, because the order of insertion differs after a recovery.

They stay small however long the run: events are in the stream, the event of a call is in its request and in its record, so
a call costs two rows here and no more.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from math import inf
from typing import Any, Generic, TypeAlias, TypeVar

from dspex.engine.log.rows import WITHIN, Holds, OpenCall, Place, Position, Split, Timer, pushed

K = TypeVar("K")
R = TypeVar("R")

Change: TypeAlias = tuple[str, Any, Any]
"""(table, key, row); None as row: it goes."""
_WOKEN = ("wake", "mark")


class Table(Generic[K, R]):
    """Rows by key, and which of them changed. `read` makes a row of plain data."""

    def __init__(self, read: Callable[[Any], R]) -> None:
        self.rows: dict[K, R] = {}
        self._read = read
        self._changed: dict[K, R | None] = {}

    def put(self, key: K, row: R) -> None:
        """Add a row, or change it."""
        self.rows[key] = self._changed[key] = row

    def drop(self, key: K) -> None:
        """Remove a row, if it is there."""
        if self.rows.pop(key, None) is not None:
            self._changed[key] = None

    def changes(self) -> list[tuple[K, R | None]]:
        """What changed since the last time, sorted by key."""
        changed, self._changed = self._changed, {}
        return sorted(changed.items())  # keys are unique, so rows are never compared

    def apply(self, changes: Iterable[tuple[Any, Any]]) -> None:
        """Take over what `changes` gave, from a log entry."""
        for key, raw in changes:
            if raw is None:
                self.drop(key)
            else:
                self.put(key, self._read(raw))
        self._changed.clear()

    def snapshot(self) -> list[tuple[K, R]]:
        """All rows, sorted by key: a shallow copy."""
        return sorted(self.rows.items())


class Calls(Table[int, OpenCall]):
    """The open calls of a partition, by number.

    Args:
        ordered: names of the call nodes whose records are handled in the order of their key.
        names: old name → new name of operators that were renamed.
    """

    def __init__(self, ordered: frozenset[str] = frozenset(), names: Mapping[str, str] | None = None) -> None:
        super().__init__(self._row)
        self._ordered, self._names = ordered, names or {}
        self._queues: dict[tuple[str, str | None], deque[int]] = {}  # ascending: numbers only grow
        self._holds = Holds(lambda node, number, at: number in self.rows)

    def _row(self, raw: Any) -> OpenCall:
        row = OpenCall(*raw)
        return row._replace(node=self._names.get(row.node, row.node))

    def put(self, key: int, row: OpenCall) -> None:
        if row.node in self._ordered and key not in self.rows:
            queue = self._queues.setdefault((row.node, row.key), deque())
            if len(queue) > 2 * len(self.rows) + 100:  # a call that stays open has those behind it, which are closed
                queue = self._queues[row.node, row.key] = deque(n for n in queue if n in self.rows)
            queue.append(key)
        if key not in self.rows:
            self._holds.put(row.node, row.time, key, len(self.rows))
        super().put(key, row)

    def hold(self, node: str) -> float:
        """The earliest event time of what the open calls of a node were made for; infinite where none is open."""
        return self._holds.first(node)

    def turn(self, node: str, key: str | None, *, without: int | None = None) -> int | None:
        """The earliest open call of a key, but for `without`; None: there is none, or the order does not matter."""
        queue = self._queues.get((node, key))
        while queue and queue[0] not in self.rows:
            queue.popleft()
        if not queue:
            self._queues.pop((node, key), None)
            return None
        return next((n for n in queue if n in self.rows and n != without), None)

    def stored(self, number: int, sequence: int) -> None:
        """The request of a call lies at `sequence`. Each entry says it with the row, so it is no change of its own."""
        self.rows[number] = row = self.rows[number]._replace(work=sequence)
        if self._changed.get(number) is not None:
            self._changed[number] = row


class Timers(Table[int, Timer]):
    """What is to happen, by number; due in the order of (due, number), or of (due, node, key) by a watermark."""

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        super().__init__(self._row)
        self._names = names or {}
        self._heap: list[tuple[float, int]] = []
        self._marks: dict[str, list[tuple[float, str, str, int]]] = {}  # node → (due, key, name, number)
        self._of: dict[tuple[str, str, str], int] = {}  # (node, key, name) → number
        self._holds = Holds(self._stands)
        self.put_off = 0  # events that were put off

    def _row(self, raw: Any) -> Timer:
        row = Timer(*raw)
        row = row._replace(node=self._names.get(row.node, row.node))
        return row._replace(place=Place(*row.place)) if row.place else row

    def put(self, key: int, row: Timer) -> None:
        rows = len(self.rows)
        if row.kind == "mark":
            marks, entry = self._marks.setdefault(row.node, []), (row.due, row.key, row.name, key)
            pushed(marks, entry, lambda e: self._is_set(e[3], e[0], mark=True), rows)
        else:
            pushed(self._heap, (row.due, key), lambda e: self._is_set(e[1], e[0], mark=False), rows)
        if row.kind in _WOKEN:
            self._of[row.node, row.key, row.name] = key
        if row.hold is not None:
            self._holds.put(row.node, row.hold, key, rows)
        self.put_off += (row.kind == "event") - self._counted(key)
        super().put(key, row)

    def drop(self, key: int) -> None:
        self.put_off -= self._counted(key)
        row = self.rows.get(key)
        if row is not None and row.kind in _WOKEN and self._of.get((row.node, row.key, row.name)) == key:
            del self._of[row.node, row.key, row.name]
        super().drop(key)

    def _counted(self, number: int) -> int:
        return number in self.rows and self.rows[number].kind == "event"

    @property
    def first(self) -> float:
        """Nothing is due before."""
        return self._heap[0][0] if self._heap else inf

    def of(self, node: str, key: str, name: str) -> int | None:
        """The number of a timer that an operator with state has set; None where there is none."""
        return self._of.get((node, key, name))

    def due(self, now: float) -> list[tuple[int, Timer]]:
        """Those whose time has come on the clock of the engine, in order, with their numbers."""
        found: list[tuple[float, int]] = []
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if self._is_set(entry[1], entry[0], mark=False) and entry not in found[-1:]:
                found.append(entry)
        for entry in found:  # they stay until they are handled
            heapq.heappush(self._heap, entry)
        return [(number, self.rows[number]) for _, number in found]

    def reached(self, most: float, watermark: Callable[[str], float]) -> int | None:
        """The number of the first timer that the watermark of its node, `most` at most, has reached, by (due, node, key)."""
        found: list[tuple[float, str, str, str, int]] = []
        for node, heap in self._marks.items():
            while heap and not self._is_set(heap[0][3], heap[0][0], mark=True):
                heapq.heappop(heap)
            if heap and heap[0][0] <= most and heap[0][0] <= watermark(node):
                due, key, name, number = heap[0]
                found.append((due, node, key, name, number))
        return min(found)[-1] if found else None

    def hold(self, node: str, now: float) -> float:
        """The earliest event time of what the timers of a node will let out; infinite where they hold nothing."""
        return self._holds.first(node, lambda number: (self.rows[number].until or inf) <= now)

    def _is_set(self, number: int, due: float, *, mark: bool) -> bool:
        return (row := self.rows.get(number)) is not None and row.due == due and (row.kind == "mark") == mark

    def _stands(self, node: str, number: int, at: float) -> bool:
        row = self.rows.get(number)
        return row is not None and row.hold == at and row.node == node


class Keyed(Table[tuple[str, str, str], bytes]):
    """State of operators: (node, key, sub-key) → an encoded value.

    `size`: bytes of all keys and values.
    """

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        super().__init__(bytes)
        self._names = names or {}
        self._subs: dict[tuple[str, str], set[str]] = {}  # of keys with sub-keys: most have none, and cost nothing here
        self.size = 0

    def put(self, key: tuple[str, str, str], row: bytes) -> None:
        before = self.rows.get(key)
        if before is None and key[2]:
            self._subs.setdefault(key[:2], set()).add(key[2])
        self.size += len(row) - (len(before) if before is not None else -len(key[0]) - len(key[1]) - len(key[2]))
        self.rows[key] = self._changed[key] = row

    def drop(self, key: tuple[str, str, str]) -> None:
        if (before := self.rows.get(key)) is not None:
            self.size -= len(before) + sum(map(len, key))
            if key[2]:
                subs = self._subs[key[:2]]
                subs.discard(key[2])
                if not subs:
                    del self._subs[key[:2]]
        super().drop(key)

    def apply(self, changes: Iterable[tuple[Any, Any]]) -> None:
        super().apply(changes if not self._names else (((self._names.get(k[0], k[0]), *k[1:]), row) for k, row in changes))

    def subs(self, node: str, key: str) -> Collection[str]:
        """The sub-keys of a key, in no order."""
        return self._subs.get((node, key), ())


class Tables:
    """All tables of one partition.

    Attributes:
        number: the next number for a call or a timer. Numbers are never used twice.
        keyed: (node, key, sub-key) → an encoded value.
    """

    def __init__(self, ordered: frozenset[str] = frozenset(), names: Mapping[str, str] | None = None) -> None:
        self.positions: Table[str, Position] = Table(lambda raw: Position(*raw))
        self.calls = Calls(ordered, names)
        self.timers = Timers(names)
        self.keyed = Keyed(names)
        self.splits: Table[Place, Split] = Table(lambda raw: Split(*raw))
        self.number = 1
        self._numbered = 1  # `number` as of the last entry
        self._all: dict[str, Table[Any, Any]] = {name: getattr(self, name) for name in _NAMES}

    def hold(self, node: str, now: float) -> float:
        """The earliest event time of what is still to come out of a node; infinite for none. `now`: on the engine's clock."""
        return min(self.calls.hold(node), self.timers.hold(node, now))

    def position(self, input: str) -> Position:
        """How far an input is taken."""
        return self.positions.rows.get(input, _START)

    def change(self, changes: Iterable[Change]) -> None:
        """Do what an arrival asks for."""
        for table, key, row in changes:
            if row is None:
                self._all[table].drop(key)
            else:
                self._all[table].put(key, row)
                if table in _NUMBERED and key >= self.number:
                    self.number = key + 1

    def changes(self) -> dict[str, Any]:
        """What changed since the last time, as plain data: only the tables that did."""
        changed: dict[str, Any] = {name: rows for name, table in self._all.items() if (rows := table.changes())}
        if self.number != self._numbered:
            changed["number"] = self._numbered = self.number
        return changed

    def apply(self, changes: Mapping[str, Any], sequence: int) -> None:
        """Take over the changes of the log entry at `sequence`."""
        for name, rows in changes.items():
            if name == "number":
                self.number = self._numbered = rows
            else:
                self._all[name].apply(rows)
        for number, row in changes.get("calls", ()):
            if row is not None and (call := self.calls.rows.get(number)) is not None and call.work < 0:
                self.calls.stored(number, sequence if call.work == WITHIN else sequence + call.work)

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain data. What is processed and not yet in a commit must not be in it."""
        return {name: table.snapshot() for name, table in self._all.items()} | {"number": self.number}

    def restore(self, raw: Mapping[str, Any]) -> None:
        """Take over what `snapshot` gave. The tables must be new."""
        self.apply(raw, 0)


_START = Position()
_NAMES = ("positions", "calls", "timers", "keyed", "splits")
_NUMBERED = ("calls", "timers")
