"""What an operator is to the engine: one function, and what that function may ask for besides its data.

A native operator is one function, `build`: given the steps of its outlets it returns its own step. Nothing is queued between
steps: a step calls the next one directly, so "everything derived from this event is done" is "the step returned". The
obvious alternative, an operator object with `process(event) -> events`, would need the engine to loop over lists between
every two operators, and a registry of operators in the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from random import Random
from typing import Any, Protocol, TypeAlias
from uuid import UUID

from structlog.typing import FilteringBoundLogger

from dspex.bus.message import Event

Handler: TypeAlias = Callable[[Any, "Context"], None]  # data, context: hand on what comes out, return when all is done
Build: TypeAlias = Callable[[Sequence[Handler]], Handler]


class Context(Protocol):
    """What a native function may ask for besides its data. All of it is the same when the event is walked again."""

    @property
    def event(self) -> Event[Any]:
        """The event that entered the stage. `data` is what the stage read, not what earlier operators made of it."""
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
