"""Pools that an engine starts beside itself: one `dspex worker POOL` process each, started again when it dies.

The engine knows the command and nothing of what is behind it: engine and workers meet only on the wire. The process drains
when its stdin ends, so a killed engine leaves no pool behind.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence

import orjson
import structlog

from dspex.bus.errors import DspexError, WorkerLost, from_dict
from dspex.bus.settings import environment
from dspex.bus.settings.model import Settings
from dspex.bus.tasks import Tasks

_log = structlog.get_logger("dspex.engine")
BACK_OFF = (0.5, 1.0, 2.0, 5.0, 10.0)  # seconds before a dead pool is started again


class PoolProcess:
    """One pool's parent process, kept running."""

    def __init__(self, name: str, settings: Settings, on_ready: Callable[[dict[str, object]], None]) -> None:
        self.name = name
        self.settings = settings
        self.on_ready = on_ready  # what the pool says about itself when it is ready
        self.ready = asyncio.Event()
        self.process: Process | None = None
        self.failure: DspexError | None = None  # why it does not run; None while it does
        self._tasks = Tasks("dspex.pool", self._keeper_failed)
        self._tasks.start(self._keep(), name)

    async def _keep(self) -> None:
        for deaths in range(1_000_000):
            code = await self._live()
            self.failure = self.failure or WorkerLost(f"pool {self.name} ended with exit code {code}", node=self.name)
            if code == 2:  # its settings are wrong: starting it again would not help
                _log.error("pool cannot start", pool=self.name, why=self.failure.message)
                self.ready.set()
                return
            pause = BACK_OFF[min(deaths, len(BACK_OFF) - 1)]
            _log.error("pool died, starting it again", pool=self.name, why=self.failure.message, pause=pause)
            await asyncio.sleep(pause)

    async def _live(self) -> int:
        command = [sys.executable, "-m", "dspex", "--json", "--no-progress", "worker", self.name, "--with-parent"]
        env, rest = environment.sealed({**os.environ, "DSPEX_SETTINGS_JSON": self.settings.to_json()})
        handed = () if rest is None else (rest,)
        # A session of its own: ^C goes to the engine alone, which drains the pool when it has drained itself.
        try:
            self.process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, cwd=self.settings.root, env=env, pass_fds=handed, start_new_session=True
            )
        finally:
            for descriptor in handed:
                os.close(descriptor)
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            try:
                said = orjson.loads(line)
            except orjson.JSONDecodeError:
                _log.warning("a pool printed a line that is not JSON", pool=self.name, line=line[:200].decode(errors="replace"))
                continue
            if said.get("event") == "pool failed":
                self.failure = from_dict(said["error"])
            elif said.get("event") == "pool ready":
                self.failure = None
                self.on_ready(said)
                self.ready.set()
        return await self.process.wait()

    async def failed(self) -> None:
        """Wait until it is no longer kept running because of a bug of dspex, and raise what was raised."""
        await self._tasks.wait()

    def _keeper_failed(self, name: str, error: BaseException) -> None:
        _log.error("pool is no longer kept running", pool=name, why=repr(error))

    async def stop(self, grace: float) -> None:
        """End its stdin, which drains it; kill it when `grace` seconds were not enough."""
        await self._tasks.stop()
        p = self.process
        if p is None or p.returncode is not None:
            return
        assert p.stdin is not None
        p.stdin.close()
        try:
            async with asyncio.timeout(grace):
                await p.wait()
        except TimeoutError:
            _log.warning("pool did not drain in time: killed; its open calls are delivered again", pool=self.name)
            p.kill()
            await p.wait()


class Pools:
    """The pools that an engine started."""

    def __init__(self, names: Sequence[str], settings: Settings, on_ready: Callable[[dict[str, object]], None]) -> None:
        self.names = tuple(names)
        self.processes = [PoolProcess(name, settings, on_ready) for name in names]

    async def ready(self) -> None:
        """Wait until every pool is ready, or has failed for good."""
        await asyncio.gather(*(p.ready.wait() for p in self.processes))

    @property
    def failures(self) -> list[DspexError]:
        """Why pools do not run; empty where all do."""
        return [p.failure for p in self.processes if p.failure]

    async def stop(self, grace: float = 30.0) -> None:
        """Drain all of them."""
        await asyncio.gather(*(p.stop(grace) for p in self.processes))
