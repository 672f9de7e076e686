"""What a log tells: its entries, one after the other, and the tables that they make."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, NamedTuple

from dspex.bus.errors import RecordingIncomplete
from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.engine.log.entries import LogAddress, packed, plain, readable, unpack
from dspex.engine.log.latest import Latest, latest
from dspex.engine.log.reading import follows, named_snapshot, restored
from dspex.engine.log.tables import Tables
from dspex.engine.replay import damage


class ToldTables:
    """Takes the changes of entries. Most rows come and go, so only those that are there when it is asked become rows of tables.

    `tables`: what was before the first entry. `at_once`: each entry changes them at once, as must be where an operator was
    renamed: its rows have two keys.
    """

    def __init__(self, tables: Tables, *, at_once: bool) -> None:
        self._tables, self._at_once = tables, at_once
        self._left = dict[str, dict[Any, tuple[int, Any]]]()  # by table and key, with the sequence of the entry

    def take(self, changed: Mapping[str, Any], sequence: int) -> None:
        """Take what the entry at `sequence` changed."""
        if self._at_once:
            self._tables.apply(changed, sequence)
            return
        for name, rows in changed.items():
            if name == "number":
                self._tables.apply({name: rows}, sequence)
                continue
            left, there = self._left.setdefault(name, {}), getattr(self._tables, name).rows
            for key, row in rows:
                if row is None and key not in there:
                    left.pop(key, None)
                else:
                    left[key] = sequence, row

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain data, as `Tables.snapshot`."""
        for name, rows in self._left.items():
            for key, (sequence, row) in rows.items():
                self._tables.apply({name: ((key, row),)}, sequence)
        self._left = {}
        return self._tables.snapshot()


class LogPlace(NamedTuple):
    """A place of a log, from where on it can be read by itself.

    Attributes:
        start: the first sequence. tables: packed, as what is before tells them. begun: that is all there.
        claim, commit: the last ones before. nonce, build: what that claim says.
    """

    start: int
    tables: bytes
    begun: bool
    claim: int
    commit: int
    nonce: str
    build: Mapping[str, str]


class LogWalk:
    """Goes from entry to entry.

    Args:
        new: makes tables with nothing in them. lacks: called with what is damaged or missing, and which entry that is; nothing
            behind it is read.
        at_once: see `ToldTables`.

    Attributes:
        begun: what was before is all there. claim, commit: the last ones. nonce, build: as the claim says; "" is not known yet.
        tables: as the log tells them, once `told` was asked. bytes: of what is read.
        end: the last entry of the log, once all up to that has come.
    """

    def __init__(
        self,
        bus: Bus,
        log: LogAddress,
        new: Callable[[], Tables],
        lacks: Callable[[int, RecordingIncomplete], None],
        *,
        at_once: bool,
    ) -> None:
        self._bus, self._log, self._new, self._lacks = bus, log, new, lacks
        self.at_once = at_once
        self.begun, self.claim, self.commit, self.nonce, self.build = False, 0, 0, "", dict[str, str]()
        self.tables, self.end, self.bytes = new(), 0, 0
        self._start, self._found, self._end = 1, list[Message](), 0
        self.told = ToldTables(self.tables, at_once=at_once)

    async def begin(self, at: int | LogPlace, until: int) -> Tables:
        """Begin behind the entry that names a snapshot, with that; 0: with nothing, at the first one; or at a place; and read
        up to a sequence. Gives tables that have the same. Raises BusError.
        """
        tables = self._new()
        if isinstance(at, LogPlace):
            self._start, packed_tables, self.begun, self.claim, self.commit, self.nonce, build = at
            self.build, rows = dict(build), plain(packed_tables)
            tables.restore(rows)
            self.told.take(rows, 0)
        else:
            found = await named_snapshot(self._bus, self._log, at) if at else None
            if found is not None:
                self.begun, self.commit, self._start = True, found.at, found.at + 1
                for one in (tables, self.tables):
                    await restored(self._bus, self._log, found, one)
        end = await latest(self._bus, self._log)
        stop = await self._stop(end, until)
        self._found = list(await self._bus.scan(self._log.stream, [self._log.subject], start=self._start, stop=stop))
        self._end, self.bytes = end.at if stop >= end.at else 0, sum(len(m.data) for m in self._found)
        return tables

    async def entries(self) -> AsyncGenerator[tuple[Message, Mapping[str, Any], Mapping[str, Any]]]:
        """The commits, with their entries, and what they changed. Raises BusError."""
        for message in self._found:
            entry = readable(message.data)
            if entry is None or not follows(entry, self.claim or entry.get("claim", 0), self.commit):
                if entry is not None and (lost := damage.before(entry, self.claim, self.commit)) is not None:
                    self._lacks(message.sequence, lost)
                    return
                continue  # what no engine wrote
            if entry["kind"] == "claim":
                self.claim, self.begun = message.sequence, self.begun or entry["epoch"] == 1
                self.nonce, self.build = entry["nonce"], dict(entry["build"])
                continue
            try:
                if (changed := await damage.changed_by(self._bus, self._log, message, entry)) is None:
                    continue
            except RecordingIncomplete as error:
                self._lacks(message.sequence, error)
                return  # what the partition had behind it is not known
            self.claim, self.commit = entry["claim"], message.sequence
            self.told.take(changed, message.sequence)
            yield message, entry, changed
        self.end = self._end

    async def _stop(self, end: Latest, until: int) -> int:
        """Up to where the log is read."""
        stop = min(end.last, until)
        try:
            return await damage.end_of(self._bus, self._log, end.at, stop)
        except RecordingIncomplete as error:
            self._lacks(end.last, error)
            return end.at

    async def ask_claim(self) -> None:
        """Ask for what the claim says: it begins in the middle of an owner's time."""
        claim = await self._bus.get(self._log.stream, self.claim)
        said = unpack(claim.data) if claim is not None else {}
        self.nonce, self.build = said.get("nonce", ""), dict(said.get("build", {}))

    def place(self, start: int) -> LogPlace:
        """Where it is now. `start`: what is read next."""
        return LogPlace(start, packed(self.told.snapshot()), self.begun, self.claim, self.commit, self.nonce, self.build)
