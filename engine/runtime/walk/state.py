"""What operators with state see of the tables: their rows and timers, with the changes of this walk over them.

Changes are staged until the walk has ended well, so that an arrival has all its effects or none. What is kept of an event that
goes on later is its packed form, under an id of its own: two events that were kept may come from the same one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from structlog.typing import FilteringBoundLogger

from dspex.bus import telemetry
from dspex.bus.codecs import tracing
from dspex.bus.errors import DataError
from dspex.bus.message import derived_id
from dspex.bus.records import Origin
from dspex.bus.settings.duration import Duration, seconds
from dspex.engine.graph.context import EventContext, Handler
from dspex.engine.log.rows import NO_MARK, Split, Timer
from dspex.engine.log.tables import Change, Tables
from dspex.engine.runtime.walk.request import Address, Output
from dspex.engine.runtime.watermarks.clocks import NodeClock

if TYPE_CHECKING:
    from dspex.engine.runtime.arrival import Arrival, LetOut
    from dspex.engine.runtime.walk.compile import Stage

MOST_VALUE: Final = 8 << 20  # bytes of one value
MOST_STAGED: Final = 16 << 20  # bytes that one arrival may change: an entry of the log has to hold them
_NOWHERE: Final = Tables()
_NO_NAMES: Final[Mapping[str, str]] = {}


def woken_by(node: str) -> str:
    """Under which name the positions have the watermark that has last woken a node."""
    return f"time/{node}"


def split_of(stage: Stage, arrival: Arrival, tables: Tables) -> Split:
    """What stays the same of an arrival whose outputs go in parts, however often it is walked."""
    known, mark = tables.splits.rows.get(arrival.place), tables.position("time").mark
    if known is not None:
        return known
    found = ((node, stage.clocks[node].at(tables, mark, arrival.clock)) for node in sorted(stage.states))
    return Split(0, arrival.clock, tables.number, b"", tuple((node, max(at, NO_MARK)) for node, at in found))


class Staged(NamedTuple):
    """The changes of a walk so far: rows by (node, key, sub-key), timers by number."""

    rows: dict[tuple[str, str, str], bytes | None]
    timers: dict[int, Timer | None]
    numbers: dict[tuple[str, str, str], int]

    def copy(self) -> Staged:
        return Staged(dict(self.rows), dict(self.timers), dict(self.numbers))


class StateWalk(EventContext, ABC):
    """The part of a walk that deals with state: the `Rows` of the operator that runs now, for the key of its event.

    Attributes:
        outputs: what came out so far. tables: as they are before the arrival. number: the next one for a call or a timer.
        fired: the number of the timer that wakes the operator now; 0: none does.
        staged: what changed since. dirty: whether anything may have. let_out: what came out of operators that were woken.
        pinned: watermarks that nodes have whatever was taken since.
        waking: seconds after which a function with state wants to be woken; None: it does not.
    """

    __slots__ = (
        "_before",
        "_clocks",
        "_grown",
        "_names",
        "_shared",
        "_size",
        "address",
        "counts",
        "dirty",
        "fired",
        "let_out",
        "number",
        "outputs",
        "pinned",
        "staged",
        "tables",
        "waking",
    )

    def __init__(
        self,
        address: Address,
        clocks: Mapping[str, NodeClock],
        shared: frozenset[str] = frozenset(),
        names: Mapping[str, str] = _NO_NAMES,
    ) -> None:
        super().__init__(address.topology)
        self.address, self._clocks, self._shared, self._names, self.number = address, clocks, shared, names, 0
        self._before = {new: [old for old, now in names.items() if now == new] for new in names.values()}
        self.outputs: list[Output] = []
        self.pinned: Mapping[str, float] = {}
        self.counts: dict[str, int] = {}  # node → the ordinal of its latest output
        self.tables = _NOWHERE
        self.clean()
        self.waking: float | None = None

    @property
    def log(self) -> FilteringBoundLogger:
        plain, o = super().log, self.origin
        if not telemetry.listeners:
            return plain
        span = tracing.span_of(self.address.app, o.id, self.address.topology)
        return plain.bind(**tracing.in_logs(tracing.trace_of(o.trace, o.run), span))

    def begin(self, tables: Tables, number: int) -> None:
        """Forget what is staged. `number`: the first that a call or a timer may get."""
        self.tables, self.number = tables, number
        self.clean()
        self.dirty = True  # whoever begins so may change anything

    def clean(self) -> None:
        """Forget what changed."""
        self.staged, self._size, self._grown, self.fired, self.dirty = Staged({}, {}, {}), 0, 0, 0, False
        self.let_out: tuple[LetOut, ...] = ()

    def changes(self) -> tuple[Change, ...]:
        """What is staged. A timer that has fired is over: where the operator sets it again, it gets a number of its own."""
        rows, timers, _ = self.staged
        if self.fired:
            timers = {self.fired: None, **timers}
        return (*(("keyed", key, row) for key, row in rows.items()), *(("timers", n, row) for n, row in timers.items()))

    @abstractmethod
    def inherit(self, origin: Origin) -> None:
        """What stands in its run as `origin` says is derived from now on. Raises InvalidInput where it is too long."""

    def resume(self, origin: Origin, node: str, clock: float) -> None:
        """What stands in its run as `origin` says goes on at a node, in the same arrival. Raises as `inherit`."""
        self.clock, self.node = clock, node
        self.inherit(origin)
        self.counts.clear()
        self._ids, self._event, self._random = 0, None, None

    def lets_out(self, one: LetOut) -> None:
        """Note what came out of an operator that was woken."""
        self.let_out, self.dirty = (*self.let_out, one), True

    def saved(self) -> tuple[Staged, int, int]:
        """What is staged, the next number, and how many outputs there are: for `restore`."""
        return self.staged.copy(), self.number, len(self.outputs)

    def restore(self, saved: tuple[Staged, int, int]) -> None:
        """Forget what came since."""
        self.staged, self.number, count = saved
        del self.outputs[count:]

    # -- rows -----------------------------------------------------------------------------------------------------------
    @property
    def watermark(self) -> float:
        return self.watermark_of(self.node)

    def watermark_of(self, node: str) -> float:
        """The watermark of a node, as the tables have it. It never goes back behind what it has woken, whatever is open now."""
        tables, clock = self.tables, self._clocks.get(node)
        found = self.pinned.get(node)
        if found is None:
            found = clock.at(tables, tables.position("time").mark, self.clock) if clock is not None else -inf
        before = self._before.get(node, ())
        return max(found, tables.position(woken_by(node)).mark, *(tables.position(woken_by(old)).mark for old in before))

    def _at(self, sub: str) -> tuple[str, str, str]:
        node = self.node
        return node, "" if node in self._shared else self.origin.key or "", sub

    def row(self, sub: str = "") -> bytes | None:
        at, rows = self._at(sub), self.staged.rows
        return rows[at] if at in rows else self.tables.keyed.rows.get(at)

    def put(self, value: bytes | None, sub: str = "") -> None:
        at = self._at(sub)
        self.dirty = True
        before = len(self.row(sub) or b"")
        self._grown += len(value or b"") - before
        if value is not None:
            self._size += len(value)
            self._check(len(value), before)
        elif at not in self.tables.keyed.rows:
            self.staged.rows.pop(at, None)  # it came and went
            return
        self.staged.rows[at] = value

    def _check(self, size: int, before: int) -> None:
        held = self.tables.keyed.size + self._grown
        if size <= MOST_VALUE and self._size <= MOST_STAGED and (held <= self.address.state or size <= before):
            return
        what, most = f"{held:,} bytes of state in partition {self.address.partition}", self.address.state
        if size > MOST_VALUE:
            what, most = f"a value of {size:,} bytes", MOST_VALUE
        elif self._size > MOST_STAGED:
            what, most = f"{self._size:,} bytes of state that one event changes", MOST_STAGED
        raise DataError(
            f"{self.node} has {what} for key {(self.origin.key or '')[:100]!r}, and {most:,} may be",
            code="DX512",
            node=self.node,
            fix="keep less for each key, or forget keys with ttl=, or raise engine.state_limit; then: dspex dlq redrive",
        )

    def subs(self) -> list[str]:
        node, key, _ = self._at("")
        found = set(self.tables.keyed.subs(node, key))
        for (n, k, sub), row in self.staged.rows.items():
            if sub and (n, k) == (node, key):
                (found.discard if row is None else found.add)(sub)
        return sorted(found)

    # -- timers ---------------------------------------------------------------------------------------------------------
    def _timer(self, name: str) -> tuple[int | None, Timer | None]:
        """The number of a timer, and what it is; no timer where it is forgotten in this walk."""
        at = self._at(name)
        number = self.staged.numbers.get(at)
        if number is None:
            number = self.tables.timers.of(*at)
        if number is None or number == self.fired:
            return None, None
        return number, self.staged.timers[number] if number in self.staged.timers else self.tables.timers.rows.get(number)

    def alarm(self, due: float, name: str = "", *, mark: bool = False, hold: float | None = None, most: float = inf) -> None:
        number, row = self._timer(name)
        node, key, _ = at = self._at(name)
        until = None if most == inf else (row.until if row is not None and row.until else self.clock + most)
        made = Timer(
            due, "mark" if mark else "wake", run=self.origin.run, node=node, key=key, name=name, hold=hold, until=until
        )
        if number is None:
            number = self.staged.numbers[at] = self.number
            self.number += 1
        self.staged.timers[number], self.dirty = made, True

    def no_alarm(self, name: str = "") -> None:
        number, row = self._timer(name)
        if number is not None and row is not None:
            self.staged.timers[number], self.dirty = None, True

    def alarm_at(self, name: str = "") -> float | None:
        row = self._timer(name)[1]
        return row.due if row is not None else None

    def wake(self, after: Duration) -> None:
        """As StateContext says."""
        self.waking = seconds(after)

    # -- events that go on later ----------------------------------------------------------------------------------------
    def ordinal(self, node: str) -> int:
        """The next one of a node's outputs."""
        self.counts[node] = ordinal = self.counts.get(node, -1) + 1
        return ordinal

    def child(self) -> Origin:
        o, node = self.origin, self.node
        return o._replace(id=derived_id(o.id, self.address.node_id(node), self.ordinal(node)), cause=o.id)

    def new_origin(self, time: float) -> Origin:
        o, node = self.origin, self.node
        id = derived_id(o.id, self.address.node_id(node), self.ordinal(node))
        return Origin(id, o.subject, id, cause=o.id, key=self._at("")[1] or None, time=time)

    def fork(self) -> str | None:
        forks = self.origin.forks or {}
        return next((id for name, id in forks.items() if self.node in (name, self._names.get(name))), None)

    def go_on(self, out: Handler, data: object, origin: Origin) -> None:
        before = self.origin, self._event, self._random
        self.inherit(origin)
        self._event = self._random = None
        out(data, self)
        self.origin, self._event, self._random = before
