"""Background tasks with one owner: started by name, cancelled together, and never failing in silence.

asyncio alone leaves three gaps. The loop holds tasks weakly, so that one nobody refers to may vanish. An exception is only
reported when the task is collected. And code that runs in a task may swallow a cancellation (`asyncio.wait_for` does before
Python 3.12), so that whoever cancels once and then waits may wait for ever. `asyncio.TaskGroup` closes the first two, but ends
all tasks when one fails, and only within one block; the owners here live as long as an object does.

What one coroutine waits for at once needs no owner: `asyncio.gather` and `asyncio.TaskGroup` are right there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, Final, TypeVar

from dspex.bus.errors import Unreachable

T = TypeVar("T")

PATIENCE: Final = 30.0  # seconds that a process which starts waits for its server
CANCEL_AGAIN: Final = 10.0  # seconds until a task that still runs is cancelled once more; longer than any clean-up takes

_running: set[asyncio.Task[Any]] = set()  # the strong references that the loop does not keep


async def patiently(do: Callable[[], Awaitable[T]], waiting: Callable[[str], None]) -> T:
    """What `do` gives, tried again for `PATIENCE` seconds while the bus is not reachable: a cluster that has just begun answers
    nobody until it has a leader, and who starts with it need not end for that.

    `waiting`: told why, once. Raises what `do` raises, Unreachable the last time.
    """
    clock, said = asyncio.get_running_loop().time, ""
    end = clock() + PATIENCE
    while True:
        try:
            return await do()
        except Unreachable as e:
            if clock() >= end:
                raise
            if not said:
                waiting(said := e.message)
        await asyncio.sleep(1.0)


class Tasks:
    """The background tasks of one owner. It may start more after `stop`.

    Args:
        owner: the first part of the tasks' names.
        failed: called with the name and the exception of each task that ends with one. Without it, `wait` raises the first
            failure, and `stop` does if nobody waited.
    """

    def __init__(self, owner: str, failed: Callable[[str, BaseException], None] | None = None) -> None:
        self.owner = owner
        self.failure: BaseException | None = None  # of the task that failed first
        self._report = failed
        self._reported = failed is not None
        self._failed = asyncio.Event()
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in the order of their start; a set has another one in every run

    def __len__(self) -> int:
        """How many have not ended."""
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `work` in the background."""
        task = asyncio.create_task(work, name=f"{self.owner}.{name}")
        self._tasks[task] = None
        _running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        _running.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        self.failure = self.failure or error
        self._failed.set()
        if self._report is not None:
            self._report(task.get_name().removeprefix(f"{self.owner}."), error)

    async def wait(self) -> None:
        """Wait until a task fails, and raise what it raised."""
        while self.failure is None:
            await self._failed.wait()
        self._reported = True
        raise self.failure

    async def finish(self, timeout: float) -> None:
        """Wait until all have ended by themselves, at most `timeout` seconds. Raises nothing."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)

    async def stop(self) -> None:
        """Cancel all tasks in the order of their start, and wait until they have ended. A task may stop its own owner: it is
        left out.

        Raises the first failure, if nobody has heard of it.
        """
        while others := [task for task in self._tasks if task is not asyncio.current_task()]:
            await cancel(others)
        if self.failure is not None and not self._reported:
            self._reported = True
            raise self.failure


async def cancel(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel tasks in their order, and wait until they have ended, whatever they end with. One that swallows it is cancelled
    again.
    """
    pending = list(tasks)
    while pending:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=CANCEL_AGAIN)
        pending = [task for task in pending if not task.done()]
    for task in tasks:
        if not task.cancelled():
            task.exception()  # else asyncio reports that nobody asked for it


async def first(*waits: Awaitable[Any]) -> int:
    """Wait until one has ended, and cancel the others. The index of the one that ended, the lowest if there are several.

    Raises what it raised. A future that is passed in stays the caller's: it is not cancelled.
    """
    futures = [asyncio.ensure_future(w) for w in waits]
    ours = [f for f, w in zip(futures, waits) if f is not w]
    try:
        done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel(ours)
    ended = [f for f in futures if f in done]
    for future in ended:
        future.result()
    return futures.index(ended[0])
