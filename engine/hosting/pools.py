"""Pools that an engine starts beside itself: one `dspex worker POOL` process each, started again when it dies.

The engine knows the command and nothing of what is behind it: engine and workers meet only on the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dspex.bus.errors import DspexError, WorkerLost, from_dict
from dspex.bus.seldom import logger
from dspex.bus.settings.model import Settings
from dspex.bus.tasks import Tasks
from dspex.engine.hosting.command_process import BACK_OFF, CommandProcess, OnOutput

_log = logger("dspex.engine")


class PoolProcess:
    """One pool's parent process, kept running."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        on_ready: Callable[[dict[str, object]], None],
        on_output: OnOutput = None,
        grace: float = 30.0,
    ) -> None:
        self.name = name
        self.on_ready = on_ready  # what the pool says about itself when it is ready
        self.ready = asyncio.Event()
        verb = ("worker", name, "--with-parent", "--grace", f"{grace:g}s")
        self.child = CommandProcess(name, verb, settings, self._said, on_output, folder=settings.root)
        self.failure: DspexError | None = None  # why it does not run; None while it does
        self._tasks = Tasks("dspex.pool", self._keeper_failed)
        self._tasks.start(self._keep(), name)

    async def _keep(self) -> None:
        for deaths in range(1_000_000):
            code = await self.child.live()
            self.failure = self.failure or WorkerLost(f"pool {self.name} ended with exit code {code}", node=self.name)
            if code == 2:  # its settings are wrong: starting it again would not help
                _log.error("pool cannot start", pool=self.name, why=self.failure.message)
                self.ready.set()
                return
            pause = BACK_OFF[min(deaths, len(BACK_OFF) - 1)]
            _log.error("pool died, starting it again", pool=self.name, why=self.failure.message, pause=pause)
            await asyncio.sleep(pause)

    def _said(self, said: Mapping[str, Any]) -> None:
        if said.get("event") == "pool failed":
            self.failure = from_dict(said["error"])
        elif said.get("event") == "pool ready":
            self.failure = None
            self.on_ready(dict(said))
            self.ready.set()

    async def failed(self) -> None:
        """Wait until it is no longer kept running because of a bug of dspex, and raise what was raised."""
        await self._tasks.wait()

    def _keeper_failed(self, name: str, error: BaseException) -> None:
        _log.error("pool is no longer kept running", pool=name, why=repr(error))

    async def stop(self, grace: float) -> None:
        """Drain it; kill it when `grace` seconds were not enough."""
        await self._tasks.stop()
        await self.child.stop(grace)


class Pools:
    """The pools that an engine started. `grace`: seconds that their calls have to finish where this process dies."""

    def __init__(
        self,
        names: Sequence[str],
        settings: Settings,
        on_ready: Callable[[dict[str, object]], None],
        on_output: OnOutput = None,
        grace: float = 30.0,
    ) -> None:
        self.names = tuple(names)
        self.processes = [PoolProcess(name, settings, on_ready, on_output, grace) for name in names]

    async def ready(self) -> None:
        """Wait until every pool is ready, or has failed for good."""
        await asyncio.gather(*(p.ready.wait() for p in self.processes))

    @property
    def alive(self) -> set[str]:
        """Those whose processes run."""
        return {p.name for p in self.processes if p.child.lives}

    @property
    def failures(self) -> list[DspexError]:
        """Why pools do not run; empty where all do."""
        return [p.failure for p in self.processes if p.failure]

    async def stop(self, grace: float = 30.0) -> None:
        """Drain all of them."""
        await asyncio.gather(*(p.stop(grace) for p in self.processes))
