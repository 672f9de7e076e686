"""The tables that a log tells, as the replay of it is compared with them at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dspex.engine.log.tables import Tables


class ToldTables:
    """Takes the changes of entries. Most rows come and go, so only those that are there at the end become rows of tables.

    `tables`: what was before the first entry. `fresh`: nothing; and no operator was renamed, so a row has one key for ever.
    """

    def __init__(self, tables: Tables, *, fresh: bool) -> None:
        self._tables, self._fresh = tables, fresh
        self._left = dict[str, dict[Any, tuple[int, Any]]]()  # by table and key, with the sequence of the entry

    def take(self, changed: Mapping[str, Any], sequence: int) -> None:
        """Take what the entry at `sequence` changed."""
        if not self._fresh:
            self._tables.apply(changed, sequence)
            return
        for name, rows in changed.items():
            if name == "number":
                self._tables.apply({name: rows}, sequence)
                continue
            left = self._left.setdefault(name, {})
            for key, row in rows:
                if row is None:
                    left.pop(key, None)
                else:
                    left[key] = sequence, row

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain data, as `Tables.snapshot`."""
        for name, rows in self._left.items():
            for key, (sequence, row) in rows.items():
                self._tables.apply({name: ((key, row),)}, sequence)
        self._left, self._fresh = {}, False
        return self._tables.snapshot()
