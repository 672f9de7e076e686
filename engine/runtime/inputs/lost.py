"""Open calls whose request no worker will get any more: the consumer of their work was deleted, and made anew behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

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
        found = [number for number, row in rows if self.is_lost(p, number, row)]
        if found:
            return found if await self._records.all_taken(p) else []
        if all(row.work for _, row in rows):  # else a request is in flight, and nobody knows yet where it will lie
            self._done[p.index] = now
        return []

    def is_lost(self, p: Partition, number: int, row: OpenCall) -> bool:
        """Whether a call waits for a worker, and its request is not delivered any more."""
        timer = p.tables.timers.rows.get(number)
        if row.held or timer is None or timer.kind != "deadline":
            return False
        return 0 < row.work <= self._behind.get((row.pool, row.band), 0)
