"""The children of a pool: started, watched, restarted with back-off, replaced when they grow or age, never orphaned.

A child that dies is noticed at once, and its calls are answered at once. One that restarts too often does not restart for
ever: after `restart.max` deaths within `restart.within` seconds the pool is failed. A failed pool goes on pulling and
answers every call with WorkerLost (so that retries, fallbacks and dead letters take over, instead of calls that hang), and
tries again with fresh children after `restart.within` seconds.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import psutil
import structlog

from dspex.bus import errors
from dspex.bus.errors import ConfigError, DspexError, WorkerLost
from dspex.workers.config import PoolConfig
from dspex.workers.frames import Frame
from dspex.workers.pool.child_process import Child

log: Any = structlog.get_logger("dspex.workers")

START_TIMEOUT = 120.0  # seconds until a child must have said hello: importing a user's programs can be slow
WATCH_EVERY = 1.0  # seconds between two looks at size and age
RETIRE_WITHIN = 30.0  # seconds that a child to be replaced has for the calls it runs
BACKOFF, BACKOFF_CAP = 0.2, 10.0


class Supervisor:
    """Keeps `size` children alive and hands out their slots.

    Attributes:
        restarts: how often a child was started in place of a dead one.
        failed: whether the restart intensity was exceeded.
        hello: what the last child said when it was ready: versions, programs found and failed.
    """

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self.children: list[Child] = []
        self.restarts = 0
        self.failed = False
        self.hello: Frame = {}
        self.freed: Callable[[], None] = lambda: None  # called when there may be a free slot again
        self.failed_with: Callable[[BaseException], None] = lambda error: None  # called when a task of ours dies
        self._deaths: deque[float] = deque()
        self._waiting: deque[asyncio.Future[Child]] = deque()
        self._keepers: list[asyncio.Task[None]] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._fatal: DspexError | None = None
        self._settled = asyncio.Event()

    # -- life ------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Start the children and wait until each is ready. Raises ConfigError if they cannot run at all."""
        self._keepers = [asyncio.create_task(self._keep(i)) for i in range(self.config.size)]
        for keeper in self._keepers:
            keeper.add_done_callback(self._ended)
        while len(self._ready()) < self.config.size and not self.failed:
            if self._fatal:
                await self.stop()
                raise self._fatal
            self._settled.clear()
            await self._settled.wait()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed_with(error)

    async def stop(self) -> None:
        """End every child: asked first, then killed."""
        self._stopping = True
        for task in (*self._keepers, *self._retiring):
            task.cancel()
        await asyncio.gather(*self._keepers, *self._retiring, return_exceptions=True)
        await asyncio.gather(*(child.stop() for child in self.children))
        self.children.clear()
        self._refuse()

    async def _keep(self, index: int) -> None:
        """Keep place `index` filled for as long as the pool lives."""
        tries = 0
        while True:
            child = await self._start(index)
            if child is not None:
                tries = 0
                await self._watch(child)
                if child.retiring:
                    continue
                log.warning("worker died", pool=self.config.name, pid=child.pid, code=child.returncode)
            self.restarts += 1
            await self._pause(tries)
            tries += 1

    async def _start(self, index: int) -> Child | None:
        """A child that said hello; None if it died before."""
        child = await Child.start(self.config, index)
        self.children.append(child)
        try:
            hello = await child.ready(START_TIMEOUT)
        except DspexError as error:
            log.error("worker did not start", pool=self.config.name, error=error.message)
            if isinstance(error, ConfigError):
                self._fatal = error
            await child.stop()
            self.children.remove(child)
            self._settled.set()
            return None
        self.hello = hello
        log.info("worker ready", pool=self.config.name, pid=child.pid, dspy_version=hello.get("dspy_version"))
        self._settled.set()
        self._hand_out()
        return child

    async def _watch(self, child: Child) -> None:
        """Until the child is gone, or is to be replaced."""
        gone = asyncio.ensure_future(child.gone.wait())
        try:
            while not gone.done():
                await asyncio.wait([gone], timeout=WATCH_EVERY)
                if not gone.done() and (why := self._worn(child)):
                    log.info("worker replaced", pool=self.config.name, pid=child.pid, why=why)
                    self._retire(child)
                    return
        finally:
            gone.cancel()
        await child.stop()
        self.children.remove(child)

    async def _pause(self, tries: int) -> None:
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths and self._deaths[0] < now - self.config.restart_within:
            self._deaths.popleft()
        if len(self._deaths) <= self.config.restart_max:
            pause = min(BACKOFF * 2**tries, BACKOFF_CAP)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            return
        if not self.failed:
            self.failed = True
            log.error("pool failed", pool=self.config.name, deaths=len(self._deaths), within=self.config.restart_within)
        self._settled.set()
        self._refuse()
        await asyncio.sleep(self.config.restart_within)
        self.failed = False
        self._deaths.clear()

    # -- replacing -------------------------------------------------------------------------------------------------
    def _worn(self, child: Child) -> str | None:
        c = self.config
        if c.recycle_calls and child.calls >= c.recycle_calls:
            return f"{child.calls} calls"
        if c.recycle_age and child.age >= c.recycle_age:
            return f"{child.age:.0f} s old"
        if c.memory and (rss := resident(child.pid)) > c.memory:
            return f"{rss >> 20} MiB resident, allowed {c.memory >> 20}"
        return None

    def _retire(self, child: Child) -> None:
        """Give it no more calls, let it finish those it has, and stop it. Its place is filled at once."""
        child.retiring = True
        task = asyncio.create_task(self._finish(child))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        task.add_done_callback(self._ended)

    async def _finish(self, child: Child) -> None:
        try:
            async with asyncio.timeout(RETIRE_WITHIN):
                await child.idle()
        except TimeoutError:
            log.warning("worker stopped with calls running", pool=self.config.name, pid=child.pid, calls=child.busy)
        await child.stop()
        self.children.remove(child)

    def kill(self, child: Child) -> None:
        """End a child that does not react. Its calls end in WorkerLost; its place is filled again."""
        child.kill()

    # -- slots -----------------------------------------------------------------------------------------------------
    def _ready(self) -> list[Child]:
        return [c for c in self.children if c.hello is not None and not c.retiring and not c.gone.is_set()]

    @property
    def ready(self) -> int:
        """Children that take calls."""
        return len(self._ready())

    @property
    def capacity(self) -> int:
        """Slots of the children that take calls."""
        return self.ready * self.config.slots

    @property
    def busy(self) -> int:
        """Calls that run, those of retiring children too."""
        return sum(c.busy for c in self.children)

    @property
    def free(self) -> int:
        """Slots that could take a call now. A failed pool has as many as it would have: it answers at once."""
        if self.failed:
            return self.config.size * self.config.slots
        return sum(self.config.slots - c.busy for c in self._ready()) - len(self._waiting)

    async def acquire(self) -> Child:
        """A child with one slot taken; waits for one. Raises WorkerLost in a failed or stopped pool."""
        if self.failed or self._stopping:
            raise self._lost()
        if (child := self._pick()) is None:
            future: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            try:
                return await future
            except asyncio.CancelledError:
                if future in self._waiting:
                    self._waiting.remove(future)
                elif future.done() and not future.cancelled() and future.exception() is None:
                    self.release(future.result())
                raise
        child.busy += 1
        return child

    def release(self, child: Child) -> None:
        """Give the slot back."""
        child.busy -= 1
        child.calls += 1
        self._hand_out()
        self.freed()

    def _pick(self) -> Child | None:
        open_ = [c for c in self._ready() if c.busy < self.config.slots]
        return min(open_, key=lambda c: c.busy, default=None)

    def _hand_out(self) -> None:
        while self._waiting and (child := self._pick()) is not None:
            future = self._waiting.popleft()
            if not future.done():
                child.busy += 1
                future.set_result(child)
        self.freed()

    def _refuse(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(self._lost())

    def _lost(self) -> errors.CallError:
        if self._stopping:
            return WorkerLost(f"pool {self.config.name} was stopped", retry_after=1.0)
        return WorkerLost(
            f"pool {self.config.name} failed: its workers died {len(self._deaths)} times within "
            f"{self.config.restart_within:.0f} s",
            retry_after=self.config.restart_within,
            node=self.config.name,
        )


def resident(pid: int) -> int:
    """Resident memory of a process in bytes; 0 when it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
