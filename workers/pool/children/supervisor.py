"""The children of a pool: started, watched, restarted with back-off, replaced when they grow or age, never orphaned.

A child that dies is noticed at once, and its calls are answered at once. One that restarts too often does not restart for
ever: after `restart.max` deaths within `restart.within` seconds the pool is failed. Only deaths in which no call ran count:
the others are those of calls, whose attempts are counted, and of programs, which have breakers. A failed pool goes on
pulling and answers every call with WorkerLost (so that retries, fallbacks and dead letters take over, instead of calls that
hang), and tries again after `restart.within` seconds, with children that import everything anew.

That is as far as it goes up: other pools of the process, and the engine, go on. What ends the process is a bug of dspex alone,
or somebody else; then whoever started it starts it again, an engine with back-off (`engine.hosting.pools`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import telemetry
from dspex.bus.errors import CallError, ConfigError, DspexError, WorkerLost
from dspex.bus.tasks import Tasks, first
from dspex.workers.config import OVER, PoolConfig
from dspex.workers.frames import HelloFrame
from dspex.workers.pool.children.child_process import Child
from dspex.workers.pool.children.nursery import Nursery
from dspex.workers.pool.children.seat import Seat
from dspex.workers.pool.slots import Slots
from dspex.workers.processes.usage import taken

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

START_TIMEOUT = 120.0  # seconds until a child must have said hello: importing a user's programs can be slow
WATCH_EVERY = 1.0  # seconds between two checks of memory and age
BACKOFF, BACKOFF_CAP = 0.2, 10.0


class Supervisor:
    """Keeps `size` children alive.

    Args:
        failed: called with the error when a task of the supervisor itself dies, which is a bug of dspex.

    Attributes:
        size: how many children there shall be.
        slots: of the children, for those who have calls to run.
        restarts: how often a child was started in place of a dead one.
        failed: whether the restart intensity was exceeded.
        hello: what the last child said when it was ready: versions, programs found and failed.
    """

    def __init__(self, config: PoolConfig, failed: Callable[[BaseException], None]) -> None:
        self.config, self.size = config, config.size
        self.children: list[Child] = []
        self.slots = Slots(self.children, config.size, config.slots)
        self.restarts = 0
        self.failed = False
        self.hello = HelloFrame()
        self._nursery = Nursery(config)
        self._seats: list[Seat] = []
        self._deaths: deque[float] = deque()
        self._tasks = Tasks(f"supervisor of {config.name}", lambda name, error: failed(error))
        self._fatal: DspexError | None = None
        self._settled = asyncio.Event()
        self._started = False

    # -- life ------------------------------------------------------------------------------------------------------
    async def start(self, size: int) -> None:
        """Start `size` children and wait until each is ready. Raises ConfigError if they cannot run at all."""
        await self.resize(size)
        if self._fatal:
            await self.stop()
            raise self._fatal
        self._started = True

    async def stop(self) -> None:
        """End every child: asked first, then killed."""
        self.slots.refuse(self._stopped)
        await self._tasks.stop()
        for seat in self._seats:
            seat.renewal(self._stopped())
        await asyncio.gather(*(child.stop() for child in self.children))
        self.children.clear()
        await self._nursery.stop()

    async def resize(self, size: int) -> None:
        """Have `size` children from now on. Returns when so many are ready, or the pool has failed, or some cannot be started.

        Those that are too many take no more calls, and end when they have none.
        """
        self.size, self.slots.total = size, size * self.config.slots
        self._settled.set()
        for seat in self._seats[size:]:
            seat.wanted = False
            seat.told.set()
            if seat.child is not None:
                self._retire(seat.child)
                seat.child = None
        del self._seats[size:]
        for index in range(len(self._seats), size):
            self._seats.append(seat := Seat(index))
            self._tasks.start(self._keep(seat), f"child {index}")
        while self.ready < self.size and not (self.failed or self._fatal or any(seat.vain for seat in self._seats)):
            self._settled.clear()
            await self._settled.wait()

    async def restart(self) -> None:
        """Replace every child, one after the other, by one that has imported everything anew. No call fails for it.

        Raises WorkerLost where a successor does not start: who has no successor goes on.
        """
        self._nursery.renew()
        for seat in list(self._seats):
            if not seat.wanted:  # the pool was made smaller meanwhile
                continue
            seat.renewed = asyncio.get_running_loop().create_future()
            seat.renew("restart")
            await seat.renewed

    @property
    def in_groups(self) -> bool:
        """Whether the system ends a child, with what that has started, that has too much memory."""
        return self._nursery.groups.memory

    @property
    def generation(self) -> int | None:
        """Which imports all children have, those included that end when they have no call; None while they differ."""
        now = self._nursery.generation
        return now if all(child.generation == now for child in self.children) else None

    @property
    def ready(self) -> int:
        """Children that take calls."""
        return len(self.slots.usable)

    async def _keep(self, seat: Seat) -> None:
        """Keep a child in this place for as long as one is wanted there."""
        tries = 0
        while seat.wanted:
            if self.config.gpus and seat.child is not None:  # a successor needs the devices that it has
                await self._vacate(seat, seat.child)
            if (child := await self._start(seat)) is None:
                tries += 1
                seat.vain = tries > self.config.restart_max
                await self._pause(seat, tries - 1, died=False)
                continue
            if tries and self.failed:
                self._well()
            tries, seat.vain = 0, False
            if seat.wanted:
                await first(child.gone.wait(), seat.told.wait())
            if child.gone.is_set():
                await self._pause(seat, tries, died=True, by_calls=child.ended_busy)
        if seat.child is not None:
            self._retire(seat.child)
        seat.renewal()

    async def _start(self, seat: Seat) -> Child | None:
        """The child in this place when it is ready, in place of the one before; None where it died before that."""
        child: Child | None = None
        seat.told.clear()
        generation = self._nursery.generation
        try:
            child = await self._nursery.child(seat.index)
            self.children.append(child)
            hello = await child.ready(START_TIMEOUT)
        except (DspexError, OSError) as error:
            await self._not_started(seat, child, error)
            return None
        self.hello = hello
        if seat.child is not None:
            log.info("worker replaced", pool=self.config.name, pid=seat.child.pid, by=child.pid, why=seat.why)
            self._retire(seat.child)
        seat.child = child
        if generation == self._nursery.generation:  # else it was asked to be another one meanwhile
            seat.why = ""
            seat.told.clear()
            seat.renewal()
        telemetry.emit("worker_started", pool=self.config.name, worker=child.pid)
        log.info("worker ready", pool=self.config.name, pid=child.pid, dspy_version=hello.dspy_version)
        self._tasks.start(self._guard(child, seat), f"guard {child.pid}")
        self._settled.set()
        self.slots.hand_out()
        return child

    async def _not_started(self, seat: Seat, child: Child | None, error: DspexError | OSError) -> None:
        said = error.message if isinstance(error, DspexError) else str(error)
        log.error("worker did not start", pool=self.config.name, error=said)
        if isinstance(error, ConfigError) and not self._started:
            self._fatal = error
        if child is not None:
            await child.stop()
            self.children.remove(child)
        self._settled.set()
        seat.renewal(WorkerLost(f"a worker of pool {self.config.name} did not start: {said}", node=self.config.name))

    async def _pause(self, seat: Seat, tries: int, *, died: bool, by_calls: bool = False) -> None:
        """Wait before the next start. A pool in which too many died is failed for a while; one that cannot start as many as
        there shall be, because the system has no more memory or no more GPUs, goes on with those that it has. `by_calls`:
        it ran some when it died.
        """
        pause = min(BACKOFF * 2 ** min(tries, 10), BACKOFF_CAP) * random.uniform(0.8, 1.2)
        if not died and self.ready:
            self._settled.set()
            await asyncio.sleep(pause)
            return
        self.restarts += 1
        if not by_calls:
            self._deaths.append(now := time.monotonic())
            while self._deaths[0] < now - self.config.restart_within:
                self._deaths.popleft()
        if by_calls or len(self._deaths) <= self.config.restart_max:
            await asyncio.sleep(pause)
            return
        if not self.failed:
            self.failed = True
            log.error("pool failed", pool=self.config.name, deaths=len(self._deaths), within=self.config.restart_within)
            self._nursery.renew()
        self._settled.set()
        self.slots.refuse(self._given_up if died else self._not_begun)
        if not died:  # what it lacks may be there at any time: the first that starts ends this
            await asyncio.sleep(pause)
            return
        await asyncio.sleep(self.config.restart_within)
        self._well()

    def _well(self) -> None:
        self.failed = False
        self.slots.allow()
        self._deaths.clear()

    # -- replacing -------------------------------------------------------------------------------------------------
    async def _guard(self, child: Child, seat: Seat) -> None:
        """Until it is gone: end it where it has much more memory than it is allowed, and ask for a successor in time."""
        while not child.gone.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_EVERY):
                    await child.gone.wait()
            allowed, has = self.config.memory, taken(child.pid) if self.config.memory else 0
            if allowed and has > allowed * OVER:
                log.error("worker ended over its memory", pool=self.config.name, pid=child.pid, has=has, allowed=allowed)
                child.kill(f"it has taken {has >> 20} MiB, and the pool's memory is {allowed >> 20} MiB")
                await child.gone.wait()
            elif not child.retiring and (why := self._worn(child, has)):
                seat.renew(why)
        if child.retiring:
            return
        log.warning("worker died", pool=self.config.name, pid=child.pid, code=child.returncode)
        telemetry.emit("worker_lost", pool=self.config.name, worker=child.pid, why="its process ended")
        if seat.child is child:
            seat.child = None
        await child.stop()
        self.children.remove(child)

    def _worn(self, child: Child, has: int) -> str | None:
        c = self.config
        if c.recycle_calls and child.calls >= c.recycle_calls:
            return f"{child.calls} calls"
        if c.recycle_age and child.age >= c.recycle_age:
            return f"{child.age:.0f} s old"
        if c.memory and has > c.memory:
            return f"{has >> 20} MiB resident, allowed {c.memory >> 20}"
        return None

    async def _vacate(self, seat: Seat, child: Child) -> None:
        log.info("worker ends, to be replaced", pool=self.config.name, pid=child.pid, why=seat.why)
        child.retire()
        await self._finish(child)
        seat.child = None

    def _retire(self, child: Child) -> None:
        """Give it no more calls, let it finish those it has, and stop it."""
        child.retire()
        self._tasks.start(self._finish(child), f"retire {child.pid}")

    async def _finish(self, child: Child) -> None:
        await child.idle()  # each of its calls has a timeout
        await child.stop()
        self.children.remove(child)

    # -- refusing --------------------------------------------------------------------------------------------------
    def _stopped(self) -> CallError:
        return WorkerLost(f"pool {self.config.name} was stopped", retry_after=1.0)

    def _not_begun(self) -> CallError:
        said = f"pool {self.config.name} failed: no worker of it can be started; its log says why"
        return WorkerLost(said, retry_after=BACKOFF_CAP, node=self.config.name)

    def _given_up(self) -> CallError:
        within = self.config.restart_within
        said = f"pool {self.config.name} failed: its workers died {len(self._deaths)} times within {within:.0f} s"
        return WorkerLost(said, retry_after=within, node=self.config.name)
