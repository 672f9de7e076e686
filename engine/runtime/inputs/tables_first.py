"""A source waits until the sources of tables that its events are looked up in have been read to their end, once.

The end is what is stored when it begins to wait. How far a table is read the heartbeats of all engines say, since another
engine may read it. What was read is committed, and so it stands before all that this source will bring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import orjson

from dspex.bus import subjects
from dspex.bus.port import Bus
from dspex.bus.seldom import logger

_log = logger("dspex.engine")
LOOK: Final = 0.5  # seconds between two looks


class TableSource(NamedTuple):
    """Where a table is read, as the stage of that id. `partitions`: how many it has."""

    subject: str
    stream: str
    stage: str
    partitions: int


class TablesFirst:
    """The tables that one source of a topology waits for. `waits_for`: their sources, while it does."""

    def __init__(self, bus: Bus, app: str, topology: str, source: str, tables: Sequence[TableSource]) -> None:
        self._bus, self._app, self._topology, self._source, self._tables = bus, app, topology, source, tables
        self.waits_for = list[str]()

    async def wait(self) -> None:
        """Until all of them are read to where their ends are now. Raises BusError."""
        self.waits_for = sorted(t.subject for t in self._tables)
        try:
            await self._read_to_the_end()
        finally:
            self.waits_for = []

    async def _read_to_the_end(self) -> None:
        last = {t: await self._bus.last(t.stream, t.subject) for t in self._tables}
        todo = {t: message.sequence for t, message in last.items() if message is not None}
        while todo := {t: end for t, end in todo.items() if not await self._is_read(t, end)}:
            self.waits_for = tables = sorted(t.subject for t in todo)
            _log.info("waits until tables are read", topology=self._topology, source=self._source, tables=tables)
            await asyncio.sleep(LOOK)

    async def _is_read(self, table: TableSource, end: int) -> bool:
        said = await (await self._bus.bucket(subjects.bucket(self._app))).items("engine")
        done: set[int] = set()
        for value, _ in said.values():
            done |= _read(value, self._topology, table.stage, end)
        return len(done) >= table.partitions


def _read(heartbeat: bytes, topology: str, stage: str, end: int) -> set[int]:
    """The partitions of a stage that a heartbeat says are read up to a sequence."""
    try:
        stages: Any = orjson.loads(heartbeat)["stages"]
        mine = [s for s in stages if (s["topology"], s["stage"]) == (topology, stage)]
        return {int(p["index"]) for s in mine for p in s["partitions"] if int(p["source"]) >= end}
    except (ValueError, TypeError, KeyError):  # what no engine has written
        return set()
