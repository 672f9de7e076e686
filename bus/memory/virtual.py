"""An asyncio loop whose clock stands still until a test moves it, so that tests with timers are exact and take no time.

It is driven from plain, synchronous code: `settle()` runs all that can run now, `advance(5)` lets five seconds pass. It
reads no socket and no wall clock, so nothing from outside the process can reach it: with the in-memory bus, two runs of the
same program are the same, step by step.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any, TypeVar

T = TypeVar("T")
ReadyKey = tuple[selectors.SelectorKey, int]

LIVELOCK = 100_000  # iterations without coming to rest


class Stall(selectors.SelectSelector):
    """Where a loop would sleep, this one reports how long it would, and returns at once.

    It is the only place that sees both "nothing is ready" and "the next timer is due in n seconds" without reaching into
    asyncio's private parts.
    """

    def __init__(self, at_rest: Callable[[float | None], None]) -> None:
        super().__init__()
        self._at_rest = at_rest
        self.iterations = 0

    def select(self, timeout: float | None = None) -> list[ReadyKey]:
        self.iterations += 1
        if timeout is None or timeout > 0:
            self._at_rest(timeout)
        elif self.iterations > LIVELOCK:
            raise RuntimeError(f"no rest after {LIVELOCK} iterations at the same time: a task goes round in circles")
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a virtual clock, which starts at 0 and is moved by `advance` alone.

    Args:
        stall: what it asks for input, and tells when it is at rest.
    """

    def __init__(self, stall: type[Stall] = Stall) -> None:
        self._nanoseconds = 0  # whole ones: a sum of floats would drift away from the timers' own sums
        self._until: float = 0  # up to here the clock goes on by itself when all is at rest
        self._next: float | None = None
        self._stall = stall(self._at_rest)
        super().__init__(self._stall)

    def time(self) -> float:
        """Seconds since the loop was made, as virtual time."""
        return self._nanoseconds / 1e9

    def _at_rest(self, timeout: float | None) -> None:
        self._next = timeout
        if not self._jump(self._until):
            self.stop()

    def _jump(self, end: float) -> bool:
        """Go to the next timer, if it is due before `end` (nanoseconds); whether there was one."""
        if self._next is None or (at := self._nanoseconds + max(1, round(self._next * 1e9))) > end:
            return False
        self._nanoseconds, self._stall.iterations = at, 0
        return True

    def settle(self) -> None:
        """Run until nothing is ready. Time stands still. Raises RuntimeError when that does not come to an end."""
        self._stall.iterations = 0
        self.run_forever()

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass: from timer to timer in their order, settling at each."""
        end = self._nanoseconds + round(seconds * 1e9)
        self._pass(end)
        self._nanoseconds = end
        self.settle()

    def _pass(self, end: float, task: asyncio.Task[Any] | None = None) -> None:
        """Go from timer to timer, as long as they are due before `end` (nanoseconds) and `task` is not done."""
        if task is not None:
            task.add_done_callback(lambda _: self.stop())
        self._until = end
        try:
            self.settle()
        finally:
            self._until = 0

    def run(self, main: Coroutine[Any, Any, T], *, advance: bool = False) -> T:
        """Run a coroutine to its end. With `advance` the clock jumps on when nothing else can happen.

        Raises RuntimeError if the coroutine waits for what cannot come.
        """
        task = self.create_task(main)
        self.settle()
        if advance and not task.done():
            self._pass(inf, task)
        if task.done():
            return task.result()
        why = "for time to pass" if self._next is not None else "for something that nobody will do"
        task.cancel()
        self.settle()
        raise RuntimeError(f"{getattr(main, '__qualname__', 'it')} waits {why}")

    def close(self) -> None:
        """Cancel what still runs, and close."""
        if not self.is_closed():
            for task in asyncio.all_tasks(self):
                task.cancel()
            self.settle()
            self.run(self.shutdown_asyncgens())
        super().close()
