"""gather: the branches of one event meet again, and their data becomes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from dspex.bus.codecs import decode, encode
from dspex.bus.errors import DataError, DspexError, InvalidInput
from dspex.bus.records import Origin
from dspex.engine.graph.context import Handler, Rows
from dspex.engine.graph.nodes import Emitted, State
from dspex.operators.keyed.kept import HOLD, packed, unpacked
from dspex.operators.operator import Operator
from dspex.operators.parameters import INTO, DurationParameter, NothingParameter
from dspex.operators.typing.shape import UNKNOWN, Shape, record_of, validator


class _Gather:
    """One row a branch that has arrived, below the id that the event got where its ways parted: (origin, content type, data).

    Once all are there, a timer that is due at once lets the whole out, so that a letter of what fails behind has all of it.
    """

    def __init__(self, within: float, into: object, branches: Sequence[str]) -> None:
        self._within, self._branches = within, branches
        self._typed = validator(into) if into is not None else None

    def step(self, out: Handler, inlet: int) -> Callable[[Any, Rows], None]:
        def run(data: Any, rows: Rows) -> None:
            if not self._take(rows, inlet, record_of(data)):
                why = f"the branch {self._branches[inlet]} gave more than one datum of the same event"
                raise InvalidInput(
                    why, fix="a branch that is gathered gives one datum for each: use flat_map behind the gather"
                )

        return run

    def _take(self, rows: Any, branch: int, data: Mapping[str, Any]) -> bool:
        """Keep what a branch gave; False where it has given something already."""
        event = rows.fork()
        if event is None:
            why = "it comes from no single event: an operator in its branch begins runs of its own"
            raise DataError(why, node=rows.node, fix="gather branches of calls and of operators that change the data alone")
        found = [rows.row(f"{event}/{n}") is not None for n in range(len(self._branches))]
        if found[branch]:
            return False
        body, content_type = encode(data, "auto")
        rows.put(packed([list(rows.origin), content_type, body]), f"{event}/{branch}")
        due = rows.clock if sum(found) == len(found) - 1 else rows.alarm_at(event) or rows.clock + self._within
        rows.alarm(due, event, hold=rows.origin.time, most=HOLD)
        return True

    def woken(self, rows: Any, name: str) -> Sequence[Emitted]:
        parts: dict[str, dict[str, Any]] = {}
        origin = None
        for n, branch in enumerate(self._branches):
            if (row := rows.row(f"{name}/{n}")) is not None:
                raw, content_type, body = unpacked(row, None)
                origin, parts[branch] = Origin(*raw), decode(body, content_type)
                rows.put(None, f"{name}/{n}")
        if origin is None:
            return ()
        missing = [branch for branch in self._branches if branch not in parts]
        if missing:
            some = "s" if len(missing) > 1 else ""
            why = f"branch{'es' if some else ''} {', '.join(missing)} of the event did not come within {self._within} s"
            fix = "look for letters of these branches; redrive them and this one, in any order: dspex dlq redrive"
            return [Emitted(origin, parts, DataError(why, code="DX515", node=rows.node, fix=fix))]
        whole: Any = {}
        for part in parts.values():
            whole |= part
        forks = {node: id for node, id in (origin.forks or {}).items() if id != name}
        try:
            typed = self._typed(whole) if self._typed is not None else whole
        except DspexError as e:
            return [Emitted(origin, parts, e)]
        return [Emitted(origin._replace(id=name, cause=origin.id, forks=forks or None), typed)]

    def back(self, data: Any, rows: Any) -> None:
        """Take again what a letter has, as if it arrived now."""
        for n, branch in enumerate(self._branches):
            if isinstance(data, Mapping) and branch in data:
                self._take(rows, n, record_of(data[branch]))


def _state(within: float, into: object, branches: Sequence[str]) -> State:
    gather = _Gather(within, into, branches)
    read = gather._typed  # pyright: ignore[reportPrivateUsage]
    return State(gather.step, gather.woken, form="gather", keyed=False, read=read, gathers=True, back=gather.back, clocked=True)


def build(main: object, within: float, into: object = None, *, keyed: bool = False) -> State:
    """The branches of one event. Their names are known once all nodes have theirs."""
    if into is not None:
        validator(into)
    state = _state(within, into, ())
    return replace(state, named=partial(_state, within, into))


def shown(rows: Mapping[str, bytes], form: str) -> dict[str, dict[str, Any]]:
    """Event → the data of its branches that have come, by their numbers."""
    found: dict[str, dict[str, Any]] = {}
    for sub, row in sorted(rows.items()):
        event, _, branch = sub.rpartition("/")
        _, content_type, body = unpacked(row, None)
        found.setdefault(event, {})[branch] = decode(body, content_type)
    return found


def together(shapes: Sequence[Shape]) -> Shape:
    """The record that has the fields of all."""
    fields: dict[str, object] = {}
    for shape in shapes:
        if shape.fields is None:
            return UNKNOWN
        fields |= shape.fields
    return Shape(None, fields)


OPERATOR = Operator(
    "gather",
    main=NothingParameter(),
    options={
        "within": DurationParameter(zero=False, doc="how long branches wait for the others, on the clock of the engine"),
        "into": INTO,
    },
    build=build,
    joined=together,
    many_inputs=True,
    state=True,
    shown=shown,
)
