"""A commit as many runs look at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.bus.serving.payloads import is_whole, looked_at
from dspex.engine.client.runs import places
from dspex.engine.client.runs.leap import OpenRow
from dspex.engine.log.entries import (
    LogAddress,
    from_later,
    is_as_stored,
    is_changed,
    lacks_pieces,
    readable,
    requests_in,
    was_read,
)
from dspex.engine.log.reading import changes
from dspex.engine.log.rows import OpenCall, Timer

TABLES = {"calls": OpenCall, "timers": Timer}


def waited_for(kind: type[OpenCall | Timer], row: Sequence[Any] | None) -> OpenRow | None:
    """A row of a table for which its run waits; None where it is gone, or the run is over in spite of it."""
    found = kind(*row) if row is not None else None
    return None if isinstance(found, Timer) and found.forgets else found


class Commit:
    """A commit of a log, read and checked once for all runs that look at it.

    Attributes:
        rows: those that it changed, by table: their numbers, and what they are now; None: they are gone, or no run waits for
            them any more. lost: which it changed is not known: its pieces are damaged, or gone.
    """

    def __init__(self, bus: Bus, message: Message, entry: Mapping[str, Any], changed: Mapping[str, Any] | None) -> None:
        self._bus, self.message, self.entry = bus, message, entry
        self.rows: dict[str, list[tuple[int, OpenRow | None]]] = {
            table: [(number, waited_for(kind, row)) for number, row in (changed or {}).get(table, ())]
            for table, kind in TABLES.items()
        }
        self.requests = [
            Message(ask.subject, ask.data, dict(ask.headers or {}), message.sequence, message.time)
            for ask in requests_in(entry).values()
        ]
        self.lost = lacks_pieces(message.data, entry, changed)
        self._before: list[Message] | None = None
        self._changed: bool | None = True if self.lost else None

    async def before(self, stream: str) -> list[Message]:
        """The messages right before it that it covers, as far as they are still there."""
        if self._before is None:
            at, count = self.message.sequence, 0 if "asks" in self.entry else self.entry["covers"]
            self._before = await self._bus.scan(stream, [">"], start=at - count, stop=at - 1) if count else []
        return self._before

    async def is_changed(self, app: str, stream: str) -> bool:
        """Whether what it covers is there, and is not what was stored: somebody changed it, or it is damaged."""
        if self._changed is None:
            before = await self.before(stream)
            if len(before) == self.entry["covers"]:
                before = before[self.entry.get("pieces", 0) :]  # which lie before its messages
            looked = [(m, False) if is_whole(m.headers) else await looked_at(self._bus, app, m) for m in before]
            whole = [m for m, _ in looked if m is not None]
            damaged = any(damaged for _, damaged in looked)
            self._changed = damaged or (len(whole) == len(before) and is_changed(self.entry, whole))
        return self._changed

    def took_another(self, events: Mapping[int, bytes]) -> bool:
        """Whether it took an event of its source that is not what is there now. `events`: those, by their sequences."""
        for input, first, last, _, _, *mark in self.entry["taken"]:
            begin, end = places.place(first)[0], places.place(last)[0]
            for at, event in events.items() if input == "source" and not mark else ():
                if begin <= at <= end and not was_read(self.entry, at, event):
                    return True
        return False


async def commit_of(bus: Bus, app: str, m: Message) -> Commit | None:
    """The commit that an entry of a log is; None for another entry, and what is none. Raises BusError."""
    entry = readable(m.data)
    if entry is None and is_as_stored(m.data):
        raise from_later(m.sequence)
    if entry is None or entry["kind"] != "commit":
        return None
    return Commit(bus, m, entry, await changes(bus, LogAddress.of(app, *places.partition(m)), m, entry))
