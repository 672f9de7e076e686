"""A second request where an answer takes longer than usual: the first answer counts, and the other request is ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

from dspex.bus.errors import DspexError
from dspex.bus.records import HEDGED, Outputs, Tried, Usage
from dspex.bus.tasks import Tasks
from dspex.workers.answerers.attempt import Attempt
from dspex.workers.config import Profile

SHARE: Final = 0.05  # of the calls that may hedge: where everything is slow, twice the requests would make it slower
SAVED: Final = 5.0  # second requests that a profile may have saved up while it was quick


class Hedging:
    """Second requests of one process."""

    def __init__(self) -> None:
        self._left: dict[str, float] = {}  # second requests that may be made, by profile

    async def ask(
        self, ask: Callable[[Attempt], Coroutine[Any, Any, Outputs]], attempt: Attempt, after: float, profile: Profile
    ) -> Outputs:
        """The outputs of `ask(attempt)`, or of a second one that begins `after` seconds later, whichever come first.

        Raises the error of the first where neither has any.
        """
        self._left[attempt.lm] = min(SAVED, self._left.get(attempt.lm, 1.0) + SHARE)
        tasks = Tasks("hedge", lambda name, error: None)  # what it raised is raised below, or of no interest
        asking = {tasks.start(ask(attempt), "first"): attempt}
        (first,) = asking
        began = time.perf_counter()
        try:
            await asyncio.wait(asking, timeout=after)
            may = not first.done() and self._left[attempt.lm] >= 1.0 and await _has_room(attempt)
            if may and not first.done() and self._left[attempt.lm] >= 1.0:
                self._left[attempt.lm] -= 1.0
                twin = replace(attempt, usage=None, refusals=[], routing=[])
                twin.requests.exchanges = attempt.requests.exchanges.anew()
                asking[tasks.start(ask(twin), "second")] = twin
            winner = await _first_good(asking) or first
        finally:
            await tasks.stop()
        if len(asking) > 1:
            attempt.routing.append(Tried(attempt.lm, HEDGED, round((time.perf_counter() - began) * 1000, 3)))
            _settle(attempt, asking[winner], [other for task, other in asking.items() if task is not winner], profile)
        return winner.result()


async def _has_room(attempt: Attempt) -> bool:
    """Whether the limits let its profile be asked a second time meanwhile: then that is reserved."""
    try:
        if attempt.further is not None:
            await attempt.further(attempt.lm, None, True)
    except DspexError:
        return False
    return True


async def _first_good(asking: dict[asyncio.Task[Outputs], Attempt]) -> asyncio.Task[Outputs] | None:
    """The first that gives outputs; None where none does."""
    pending = set(asking)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled() and task.exception() is None:
                return task
    return None


def _settle(attempt: Attempt, winner: Attempt, others: list[Attempt], profile: Profile) -> None:
    """Note in `attempt` what all have cost. Of a request that was ended nobody says that: it has read what the other has."""
    used = winner.usage or Usage()
    attempt.requests.exchanges = winner.requests.exchanges
    for other in others:
        if other.usage is None or not other.usage.requests:
            other.spend(Usage(input_tokens=used.input_tokens, requests=1), profile)
    total = sum((other.usage for other in others if other.usage), used)
    attempt.program, attempt.warning, attempt.usage = winner.program, winner.warning, replace(total, finish=used.finish)
