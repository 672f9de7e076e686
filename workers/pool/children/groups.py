"""What the kernel holds the workers of a pool to, beside the limit that each has of itself: CPU and memory, by cgroup v2."""

from __future__ import annotations

import itertools
from functools import cached_property

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus.errors import ConfigError
from dspex.workers.config import OVER, PoolConfig
from dspex.workers.pool.children.zygote_process import Spawned
from dspex.workers.processes.cgroups import Group, Groups, Unavailable

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")


class WorkerGroups:
    """The groups of one pool's workers, one for each."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._numbers = itertools.count(1)
        self._made: dict[Spawned, Group] = {}

    def hold(self, spawned: Spawned) -> None:
        """Put a worker, which runs nothing yet, into a group of its own, where the pool has limits.

        Raises ConfigError (DX141) where the system does not hold it to its share of the CPU. What it does for its memory comes
        besides: a worker has a limit of itself, and the supervisor looks at it.
        """
        self.remove()
        c = self._config
        if self._groups is None:
            return
        memory = int(c.memory * OVER) if c.memory and self.memory else None
        try:
            group = self._groups.make(f"{c.name}-{next(self._numbers)}", cpu=c.cpu, memory=memory)
            self._made[spawned] = group
            group.add(spawned.pid)
        except OSError as error:
            if c.cpu is not None:
                raise self._refused(str(error)) from None
            log.warning("the system does not hold a worker to its memory", pool=c.name, why=str(error))

    def remove(self) -> None:
        """Remove the groups of workers that have ended. What such a one started takes a moment to end: who comes next looks
        again.
        """
        for spawned, group in list(self._made.items()):
            if spawned.ended.is_set() and group.remove():
                del self._made[spawned]

    @cached_property
    def memory(self) -> bool:
        """Whether the system ends a worker that has more memory than it may, with all that it has started."""
        return self._config.memory is not None and not isinstance(_found(("memory",)), str)

    @cached_property
    def _groups(self) -> Groups | None:
        """Where they are; None where the pool needs none. Raises ConfigError."""
        wanted = (*(("cpu",) if self._config.cpu is not None else ()), *(("memory",) if self.memory else ()))
        if not wanted:
            return None
        found = _found(wanted)
        if isinstance(found, str):
            raise self._refused(found)
        return found

    def _refused(self, why: str) -> ConfigError:
        name = self._config.name
        return ConfigError(
            f"pools.{name}.cpu is {self._config.cpu:g}, and this system holds no worker to it: {why}",
            code="DX141",
            fix="start the pool in a cgroup v2 of its own (systemd: Delegate=yes), or leave it out",
            node=name,
        )


def _found(controllers: tuple[str, ...]) -> Groups | str:
    """The groups, or why there are none."""
    try:
        return Groups.here(controllers)
    except Unavailable as reason:
        return str(reason)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
