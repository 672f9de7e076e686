"""Open calls whose request no worker will get any more: the consumer of their work was deleted, and made anew behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from dspex.bus import subjects
from dspex.engine.log.entries import requests_in
from dspex.engine.log.positions import pages
from dspex.engine.log.reading import entry_at
from dspex.engine.log.rows import OpenCall
from dspex.engine.runtime.inputs.records import RecordsInput
from dspex.engine.runtime.partition import Partition

Behind: TypeAlias = Mapping[tuple[str, int], int]


class LostRequests:
    """Finds them. `behind`: (pool, band) → requests up to this sequence are not delivered any more."""

    def __init__(self, records: RecordsInput, behind: Behind) -> None:
        self._records, self._behind = records, behind
        self._done: dict[int, tuple[int, Mapping[tuple[str, int], int]]] = {}  # partition → its claim, and `behind` then

    async def of(self, p: Partition) -> list[int]:
        """Numbers of calls to ask again. A record that is stored already is taken first: that call is not paid twice."""
        now = (p.log.claimed, dict(self._behind))
        if not any(self._behind.values()) or self._done.get(p.index) == now:
            return []
        rows = sorted(p.tables.calls.rows.items())
        found = {number: row for number, row in rows if self.is_lost(p, number, row)}
        if found and not await self._records.all_taken(p):
            return []
        if found and (lost := sorted(found.keys() - await self._delivered(p, found, now[1]))):
            return lost
        if all(row.work for _, row in rows):  # else a request is in flight, and nobody knows yet where it will lie
            self._done[p.index] = now
        return []

    async def _delivered(self, p: Partition, found: Mapping[int, OpenCall], behind: Behind) -> set[int]:
        """Calls among these whose request is delivered all the same: only the entry that holds it lies before the consumer.

        Of each consumer that can be so for the last such entry alone: an entry's requests are sent before the next one.
        """
        bus, address, delivered = p.log.bus, p.log.address, set[int]()
        for waits, after in behind.items():
            mine = {number: row.work for number, row in found.items() if (row.pool, row.band) == waits}
            entry = await entry_at(bus, address, max(mine.values(), default=0))
            asks = {number: ask for number, ask in requests_in(entry or {}).items() if number in mine}
            left = {(ask.headers or {}).get(subjects.RECORD, ""): number for number, ask in asks.items()}
            filters = sorted({ask.subject for ask in asks.values()})
            if not asks:
                continue
            async for page in pages(bus, address.stream, filters, start=after + 1):
                delivered |= {left[id] for message in page if (id := message.headers.get(subjects.RECORD)) in left}
                if delivered >= {*left.values()}:
                    break
        return delivered

    def is_lost(self, p: Partition, number: int, row: OpenCall) -> bool:
        """Whether a call waits for a worker, and its request is not delivered any more."""
        timer = p.tables.timers.rows.get(number)
        if row.held or timer is None or timer.kind != "deadline":
            return False
        return 0 < row.work <= self._behind.get((row.pool, row.band), 0)
