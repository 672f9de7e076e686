"""window: windows of one length, one after another, or overlapping (`every`).

Overlapping windows share *panes*, the pieces of time of which each window is made: an event changes its pane, and the panes are
joined when a window ends. What cannot be joined has a row for each window. A key has a timer for each end that is due.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import gcd
from typing import Any, Final

from dspex.engine.graph.context import Handler, Rows
from dspex.engine.graph.nodes import Emitted, State
from dspex.operators.keyed.windows.gives import ITEM, Gives, number_of, shown_sum
from dspex.operators.keyed.windows.options import GIVES, OPTIONS, gives_of, milliseconds, shape
from dspex.operators.keyed.windows.windowed import Ends, check_years, finished, micro, moment, named, result, time_of
from dspex.operators.native.problems import problem
from dspex.operators.operator import Operator
from dspex.operators.parameters import DurationParameter
from dspex.operators.typing.names import OnError

MOST_STATES: Final = 100
"""Windows that overlap at any time, of those that cannot be joined of panes: each event changes all of them."""
MOST_PANES: Final = 10_000
"""Of a window."""


class _Windows:
    """Windows of `size` microseconds, one `every` so many, each of panes of `pane`."""

    def __init__(self, size: int, every: int, pane: int, ends: Ends, gives: Gives) -> None:
        self.size, self.every, self.pane, self.ends, self.gives = size, every, pane, ends, gives

    def opened(self, time: int, rows: Rows) -> tuple[int, int]:
        """The ends of the first and of the last window of a time that are open. Raises LateEvent where none is."""
        first = (time - self.size) // self.every * self.every + self.every + self.size
        last = time // self.every * self.every + self.size
        first = self.ends.first_open(first, self.every, rows)
        if first > last:
            self.ends.late(last, rows)
        else:
            check_years(first - self.size, last)
        return first, last

    def step(self, out: Handler, inlet: int) -> Callable[[Any, Rows], None]:
        def run(data: Any, rows: Rows) -> None:
            time = micro(rows.origin.time)
            first, last = self.opened(time, rows)
            if first > last:
                return
            start = time // self.pane * self.pane
            sum = rows.row(named(start))
            if self.gives.items:
                self.gives.check(self._most(first, last, rows))
            rows.put(self.gives.add(rows, sum, data, time), named(start))
            if sum is None and rows.alarm_at(named(first)) is None:
                self.ends.alarm(first, named(first), rows)

        return run

    def _most(self, first: int, last: int, rows: Rows) -> int:
        """How many events there are in that of some windows which has the most."""
        counts = [number_of(rows.row(named(at))) for at in range(first - self.size, last, self.pane)]
        most = held = sum(counts[: self.size // self.pane])
        step = self.every // self.pane
        for at in range(0, (last - first) // self.pane, step):
            held += sum(counts[at + self.size // self.pane : at + self.size // self.pane + step]) - sum(counts[at : at + step])
            most = max(most, held)
        return most

    def woken(self, rows: Rows, name: str) -> Sequence[Emitted]:
        end = time_of(name)
        if self.ends.goes_on(end, name, rows):
            return ()
        panes = [at for sub in rows.subs() if sub[0] != ITEM and (at := time_of(sub)) < end + self.every]
        found = [at for at in panes if end - self.size <= at < end]
        sums = [row for at in found if (row := rows.row(named(at))) is not None]
        start = end - self.size
        made = [result(rows, start, end, self.gives.parts(rows, sums, start, end))] if found else []
        for at in found:
            if at // self.every * self.every + self.size == end:  # no later window has it
                rows.put(None, named(at))
                self.gives.forget(rows, at, at + self.pane)
        following = end + self.every
        if any(at >= following - self.size for at in panes) and rows.alarm_at(named(following)) is None:
            self.ends.alarm(following, named(following), rows)
        return made


class _Each(_Windows):
    """The same with a row for each window, under its end."""

    def step(self, out: Handler, inlet: int) -> Callable[[Any, Rows], None]:
        def run(data: Any, rows: Rows) -> None:
            time = micro(rows.origin.time)
            first, last = self.opened(time, rows)
            for end in range(first, last + 1, self.every):
                sum = rows.row(named(end))
                rows.put(self.gives.add(rows, sum, data, time), named(end))
                if sum is None:
                    self.ends.alarm(end, named(end), rows)

        return run

    def woken(self, rows: Rows, name: str) -> Sequence[Emitted]:
        row, end = rows.row(name), time_of(name)
        if row is None or self.ends.goes_on(end, name, rows):
            return ()
        rows.put(None, name)
        return [result(rows, end - self.size, end, [row])]


def shown(rows: Mapping[str, bytes], form: str) -> list[dict[str, Any]]:
    """The open windows with what they have so far; of windows that overlap, the parts of time that they are made of."""
    _, size, each, gives = form.split()
    length, every = int(size), int(each)
    pane, whole = gcd(length, every), gives == "aggregate" and length > every
    found: list[dict[str, Any]] = []
    for sub, sum in sorted(rows.items()):
        if sub[0] != ITEM:
            start = time_of(sub) - (length if whole else 0)
            end = start + (length if whole else pane)
            value = shown_sum(rows, sum, start, end, items=gives == "collect")
            found.append({"start": moment(start), "end": moment(end), "value": value})
    return found


def build(
    size: float,
    *,
    every: float | None = None,
    lateness: float = 0,
    late: OnError = "dead_letter",
    typed: object = None,
    **o: Any,
) -> State:
    """Windows of one length. Raises TopologyError for what does not go together."""
    gives, ends = gives_of(o, typed, merging=False), Ends(lateness, late)
    step = size if every is None else every
    if step > size:
        raise problem(
            "DX205",
            f"windows of {size:g} s, one every {step:g} s, leave out what comes between them",
            "make every= at most the size; filter what is to be left out",
        )
    length, each = micro(milliseconds("window", size)), micro(milliseconds("every", step))
    pane = gcd(length, each)
    if not gives.joins and length > each:
        if length > each * MOST_STATES:
            raise problem(
                "DX205",
                f"each event is in {-(-length // each):,} windows at once, and aggregate has a state for each: "
                f"{MOST_STATES} at most",
                "use reduce, count or collect, which are joined of parts; or a longer every=",
            )
        windows: _Windows = _Each(length, each, each, ends, gives)
    elif length > pane * MOST_PANES:
        raise problem(
            "DX205",
            f"a window has {length // pane:,} parts, the longest that size and every= are both made of: {MOST_PANES:,} at most",
            "make every= longer, or the size a multiple of it",
        )
    else:
        windows = _Windows(length, each, pane, ends, gives)
    form = f"window {length} {each} {next(name for name in GIVES if o[name] is not None)}"
    return State(windows.step, windows.woken, delay=lateness, event_time=True, form=form, finish=finished(gives.made))


OPERATOR = Operator(
    "window",
    main=DurationParameter(zero=False, doc="how long a window is; windows begin at multiples of it since 1970, in UTC"),
    options={
        "every": DurationParameter(None, zero=False, doc="a window begins every so often; default: its length"),
        **OPTIONS,
    },
    build=build,
    shape=shape,
    keyed=True,
    one_of=GIVES,
    typed=True,
    shown=shown,
)
