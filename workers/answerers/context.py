"""What a program may ask about the call that it serves: `dspex.workers.context()`."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import structlog

from dspex.bus.settings.not_built import METHODS, Planned


@dataclass(frozen=True)
class CallContext(Planned, names=METHODS["CallContext"]):
    """The call that is running here.

    Attributes:
        call: id of the call; the same in every attempt, so it can serve as an idempotency key.
        run: id of the run that caused it; "" where there is none.
        session: id of its session; None where it has none.
        attempt: from 1.
        deadline: when this attempt is stopped (UTC).
        node: the operator; "" for a call of no topology.
    """

    call: str
    run: str
    session: str | None
    attempt: int
    deadline: datetime
    node: str
    report: Callable[[str], None]

    @cached_property
    def log(self) -> Any:
        """A structlog logger bound to the call; it writes to the pool's log."""
        return structlog.get_logger("program").bind(call=self.call, run=self.run, node=self.node, attempt=self.attempt)

    def status(self, text: str) -> None:
        """Tell in a few words how the call goes: who streams the answer gets it, and it stands in the pool's log.

        Can be called from any thread.
        """
        self.report(text)


_current: ContextVar[CallContext] = ContextVar("dspex_call")


def context() -> CallContext:
    """The context of the call that this code serves. Raises LookupError outside of a worker's call."""
    return _current.get()


def enter(call: CallContext) -> None:
    """Make `call` the context of the current task and of what it starts."""
    _current.set(call)
