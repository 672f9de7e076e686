"""Where the children of a pool come from: a zygote that has imported everything once, and its successors."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Mapping

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus.errors import WorkerLost
from dspex.bus.tasks import Tasks
from dspex.workers.config import PoolConfig
from dspex.workers.frames import StartFrame
from dspex.workers.pool.children.child_process import Child
from dspex.workers.pool.children.groups import WorkerGroups
from dspex.workers.pool.children.zygote_process import Spawned, Stale, UnfitToFork, ZygoteProcess
from dspex.workers.processes.devices import GpuLease, lease

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

MOST_CHANGES = 5  # of the programs, while one child is started


class Nursery:
    """Starts the children of one pool, one at a time.

    They are forked, so that each is ready at once and they share memory, unless the pool says otherwise (`zygote = false`), has
    GPUs, whose drivers do not work in a fork, or has programs that leave something behind where they are imported.

    Attributes:
        generation: how often it was renewed.
        groups: what the system holds the children to.
    """

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._fork = config.forks and sys.platform == "linux"
        self.groups = WorkerGroups(config)
        self.generation = 0
        self._zygote: ZygoteProcess | None = None
        self._old: list[ZygoteProcess] = []
        self._one_at_a_time = asyncio.Lock()
        self._tasks = Tasks(f"zygotes of {config.name}")

    async def child(self, index: int) -> Child:
        """A new child, which is not ready yet. `index`: of its place in the pool.

        Raises WorkerLost; ConfigError where no GPU is free (DX140), or no process can be held to its share of the CPU (DX141).
        """
        gpus = self._lease()
        ours, theirs = socket.socketpair()
        pipes = {name: os.pipe() for name in ("stdout", "stderr")}
        handed = [theirs.fileno(), *(write for _, write in pipes.values())]
        try:
            async with self._one_at_a_time:
                spawned = await self._spawn(gpus.env, [*handed, *gpus.descriptors])
                generation = self.generation
            self.groups.hold(spawned)
        except BaseException:
            ours.close()
            for read, _ in pipes.values():
                os.close(read)
            raise
        finally:
            gpus.close()
            theirs.close()
            for descriptor in handed[1:]:
                os.close(descriptor)
        child = Child(self._config.name, spawned, generation)
        start = StartFrame(spawned.zygote, self._config.for_child(), index)
        await child.begin(ours, {name: read for name, (read, _) in pipes.items()}, start)
        return child

    def _lease(self) -> GpuLease:
        c = self._config
        if not c.gpus:
            return GpuLease()
        return lease(c.devices, c.gpus, f"a worker of pool {c.name} of {c.app} (its parent is process {os.getpid()})")

    async def _spawn(self, env: Mapping[str, str], handed: list[int]) -> Spawned:
        for _ in range(MOST_CHANGES):
            try:
                return await (await self._alive()).birth(env, handed)
            except Stale as changed:
                log.info("programs have changed, importing them anew", pool=self._config.name, file=str(changed))
                self.renew()
        raise WorkerLost(f"the programs of pool {self._config.name} change while they are imported", node=self._config.name)

    async def _alive(self) -> ZygoteProcess:
        if self._zygote is None or not self._zygote.lives:
            try:
                self._zygote = await ZygoteProcess.start(self._config, fork=self._fork)
            except UnfitToFork as why:
                log.warning(
                    "each worker imports the programs by itself: they cannot be imported before a fork",
                    pool=self._config.name,
                    why=str(why),
                    fix=f"pools.{self._config.name}.zygote = false, or do it in the program's __init__",
                )
                self._fork = False
                self._zygote = await ZygoteProcess.start(self._config, fork=False)
        return self._zygote

    def renew(self) -> None:
        """Have all that is imported once imported anew, for the children that come now. Those that there are go on."""
        self.generation += 1
        if self._zygote is not None:
            self._tasks.start(self._outlive(self._zygote), "old")
            self._zygote = None
        self.groups.remove()

    async def _outlive(self, zygote: ZygoteProcess) -> None:
        """Stop a zygote when its last child has ended."""
        self._old.append(zygote)
        await zygote.childless()
        await zygote.stop()
        self._old.remove(zygote)

    async def stop(self) -> None:
        """End the zygotes, and all that is below them."""
        await self._tasks.stop()
        await asyncio.gather(*(z.stop() for z in (self._zygote, *self._old) if z is not None))
        self._zygote = None
        self.groups.remove()
