"""What a pool's parent asks about a call before a child gets it: whether it is answered already, and whether it may be made.

The steps of a pool are asked in order (`Pool.steps`): first which saved state the program has (`execution.state`), because the
rest goes by that; then what may answer (the cache), then what may refuse (budgets, the breaker). Behind them are the slots, and
in the child native calls and then DSPy. None of it waits: a limit that is reached refuses the call with the time after which it
may come again, and who asked decides what becomes of it.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dspex.bus.port import Bus
from dspex.bus.records import CallRecord, Usage
from dspex.bus.serving.keys.secret_fields import need_key
from dspex.workers.answer import Answer

if TYPE_CHECKING:
    from dspex.workers.pool.execution import Execution


class CallStep(Protocol):
    """One of them. It hears of every execution that passed it, once, when that has its record."""

    def before(self, execution: Execution) -> Answer | Coroutine[Any, Any, Answer | None] | None:
        """The answer, if there is one already; None where the call goes on. May choose `execution.lms`.

        A coroutine where the bus has to be asked: what can be known without is known at once, because a task costs more than a
        call of a cached answer. Raises CallError where the call may not be made now.
        """
        ...

    def after(self, execution: Execution, record: CallRecord) -> None:
        """The end of an execution that `before` let pass; of one that was given up in it, too."""
        ...


class CallLimits(Protocol):
    """The limits of profiles and budgets, while a call runs."""

    async def further(self, execution: Execution, lm: str, used: Usage | None) -> None:
        """The next profile of its list is to be asked. `used`: what it has used so far; None: that is not known.

        Raises CallError where that has no room, or the pool has no such profile.
        """
        ...

    async def again(self, execution: Execution, lm: str) -> None:
        """The profile that is asked is to be asked a second time meanwhile. Raises CallError where that has no room."""
        ...

    async def room(self, execution: Execution) -> None:
        """A request is to be made whose use is counted by itself. Raises CallError where there is no room for it."""
        ...

    def spent(self, execution: Execution, used: Usage) -> None:
        """A request has used this."""
        ...

    def failed(self, execution: Execution) -> None:
        """A request has failed: what is reserved for it need not be."""
        ...


@dataclass(frozen=True)
class SecretFields:
    """The step that refuses what would store in clear text what is marked secret: what a call journals, and what its record or
    its turn has for others to read again. Who asks is told so before that; this is for who has not looked.
    """

    bus: Bus

    def before(self, execution: Execution) -> None:
        """See CallStep. Raises ConfigError (DX127)."""
        work = execution.work
        if work.record is not None or work.turn is not None:
            need_key(self.bus, work.spec, "what a worker says of this call", work.node)

    def after(self, execution: Execution, record: CallRecord) -> None:
        """See CallStep."""


@dataclass(frozen=True)
class OfCall:
    """The limits, asked for one call."""

    limits: CallLimits
    execution: Execution

    async def room(self) -> None:
        """See CallLimits."""
        await self.limits.room(self.execution)

    def spent(self, used: Usage) -> None:
        """See CallLimits."""
        self.limits.spent(self.execution, used)

    def failed(self) -> None:
        """See CallLimits."""
        self.limits.failed(self.execution)
