"""What an operator with state would keep of an event: it runs on a copy of its rows, and leaves nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from dspex.bus.records import Origin
from dspex.bus.settings.duration import Duration
from dspex.engine.graph.context import EventContext, Handler
from dspex.engine.runtime.failure import Failure, attempt

ShowsState = Callable[[Mapping[str, bytes]], Any]


def kept_aside(step: Callable[[Any, Any], None], data: Any, rows: Any, shown: ShowsState | None) -> Any:
    """What people would be shown of the key's state behind an event; None where there is none, or it fails."""
    aside = _Aside(rows)
    failed = isinstance(attempt(lambda: step(data, aside), lambda: rows.node), Failure)
    return None if failed else shown_by(aside, shown)


def shown_by(rows: Any, shown: ShowsState | None) -> Any:
    """What people are shown of the state of a key; None where nothing tells."""
    found = {sub: row for sub in ("", *rows.subs()) if (row := rows.row(sub)) is not None}
    return shown(found) if shown is not None and found else None


class _Aside(EventContext):
    """Rows whose changes nobody else sees."""

    __slots__ = ("_changed", "_rows", "waking")

    def __init__(self, rows: Any) -> None:
        super().__init__("")
        self.origin, self.clock, self.node = rows.origin, rows.clock, rows.node
        self._rows, self._changed = rows, dict[str, bytes | None]()
        self.waking: float | None = None

    @property
    def watermark(self) -> float:
        return float(self._rows.watermark)

    def row(self, sub: str = "") -> bytes | None:
        return self._changed[sub] if sub in self._changed else self._rows.row(sub)

    def put(self, value: bytes | None, sub: str = "") -> None:
        self._changed[sub] = value

    def subs(self) -> list[str]:
        found = {*self._rows.subs(), *self._changed} - {""}
        return sorted(sub for sub in found if self.row(sub) is not None)

    def alarm(self, due: float, name: str = "", *, mark: bool = False, hold: float | None = None, most: float = inf) -> None:
        """Nothing wakes it."""

    def no_alarm(self, name: str = "") -> None:
        """The same."""

    def alarm_at(self, name: str = "") -> float | None:
        found: float | None = self._rows.alarm_at(name)
        return found

    def wake(self, after: Duration) -> None:
        self.waking = 0.0

    def child(self) -> Origin:
        return self.origin

    def new_origin(self, time: float) -> Origin:
        return self.origin._replace(time=time)

    def fork(self) -> str | None:
        found: str | None = self._rows.fork()
        return found

    def go_on(self, out: Handler, data: object, origin: Origin) -> None:
        out(data, self)
