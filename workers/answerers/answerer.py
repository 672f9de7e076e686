"""What can answer a call. A child asks its answerers in order, and the first that does not refuse answers."""

from __future__ import annotations

from typing import Protocol

from dspex.bus.records import Outputs
from dspex.workers.answerers.attempt import Attempt


class Answerer(Protocol):
    """One way to answer calls.

    Attributes:
        route: what a record says of a call that it answered.
        dspy_version: whose behaviour it has; "" where there is no DSPy.
    """

    @property
    def route(self) -> str: ...

    @property
    def dspy_version(self) -> str: ...

    def refuses(self, attempt: Attempt) -> str | None:
        """Why the next answerer must answer instead, as the end of a sentence; None where this one can.

        Raises ConfigError.
        """
        ...

    async def ask(self, attempt: Attempt) -> Outputs:
        """The outputs, with the profile `attempt.lm`. Notes program and usage in `attempt`, also where it raises."""
        ...

    async def close(self) -> None:
        """Close what is open."""
        ...
