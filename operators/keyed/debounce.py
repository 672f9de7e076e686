"""debounce: of a burst of events the last one goes on, once nothing has followed it for a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dspex.engine.graph.context import Handler, Rows
from dspex.engine.graph.nodes import Emitted, State
from dspex.operators.keyed.kept import HOLD, KeptData, keep, shown_event
from dspex.operators.operator import Operator
from dspex.operators.parameters import DurationParameter


def build(wait: float, *, typed: object = None) -> State:
    """One row a key: the latest event. Each event puts the timer off."""
    kept = KeptData(typed)

    def step(out: Handler, inlet: int) -> Callable[[Any, Rows], None]:
        def run(data: Any, rows: Rows) -> None:
            rows.put(keep(rows.child(), data))
            rows.alarm(rows.clock + wait, hold=rows.origin.time, most=HOLD)

        return run

    def woken(rows: Rows, name: str) -> Sequence[Emitted]:
        row = rows.row()
        rows.put(None)
        return [kept.event(row)] if row is not None else ()

    return State(step, woken, form="debounce", read=kept.read, clocked=True)


OPERATOR = Operator(
    "debounce",
    main=DurationParameter(zero=False, doc="how long a key must be silent"),
    build=build,
    keyed=True,
    shown=lambda rows, form: shown_event(rows[""]),
    typed=True,
)
