"""What a stage partition knows: how far it has read, and which calls are open. Rebuilt from its commit log, and only from it.

It stays small however long the run: events are in the stream, a call's event is in its work and in its result, so a call
costs a row here and no more. Ordinals are dense, and a call that is not open is finished (or was never asked for): the set of
the finished needs no memory at all.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Row(NamedTuple):
    """An open call. `work` is the sequence of the message that holds its work; 0 until the commit's answer is known."""

    node: str
    id: str
    run: str
    deadline: float
    attempt: int = 1
    work: int = 0
    key: str | None = None
    held: int = 0  # sequence of its result, which waits for an earlier call of its key; 0: no result yet


@dataclass
class Delta:
    """The change that one commit makes, as it stands in the log entry.

    Attributes:
        source: (sequence, event id) read up to; None: not moved.
        inbox: sequence read up to; None: not moved.
        calls: rows opened or changed, by ordinal. A row whose `work` is negative counts back from the entry's sequence.
        closed: ordinals of finished calls.
        delayed: inbox sequence → seconds since the epoch at which that message is due.
        done: inbox sequences no longer delayed.
        part: [which ("source" or "inbox"), sequence, outputs already committed, clock]: an event too large for one commit.
        unparted: the event in `part` is finished.
        hole: a trimmed source was skipped: (from, to).
    """

    source: tuple[int, str] | None = None
    inbox: int | None = None
    calls: dict[int, Row] = field(default_factory=dict)
    closed: list[int] = field(default_factory=list)
    delayed: dict[int, float] = field(default_factory=dict)
    done: list[int] = field(default_factory=list)
    part: tuple[str, int, int, float] | None = None
    unparted: bool = False
    hole: tuple[int, int] | None = None

    def merge(self, later: Delta) -> None:
        """Add the rows that `later` changes."""
        self.calls.update(later.calls)
        for ordinal in later.closed:
            self.calls.pop(ordinal, None)
        self.closed += later.closed
        for message in later.done:
            self.delayed.pop(message, None)
        self.done += later.done
        if later.delayed:
            self.delayed.update(later.delayed)
            self.done = [m for m in self.done if m not in later.delayed]

    def as_dict(self) -> dict[str, Any]:
        """Only what is there, as plain data."""
        pairs = {
            "source": self.source,
            "inbox": self.inbox,
            "calls": {o: tuple(r) for o, r in self.calls.items()} or None,
            "closed": self.closed or None,
            "delayed": self.delayed or None,
            "done": self.done or None,
            "part": self.part,
            "unparted": self.unparted or None,
            "hole": self.hole,
        }
        return {k: v for k, v in pairs.items() if v is not None}


class State:
    """The state of one stage partition."""

    def __init__(self) -> None:
        self.source_sequence = 0
        self.source_id = ""
        self.inbox = 0
        self.next_ordinal = 0
        self.calls: dict[int, Row] = {}
        self.delayed: dict[int, float] = {}
        self.part: tuple[str, int, int, float] | None = None
        self._deadlines: list[tuple[float, int]] = []
        self._keys: dict[tuple[str, str | None], list[int]] = {}

    # -- changes while walking ------------------------------------------------------------------------------------
    def put(self, ordinal: int, row: Row, *, ordered: bool = False) -> None:
        """Open a call, or change its row."""
        if ordinal not in self.calls:
            heapq.heappush(self._deadlines, (row.deadline, ordinal))
            if ordered:
                heapq.heappush(self._keys.setdefault((row.node, row.key), []), ordinal)
        self.calls[ordinal] = row
        self.next_ordinal = max(self.next_ordinal, ordinal + 1)

    def close(self, ordinal: int) -> None:
        self.calls.pop(ordinal, None)

    def first_open(self, node: str, key: str | None) -> int | None:
        """The earliest open call of a key, for `order="key"`."""
        queue = self._keys.get((node, key))
        while queue and queue[0] not in self.calls:
            heapq.heappop(queue)
        if not queue:
            self._keys.pop((node, key), None)
            return None
        return queue[0]

    def releasable(self) -> list[int]:
        """Inbox sequences of held results that wait for nobody any more: their release was cut short."""
        return [r.held for o, r in self.calls.items() if r.held and self.first_open(r.node, r.key) == o]

    def due(self, now: float) -> Iterator[int]:
        """Inbox sequences of what was to wait until now."""
        return iter([s for s, at in self.delayed.items() if at <= now])

    def expired(self, now: float) -> Iterator[int]:
        """Ordinals of open calls whose deadline has passed."""
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][1] not in self.calls):
            _, ordinal = heapq.heappop(self._deadlines)
            if ordinal in self.calls:
                heapq.heappush(self._deadlines, (now + 5.0, ordinal))  # looked at again, should it not be settled
                yield ordinal

    def next_alarm(self) -> float | None:
        """When the clock must be looked at next; None: not before something else happens."""
        while self._deadlines and self._deadlines[0][1] not in self.calls:
            heapq.heappop(self._deadlines)
        times = [self._deadlines[0][0]] if self._deadlines else []
        if self.delayed:
            times.append(min(self.delayed.values()))
        return min(times, default=None)

    # -- from the log ---------------------------------------------------------------------------------------------
    def apply(self, entry: Mapping[str, Any], sequence: int, ordered: frozenset[str]) -> None:
        """Take a log entry over. `ordered`: names of call nodes with `order="key"`."""
        if "snapshot" in entry:
            self._restore(entry["snapshot"], ordered)
        if "source" in entry:
            self.source_sequence, self.source_id = entry["source"]
        if "inbox" in entry:
            self.inbox = entry["inbox"]
        for ordinal, raw in entry.get("calls", {}).items():
            row = Row(*raw)
            if row.work < 0:
                row = row._replace(work=sequence + row.work)
            self.put(ordinal, row, ordered=row.node in ordered)
        for ordinal in entry.get("closed", ()):
            self.close(ordinal)
        self.delayed.update(entry.get("delayed", {}))
        for message in entry.get("done", ()):
            self.delayed.pop(message, None)
        if entry.get("unparted"):
            self.part = None
        if "part" in entry:
            self.part = tuple(entry["part"])

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain data. Rows whose work is not settled yet must not be in it: take it before walking on."""
        return {
            "source": (self.source_sequence, self.source_id),
            "inbox": self.inbox,
            "next": self.next_ordinal,
            "calls": {o: tuple(r) for o, r in self.calls.items()},
            "delayed": self.delayed,
            "part": self.part,
        }

    def _restore(self, raw: Mapping[str, Any], ordered: frozenset[str]) -> None:
        self.__init__()  # type: ignore[misc]
        self.source_sequence, self.source_id = raw["source"]
        self.inbox = raw["inbox"]
        self.next_ordinal = raw["next"]
        for ordinal, row in raw["calls"].items():
            self.put(ordinal, Row(*row), ordered=Row(*row).node in ordered)
        self.delayed = dict(raw["delayed"])
        self.part = tuple(raw["part"]) if raw["part"] else None
