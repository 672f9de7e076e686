"""batch: lists of so many events, or of what has come within a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dspex.bus.codecs import decode, encode
from dspex.engine.graph.context import Handler, Rows
from dspex.engine.graph.nodes import Emitted, State
from dspex.operators.keyed.kept import HOLD, KeptData, in_order, number, packed, unpacked
from dspex.operators.operator import Operator
from dspex.operators.parameters import DurationParameter, IntegerParameter
from dspex.operators.typing.shape import UNKNOWN

MOST = 10_000  # events of a batch: it is one event, and goes on as a whole


class _Batch:
    """One row an item: (clock when it came, event time, content type, data). The row "" says which there are, and the earliest
    event time.

    A full batch goes on by a timer too, which is due at once: where something fails behind it, its letter has the whole batch,
    and the next ones are not kept back by it.
    """

    def __init__(self, size: int, within: float, read: KeptData) -> None:
        self._size, self._within, self._read = size, within, read

    def step(self, out: Handler, inlet: int) -> Callable[[Any, Rows], None]:
        def run(data: Any, rows: Rows) -> None:
            time = rows.origin.time
            first, last, earliest = unpacked(rows.row(), (0, 0, time))
            body, content_type = encode(data, "auto")
            rows.put(packed([rows.clock, time, content_type, body]), number(last))
            self._save(rows, first, last + 1, min(earliest, time), rows.alarm_at() or rows.clock + self._within)

        return run

    def _save(self, rows: Rows, first: int, last: int, earliest: float, due: float) -> None:
        rows.put(packed([first, last, earliest]))
        rows.alarm(min(due, rows.clock) if last - first >= self._size else due, hold=earliest, most=HOLD)

    def woken(self, rows: Rows, name: str) -> Sequence[Emitted]:
        first, last, _ = unpacked(rows.row(), (0, 0, 0.0))
        found: list[Emitted] = []
        while last - first >= self._size:
            found.append(self._taken(rows, first, first + self._size))
            first += self._size
        left = [unpacked(rows.row(number(n)), None) for n in range(first, last)]
        if left and left[0][0] + self._within <= rows.clock:
            found.append(self._taken(rows, first, last))
            left = []
        if left:
            self._save(rows, first, last, min(item[1] for item in left), left[0][0] + self._within)
        else:
            rows.put(None)
        return found

    def _taken(self, rows: Rows, first: int, end: int) -> Emitted:
        """Take these items out, as one event with the time of the latest."""
        items = [unpacked(rows.row(number(n)), None) for n in range(first, end)]
        for n in range(first, end):
            rows.put(None, number(n))
        origin = rows.new_origin(max(item[1] for item in items))
        return Emitted(origin, [self._read.data(body, content_type) for _, _, content_type, body in items])


def shown(rows: Mapping[str, bytes], form: str) -> list[Any]:
    """The data that wait."""
    items = [unpacked(row, None) for row in in_order(rows)]
    return [decode(body, content_type) for _, _, content_type, body in items]


def build(size: int, within: float, *, typed: object = None, keyed: bool) -> State:
    """Batches of a key; of a stream without keys, those of a partition."""
    kept = KeptData(typed)
    batch, form = _Batch(size, within, kept), f"batch of a {'key' if keyed else 'partition'}"

    def read(data: Any) -> list[Any]:
        return [kept.read(item) for item in data]

    return State(batch.step, batch.woken, form=form, keyed=keyed, read=read, clocked=True)


OPERATOR = Operator(
    "batch",
    main=IntegerParameter(most=MOST, doc="how many events make a full batch"),
    options={
        "within": DurationParameter(zero=False, doc="a batch that is not full goes on so long after its first event came")
    },
    build=build,
    shape=lambda shape, o: UNKNOWN,
    typed=True,
    state=True,
    shown=shown,
)
