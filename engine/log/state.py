"""What a stage partition knows: how far it has read, and which calls are open. Rebuilt from its commit log, and only from it.

It stays small however long the run: events are in the stream, a call's event is in its work and in its result, so a call
costs a row here and no more. Ordinals are dense, and a call that is not open is finished (or was never made): the set of
the finished needs no memory at all.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

InputRef: TypeAlias = tuple[str, int]  # which ("source", "inbox", or "clock" with a negative number of its own), sequence
Split: TypeAlias = tuple[int, float]  # outputs already committed, clock


NONE = 1 << 62  # a sequence behind all others


class OpenCall(NamedTuple):
    """An open call. `work` is the sequence of the message that holds its work; 0 until the commit's answer is known."""

    node: str
    id: str
    run: str
    deadline: float
    attempt: int = 1
    work: int = 0
    key: str | None = None
    held: int = 0  # sequence of its result, which waits for an earlier call of its key; 0: no result yet
    first: int = 1  # number of its first attempt: after a redrive, attempts go on counting and `Retry` starts anew

    @property
    def tries(self) -> int:
        """Attempts so far, as `Retry.attempts` counts them."""
        return self.attempt - self.first + 1


@dataclass
class Changes:
    """The change that one commit makes, as it stands in the log entry.

    Attributes:
        source: (sequence, event id, when its stream was made) read up to; None: not moved.
        inbox: sequence read up to; None: not moved.
        calls: rows opened or changed, by ordinal. A row whose `work` is negative counts back from the entry's sequence.
        closed: ordinals of finished calls.
        delayed: inbox sequence → seconds since the epoch at which that message is due.
        done: inbox sequences no longer delayed.
        parts: (which, sequence) → (outputs already committed, clock) of events too large for one commit.
        unparted: those events of `parts` that are finished.
        gap: a trimmed source was skipped: (from, to).
    """

    source: tuple[int, str, float] | None = None
    inbox: int | None = None
    calls: dict[int, OpenCall] = field(default_factory=dict)
    closed: list[int] = field(default_factory=list)
    delayed: dict[int, float] = field(default_factory=dict)
    done: list[int] = field(default_factory=list)
    parts: dict[InputRef, Split] = field(default_factory=dict)
    unparted: list[InputRef] = field(default_factory=list)
    gap: tuple[int, int] | None = None

    def merge(self, later: Changes) -> None:
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

    def as_dict(self) -> dict[str, object]:
        """Only what is there, as plain data."""
        pairs = {
            "source": self.source,
            "inbox": self.inbox,
            "calls": {o: tuple(r) for o, r in self.calls.items()} or None,
            "closed": self.closed or None,
            "delayed": self.delayed or None,
            "done": self.done or None,
            "parts": [(*event, *part) for event, part in self.parts.items()] or None,
            "unparted": self.unparted or None,
            "gap": self.gap,
        }
        return {k: v for k, v in pairs.items() if v is not None}


class Needed(NamedTuple):
    """The first sequences that are still needed: of the source, of the inbox, of work. Everything below may go."""

    source: int
    inbox: int
    work: int


class State:
    """The state of one stage partition.

    Args:
        ordered: names of the call nodes with `order="key"`.
        names: old name → new name of operators that were renamed (`renamed_from`).
    """

    def __init__(self, ordered: frozenset[str] = frozenset(), names: Mapping[str, str] | None = None) -> None:
        self.ordered = ordered
        self.names = names or {}
        self.source_sequence = 0
        self.source_id = ""
        self.source_created = 0.0  # when the stream was made that it was read from; 0: nothing was read yet
        self.inbox = 0
        self.next_ordinal = 0
        self.calls: dict[int, OpenCall] = {}
        self.delayed: dict[int, float] = {}
        self.parts: dict[InputRef, Split] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._keys: dict[tuple[str, str | None], list[int]] = {}

    # -- changes while walking ------------------------------------------------------------------------------------
    def put(self, ordinal: int, row: OpenCall) -> None:
        """Open a call, or change its row."""
        if ordinal not in self.calls:
            heapq.heappush(self._deadlines, (row.deadline, ordinal))
            if row.node in self.ordered:
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
        """Inbox sequences of held results that need not wait any more: their release was cut short."""
        return [r.held for o, r in self.calls.items() if r.held and self.first_open(r.node, r.key) == o]

    def due(self, now: float) -> Iterator[int]:
        """Inbox sequences of what was to wait until now."""
        return iter([s for s, at in self.delayed.items() if at <= now])

    def expired(self, now: float) -> Iterator[int]:
        """Ordinals of open calls whose deadline has passed."""
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][1] not in self.calls):
            _, ordinal = heapq.heappop(self._deadlines)
            if ordinal in self.calls:
                heapq.heappush(self._deadlines, (now + 5.0, ordinal))  # checked again later if it is still open
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
    def apply(self, entry: Mapping[str, Any], sequence: int) -> None:
        """Take over the changes of a log entry."""
        if "source" in entry:
            self.source_sequence, self.source_id, self.source_created = entry["source"]
        if "inbox" in entry:
            self.inbox = entry["inbox"]
        for ordinal, raw in entry.get("calls", {}).items():
            row = self._row(raw)
            self.put(ordinal, row._replace(work=sequence + row.work) if row.work < 0 else row)
        for ordinal in entry.get("closed", ()):
            self.close(ordinal)
        self.delayed.update(entry.get("delayed", {}))
        for message in entry.get("done", ()):
            self.delayed.pop(message, None)
        for which, number, done, clock in entry.get("parts", ()):
            self.parts[which, number] = (done, clock)
        for which, number in entry.get("unparted", ()):
            self.parts.pop((which, number), None)

    def _row(self, raw: Sequence[Any]) -> OpenCall:
        row = OpenCall(*raw)
        return row._replace(node=self.names.get(row.node, row.node))

    def snapshot(self) -> dict[str, object]:
        """All of it as plain data. What was walked and is not in a commit yet must not be in it: take it before walking on."""
        return {
            "source": (self.source_sequence, self.source_id, self.source_created),
            "inbox": self.inbox,
            "next": self.next_ordinal,
            "calls": {o: tuple(r) for o, r in self.calls.items()},
            "delayed": self.delayed,
            "parts": [(*event, *part) for event, part in self.parts.items()],
        }

    def restore(self, raw: Mapping[str, Any]) -> None:
        """Take over what `snapshot` gave. The state must be new."""
        self.source_sequence, self.source_id, self.source_created = raw["source"]
        self.inbox = raw["inbox"]
        for ordinal, row in raw["calls"].items():
            self.put(ordinal, self._row(row))
        self.next_ordinal = raw["next"]
        self.delayed = dict(raw["delayed"])
        self.parts = {(which, number): (done, clock) for which, number, done, clock in raw["parts"]}

    def needed(self) -> Needed:
        """What a recovery from here may still read. `work` is 0 while a row's work has no known sequence."""
        held = [row.held for row in self.calls.values() if row.held]
        work = min((row.work for row in self.calls.values()), default=NONE)
        return Needed(self.source_sequence + 1, min([self.inbox + 1, *self.delayed, *held]), work)
