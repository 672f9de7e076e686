"""Which events an operator with state has what it keeps from, as spans: what a window gives is linked to those of its events.

It is known of what this process has taken itself. Who takes a partition over links what comes from then on.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

from dspex.bus.codecs.tracing import TraceOf
from dspex.engine.runtime.arrival import LetOut
from dspex.engine.telemetry.taken import HandledArrival, WhereTaken

MOST_LINKS: Final = 128
"""Of a span, and for a row of state: the latest. It is the limit that OpenTelemetry has when nothing is said."""
MOST_HELD: Final = 100_000
"""In all: what was not fed for the longest time is forgotten."""
_Key: TypeAlias = tuple[WhereTaken, str, str]  # partition, node, key


class SpanLink(NamedTuple):
    """A span that another one is linked to. `time`: of its event, in seconds since the epoch."""

    of: TraceOf
    span: int
    time: float


class FedState:
    """The spans of events by the rows of state that they went into."""

    def __init__(self, most: int = MOST_HELD) -> None:
        self._most, self._held = most, 0
        self._fed: OrderedDict[_Key, dict[str, deque[SpanLink]]] = OrderedDict()

    def links(self, taken: HandledArrival, one: LetOut) -> Sequence[SpanLink]:
        """Of an event that came out: to those between its times, or in the rows that end with it, or in all of its key."""
        rows = self._fed.get((taken.partition, one.node, one.origin.key or ""), {})
        if one.between is not None:
            start, end = one.between
            found = [link for row in rows.values() for link in row if start <= link.time < end]
        else:
            gone = (at for table, at, row in taken.effects.changes if table == "keyed" and row is None)
            ended = {sub for node, key, sub in gone if (node, key) == (one.node, one.origin.key or "")}
            found = [link for sub, row in rows.items() if not ended or sub in ended for link in row]
        return list(dict.fromkeys(sorted(found, key=lambda link: link.time)))[-MOST_LINKS:]

    def changed(self, taken: HandledArrival, by: Iterable[SpanLink]) -> None:
        """Take what an arrival has changed: rows that it wrote have something of its events, rows that are gone of none."""
        links = list(by)
        for table, at, row in taken.effects.changes:
            if table == "keyed":
                node, key, sub = at
                self._changed((taken.partition, node, key), sub, links if row is not None else None)
        while self._held > self._most:
            _, rows = self._fed.popitem(last=False)
            self._held -= sum(map(len, rows.values()))

    def _changed(self, key: _Key, sub: str, links: Sequence[SpanLink] | None) -> None:
        rows = self._fed.get(key)
        if links is None:
            if rows is not None:
                self._held -= len(rows.pop(sub, ()))
                if not rows:
                    del self._fed[key]
            return
        if not links:
            return
        row = self._fed.setdefault(key, {}).setdefault(sub, deque(maxlen=MOST_LINKS))
        before = len(row)
        row.extend(links)
        self._held += len(row) - before
        self._fed.move_to_end(key)
