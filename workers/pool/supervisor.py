"""The children of a pool: started, watched, restarted with back-off, replaced when they grow or age, never orphaned.

A child that dies is noticed at once, and its calls are answered at once. One that restarts too often does not restart for
ever: after `restart.max` deaths within `restart.within` seconds the pool is failed. A failed pool goes on pulling and
answers every call with WorkerLost (so that retries, fallbacks and dead letters take over, instead of calls that hang), and
tries again with fresh children after `restart.within` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import psutil
import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import telemetry
from dspex.bus.errors import CallError, ConfigError, DspexError, WorkerLost
from dspex.bus.tasks import Tasks
from dspex.workers.config import OVER, PoolConfig
from dspex.workers.frames import HelloFrame
from dspex.workers.pool.child_process import Child
from dspex.workers.pool.slots import Slots

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

START_TIMEOUT = 120.0  # seconds until a child must have said hello: importing a user's programs can be slow
WATCH_EVERY = 1.0  # seconds between two checks of memory and age
RETIRE_WITHIN = 30.0  # seconds that a child to be replaced has for the calls it runs
BACKOFF, BACKOFF_CAP = 0.2, 10.0


class Supervisor:
    """Keeps `size` children alive.

    Args:
        failed: called with the error when a task of the supervisor itself dies, which is a bug of dspex.

    Attributes:
        slots: of the children, for those who have calls to run.
        restarts: how often a child was started in place of a dead one.
        failed: whether the restart intensity was exceeded.
        hello: what the last child said when it was ready: versions, programs found and failed.
    """

    def __init__(self, config: PoolConfig, failed: Callable[[BaseException], None]) -> None:
        self.config = config
        self.children: list[Child] = []
        self.slots = Slots(self.children, config.size, config.slots)
        self.restarts = 0
        self.failed = False
        self.hello = HelloFrame()
        self._deaths: deque[float] = deque()
        self._tasks = Tasks(f"supervisor of {config.name}", lambda name, error: failed(error))
        self._fatal: DspexError | None = None
        self._settled = asyncio.Event()

    # -- life ------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Start the children and wait until each is ready. Raises ConfigError if they cannot run at all."""
        for index in range(self.config.size):
            self._tasks.start(self._keep(index), f"child {index}")
        while self.ready < self.config.size and not self.failed:
            if self._fatal:
                await self.stop()
                raise self._fatal
            self._settled.clear()
            await self._settled.wait()

    async def stop(self) -> None:
        """End every child: asked first, then killed."""
        self.slots.refuse(self._stopped)
        await self._tasks.stop()
        await asyncio.gather(*(child.stop() for child in self.children))
        self.children.clear()

    @property
    def ready(self) -> int:
        """Children that take calls."""
        return len(self.slots.usable)

    async def _keep(self, index: int) -> None:
        """Keep child number `index` alive for as long as the pool lives."""
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
        telemetry.emit("worker_started", pool=self.config.name, worker=child.pid)
        log.info("worker ready", pool=self.config.name, pid=child.pid, dspy_version=hello.dspy_version)
        self._settled.set()
        self.slots.hand_out()
        return child

    async def _watch(self, child: Child) -> None:
        """Until the child is gone, or is to be replaced."""
        while not child.gone.is_set():
            await self._look_after(child, child.gone.wait())
            if not child.gone.is_set() and (why := self._worn(child)):
                log.info("worker replaced", pool=self.config.name, pid=child.pid, why=why)
                self._retire(child)
                return
        telemetry.emit("worker_lost", pool=self.config.name, worker=child.pid, why="its process ended")
        await child.stop()
        self.children.remove(child)

    async def _look_after(self, child: Child, wait: Coroutine[Any, Any, object]) -> None:
        """Wait, for `WATCH_EVERY` seconds at most; then end a child that has much more memory than it is allowed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WATCH_EVERY):
                await wait
        allowed, has = self.config.memory, resident(child.pid)
        if allowed and has > allowed * OVER:
            log.error("worker ended over its memory", pool=self.config.name, pid=child.pid, has=has, allowed=allowed)
            child.kill()
            await child.gone.wait()

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
        self.slots.refuse(self._given_up)
        await asyncio.sleep(self.config.restart_within)
        self.failed = False
        self.slots.allow()
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
        """Give it no more calls, let it finish those it has, and stop it. Another child is started at once."""
        child.retiring = True
        self._tasks.start(self._finish(child), f"retire {child.pid}")

    async def _finish(self, child: Child) -> None:
        until = time.monotonic() + RETIRE_WITHIN
        while child.open and time.monotonic() < until:
            await self._look_after(child, child.idle())
        if child.open:
            log.warning("worker stopped with calls running", pool=self.config.name, pid=child.pid, calls=child.busy)
        await child.stop()
        self.children.remove(child)

    # -- refusing --------------------------------------------------------------------------------------------------
    def _stopped(self) -> CallError:
        return WorkerLost(f"pool {self.config.name} was stopped", retry_after=1.0)

    def _given_up(self) -> CallError:
        return WorkerLost(
            f"pool {self.config.name} failed: its workers died {len(self._deaths)} times within "
            f"{self.config.restart_within:.0f} s",
            retry_after=self.config.restart_within,
            node=self.config.name,
        )


def resident(pid: int) -> int:
    """Resident memory of a process in bytes; 0 when it has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
