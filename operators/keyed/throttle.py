"""throttle: events go on at a rate. Those that have to wait are kept, in their order; none is dropped."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from dspex.bus.codecs import encode
from dspex.engine.graph.context import Handler, Rows
from dspex.engine.graph.nodes import Emitted, Hop, State
from dspex.operators.keyed.kept import HOLD, KeptData, in_order, keep, number, packed, shown_event, unpacked
from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.problems import wrong
from dspex.operators.operator import Operator
from dspex.operators.parameters import IntegerParameter, Parameter
from dspex.operators.parameters.values import TEXT

_RATE: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)/([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_CATCH_UP: Final = 0.1  # seconds: a release that comes a little late, as timers do, does not slow down those behind it


@dataclass(frozen=True)
class RateParameter(Parameter):
    """So many in a time."""

    noun: ClassVar[str] = '`"10/s"`, `"500/m"`, `"1000/h"` or `"5/d"`'
    form: ClassVar[JsonSchema] = {**TEXT, "description": "10/s, 500/m, 1000/h or 5/d"}

    def check(self, name: str, value: object) -> object:
        found = _RATE.fullmatch(value) if isinstance(value, str) else None
        if found is None or float(found[1]) == 0:
            raise wrong(name, value, '"10/s", "500/m", "1000/h" or "5/d"')
        return value


class _Throttle:
    """The row "" says when the next place is free, and which events wait, from number to number; each of those has a row, and
    a timer that only holds the watermark. A key of which nothing waits is forgotten once all of its places are free again.
    """

    def __init__(self, interval: float, burst: int, read: KeptData) -> None:
        self._interval, self._ahead, self._read = interval, (burst - 1) * interval, read

    def step(self, out: Handler, inlet: int) -> Callable[[Any, Rows], None]:
        def run(data: Any, rows: Rows) -> None:
            free, first, last = unpacked(rows.row(), (rows.clock, 0, 0))
            if first == last and free - self._ahead <= rows.clock:
                free = max(free, rows.clock) + self._interval
                rows.put(packed([free, 0, 0]))
                if rows.alarm_at() is None:
                    rows.alarm(free)
                out(self._read.data(*encode(data, "auto")), rows)  # the same as if it had waited
                return
            rows.put(keep(rows.child(), data), number(last))
            rows.alarm(rows.clock + HOLD, number(last), hold=rows.origin.time)
            rows.put(packed([free, first, last + 1]))
            if first == last:
                rows.alarm(free - self._ahead)

        return run

    def woken(self, rows: Rows, name: str) -> Sequence[Emitted]:
        if name:
            return ()  # it has held the watermark for long enough
        free, first, last = unpacked(rows.row(), (rows.clock, 0, 0))
        found: list[Emitted] = []
        while first < last and free - self._ahead <= rows.clock:
            if (row := rows.row(number(first))) is not None:
                found.append(self._read.event(row))
            rows.put(None, number(first))
            rows.no_alarm(number(first))
            free, first = max(free, rows.clock - min(self._interval, _CATCH_UP)) + self._interval, first + 1
        if first == last and free <= rows.clock:
            rows.put(None)
        else:
            rows.put(packed([free, first, last] if first < last else [free, 0, 0]))
            rows.alarm(free - self._ahead if first < last else free)
        return found


def shown(rows: Mapping[str, bytes], form: str) -> dict[str, Any]:
    """What waits, and when the next place is free."""
    free = datetime.fromtimestamp(unpacked(rows[""], None)[0], tz=UTC)
    return {"waits": [shown_event(row) for row in in_order(rows)], "free": free}


def build(rate: str, burst: int = 1, *, typed: object = None, keyed: bool) -> State:
    """A rate of each key; of a stream without keys, one for all of it."""
    count, unit = rate.split("/")
    data = KeptData(typed)
    throttle = _Throttle(_SECONDS[unit] / float(count), burst, data)
    form = f"throttle of a {'key' if keyed else 'stream'}"
    return State(throttle.step, throttle.woken, read=data.read, form=form, keyed=keyed, clocked=True)


OPERATOR = Operator(
    "throttle",
    main=RateParameter(doc="how many may go on"),
    options={"burst": IntegerParameter(1, most=10_000, doc="how many may go on at once where none has for a while")},
    build=build,
    typed=True,
    state=True,
    shown=shown,
    hop=lambda rate, burst: Hop(lambda data, ctx: "all", gives=False),
)
