"""dedupe: of events with the same business key the first one goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from dspex.engine.graph.context import Handler, Rows
from dspex.engine.graph.nodes import Emitted, Hop, State
from dspex.operators.expressions import language as expressions
from dspex.operators.keyed.kept import after, packed, unpacked
from dspex.operators.keyed.key_by import key_text
from dspex.operators.operator import Operator
from dspex.operators.parameters import DurationParameter, ExpressionParameter


def _key(text: str) -> Callable[[Any, Any], str]:
    function = expressions.compile(text).function
    return lambda data, ctx: key_text(function(data, ctx), "dedupe")


def shown(rows: Mapping[str, bytes], form: str) -> dict[str, datetime]:
    """Business key → when its first event happened, the latest of several."""
    return {name: datetime.fromtimestamp(unpacked(row, None)[-1], tz=UTC) for name, row in sorted(rows.items())}


def build(key: str, within: float, *, keyed: bool) -> State:
    """One row a business key: the event times of first ones, of which there are several where they come out of order and are
    no repeats of each other. It goes once the watermark says that no repeat can follow.
    """
    key_of = _key(key)

    def step(out: Handler, inlet: int) -> Callable[[Any, Rows], None]:
        def run(data: Any, rows: Rows) -> None:
            name, time = key_of(data, rows), rows.origin.time
            firsts = unpacked(rows.row(name), [])
            if any(abs(time - first) <= within for first in firsts):
                return
            firsts = sorted([time, *(first for first in firsts if first + within >= rows.watermark)])
            rows.put(packed(firsts), name)
            rows.alarm(after(firsts[-1] + within), name, mark=True)
            out(data, rows)

        return run

    def woken(rows: Rows, name: str) -> Sequence[Emitted]:
        rows.put(None, name)
        return ()

    return State(step, woken, event_time=True, form=f"dedupe of a {'key' if keyed else 'partition'}", keyed=keyed)


OPERATOR = Operator(
    "dedupe",
    main=ExpressionParameter(doc="the business key, a text"),
    options={"within": DurationParameter(zero=False, doc="how far apart in event time repeats are still repeats")},
    build=build,
    state=True,
    shown=shown,
    hop=lambda key, within: Hop(_key(key), gives=False),
)
