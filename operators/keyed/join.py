"""join: pairs of events of two streams that have one key and happened close together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from dspex.bus.codecs import decode, encode
from dspex.bus.errors import LateEvent
from dspex.bus.records import Origin
from dspex.engine.graph.context import Handler, Rows
from dspex.engine.graph.nodes import Emitted, State
from dspex.operators.keyed.kept import KeptData, after, packed, pairs, two, unpacked
from dspex.operators.operator import Operator
from dspex.operators.parameters import ChoiceParameter, DurationParameter, NothingParameter
from dspex.operators.typing.shape import UNKNOWN

_SIDES: Final = "lr"  # how the sub-keys of their events begin


class _Join:
    """One row an event: (its origin under an id of its own, whether it is paired or need not be, content type, data).

    A row stays for twice `within`: an event may come behind the watermark by `within`, and find what was that far before it.
    What is left unpaired goes on earlier, once the watermark has passed `within`, as `State.delay` says.
    """

    def __init__(self, within: float, outer: bool, sides: Sequence[KeptData]) -> None:
        self._within, self._outer, self._sides = within, outer, sides

    def step(self, out: Handler, inlet: int) -> Callable[[Any, Rows], None]:
        mine, others = _SIDES[inlet], _SIDES[1 - inlet]
        alone = self._outer and inlet == 0

        def run(data: Any, rows: Rows) -> None:
            time, origin = rows.origin.time, rows.origin
            if time + self._within < rows.watermark:
                raise LateEvent(
                    f"it is {rows.watermark - time:.3f} s behind the watermark, and joins with what is within {self._within} s"
                )
            body, content_type = encode(data, "auto")
            kept = rows.child()
            found = self._matches(rows, others, time)
            rows.put(packed([list(kept), bool(found) or not alone, content_type, body]), mine + kept.id)
            self._wait(rows, mine + kept.id, time, alone=alone and not found)
            for their_time, their_type, theirs in found:
                pair = [self._sides[inlet].data(body, content_type), self._sides[1 - inlet].data(theirs, their_type)]
                rows.go_on(out, (pair[inlet], pair[1 - inlet]), origin._replace(time=max(time, their_time)))

        return run

    def _matches(self, rows: Rows, side: str, time: float) -> list[tuple[float, str, bytes]]:
        """The events of a side that are near enough, as (time, content type, data). From now on they are paired."""
        found: list[tuple[float, str, bytes]] = []
        for sub in rows.subs():
            if sub[0] != side:
                continue
            origin, paired, content_type, body = unpacked(rows.row(sub), None)
            at = Origin(*origin).time
            if abs(at - time) > self._within:
                continue
            found.append((at, content_type, body))
            if not paired:
                rows.put(packed([origin, True, content_type, body]), sub)
                self._wait(rows, sub, at, alone=False)
        return found

    def _wait(self, rows: Rows, sub: str, time: float, *, alone: bool) -> None:
        """Wake when an event has had its time. `alone`: it goes on by itself then."""
        if alone:
            rows.alarm(after(time + self._within), sub, mark=True, hold=time)
        else:
            rows.alarm(after(time + 2 * self._within), sub, mark=True)

    def woken(self, rows: Rows, name: str) -> Sequence[Emitted]:
        row = rows.row(name)
        rows.put(None, name)
        if row is None:
            return ()
        origin, paired, content_type, body = unpacked(row, None)
        return () if paired else [Emitted(Origin(*origin), (self._sides[0].data(body, content_type), None))]


def shown(rows: Mapping[str, bytes], form: str) -> dict[str, Any]:
    """The data of the events that may still find one, by their streams."""
    found: dict[str, list[Any]] = {"left": [], "right": []}
    for sub, row in sorted(rows.items(), key=lambda one: Origin(*unpacked(one[1], None)[0]).time):
        _, _, content_type, body = unpacked(row, None)
        found["left" if sub[0] == _SIDES[0] else "right"].append(decode(body, content_type))
    return found


def build(
    main: object, within: float, how: Literal["inner", "left"] = "inner", *, typed: Sequence[object] = (None, None)
) -> State:
    """Pairs of two streams."""
    left, right = (KeptData(of) for of in two("join", typed))
    join, delay = _Join(within, how == "left", [left, right]), within if how == "left" else 0.0
    return State(join.step, join.woken, delay, event_time=True, form=f"join {how}", read=pairs(left, right))


OPERATOR = Operator(
    "join",
    main=NothingParameter(),
    options={
        "within": DurationParameter(zero=False, doc="how far apart in event time the two may be"),
        "how": ChoiceParameter(
            "inner",
            of=Literal["inner", "left"],
            doc='`"left"`: an event of the first stream that found none goes on with `None`',
        ),
    },
    build=build,
    shape=lambda shape, o: UNKNOWN,
    many_inputs=True,
    keyed=True,
    typed=True,
    shown=shown,
)
