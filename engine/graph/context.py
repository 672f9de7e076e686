"""What an operator is to the engine: one function, and what that function may ask for besides its data.

A native operator is one function, `build`: given the steps of its outlets it returns its own step. Nothing is queued between
steps: a step calls the next one directly, so "everything derived from this event is done" is "the step returned". The
obvious alternative, an operator object with `process(event) -> events`, would need the engine to loop over lists between
every two operators, and a registry of operators in the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import inf
from random import Random
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias
from uuid import UUID

from structlog.typing import FilteringBoundLogger

from dspex.bus.message import Event, derived_id
from dspex.bus.records import Origin
from dspex.bus.seldom import logger
from dspex.bus.settings.duration import Duration

_log = logger("dspex.engine")
_NOWHERE = Origin(id="", subject="", run="")

Handler: TypeAlias = Callable[[Any, "Context"], None]  # data, context: hand on what comes out, return when all is done
Build: TypeAlias = Callable[[Sequence[Handler]], Handler]


class Context(Protocol):
    """What a native function may ask for besides its data. All of it is the same when the event is walked again."""

    @property
    def event(self) -> Event[Any]:
        """The event that entered the stage. Its `data` is None: a function gets what it works on as its argument."""
        ...

    @property
    def now(self) -> datetime:
        """The engine's clock (UTC), as recorded with the commit: the same on recovery and on replay."""
        ...

    @property
    def key(self) -> str | None: ...

    @property
    def session(self) -> str | None: ...

    @property
    def log(self) -> FilteringBoundLogger:
        """A structlog logger bound to the event and the operator."""
        ...

    @property
    def random(self) -> Random:
        """Seeded by the event's id."""
        ...

    def uuid(self) -> UUID:
        """A new id, the same one at every walk of this event."""
        ...


class StateContext(Context, Protocol):
    """What a function with state may ask for besides."""

    def wake(self, after: Duration) -> None:
        """Call `on_wake` for this key after a while, on the clock of the engine: once, and instead of what was asked before."""
        ...


class Rows(Context, Protocol):
    """What an operator with state works on: its rows and its timers, for the key of the event that is processed now.

    Changes are staged: what the walk fails at leaves nothing of them. An operator makes its changes before it hands anything
    on, since operators behind it may change what it holds.
    """

    origin: Origin
    clock: float

    @property
    def watermark(self) -> float:
        """Nothing earlier reaches the operator any more. Seconds since the epoch; minus infinity where nobody knows."""
        ...

    def row(self, sub: str = "") -> bytes | None:
        """The value of a row; None where there is none."""
        ...

    def put(self, value: bytes | None, sub: str = "") -> None:
        """Write a row; None removes it. Raises DataError (DX512) for more than a partition, or one value, may have."""
        ...

    def subs(self) -> list[str]:
        """The sub-keys of all rows, sorted; the row "" is not among them."""
        ...

    def alarm(self, due: float, name: str = "", *, mark: bool = False, hold: float | None = None, most: float = inf) -> None:
        """Wake the operator at `due`, on the clock of the engine, or by its watermark (`mark`); in place of the timer `name`.

        `hold`: the event time of what comes out then, which no watermark behind the operator passes; but not for longer than
        `most` seconds from now.
        """
        ...

    def no_alarm(self, name: str = "") -> None:
        """Forget a timer, where there is one."""
        ...

    def alarm_at(self, name: str = "") -> float | None:
        """When a timer is due; None where there is none."""
        ...

    def child(self) -> Origin:
        """The origin of the event when it goes on later: an id of its own, the same run."""
        ...

    def new_origin(self, time: float) -> Origin:
        """The origin of an event that begins a run of its own: what a window gives was caused by many."""
        ...

    def fork(self) -> str | None:
        """The id that the event has for this gather in all of its branches; None where it came from no single event."""
        ...

    def go_on(self, out: Handler, data: Any, origin: Origin) -> None:
        """Hand something on, as `out(data, rows)` does, as the event that `origin` says."""
        ...


class EventContext:
    """What a function gets as its Context: the event that is processed now, and the operator that runs.

    One object serves one event after another, because making one for each would cost as much as a short walk.
    """

    __slots__ = ("_event", "_ids", "_random", "_topology", "clock", "node", "origin")

    def __init__(self, topology: str) -> None:
        self._topology = topology
        self.origin: Origin = _NOWHERE
        self.node = ""  # the operator that runs now: whom an exception is blamed on
        self.clock = 0.0
        self._ids = 0
        self._event: Event[Any] | None = None
        self._random: Random | None = None

    @property
    def event(self) -> Event[Any]:
        if self._event is not None:
            return self._event
        o = self.origin
        at = datetime.fromtimestamp(o.time, tz=UTC)
        headers = MappingProxyType(o.headers or {})  # shared by all nodes: none may change them for the others
        self._event = Event(o.id, o.subject, None, at, o.run, o.cause, o.key, o.session, headers, o.sequence or None)
        return self._event

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock, tz=UTC)

    @property
    def key(self) -> str | None:
        return self.origin.key

    @property
    def session(self) -> str | None:
        return self.origin.session

    @property
    def log(self) -> FilteringBoundLogger:
        return _log.bind(topology=self._topology, node=self.node, event=self.origin.id, run=self.origin.run)

    @property
    def random(self) -> Random:
        if self._random is None:
            self._random = Random(self.origin.id)
        return self._random

    def uuid(self) -> UUID:
        self._ids += 1
        return UUID(derived_id(self.origin.id, f"{self.node}/uuid", self._ids))
