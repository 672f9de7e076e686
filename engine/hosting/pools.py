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
from typing import TypeAlias

import orjson
import structlog

from dspex.bus.errors import DspexError, WorkerLost, from_dict
from dspex.bus.settings import environment
from dspex.bus.settings.model import Settings
from dspex.bus.tasks import Tasks

_log = structlog.get_logger("dspex.engine")
OnOutput: TypeAlias = Callable[[str], None] | None
"""Gets each line that a pool logs, for people; None: the pools write to our stderr themselves."""
READ = 65536  # bytes of what a pool logs at a time
BACK_OFF = (0.5, 1.0, 2.0, 5.0, 10.0)  # seconds before a dead pool is started again


class PoolProcess:
    """One pool's parent process, kept running."""

    def __init__(
        self, name: str, settings: Settings, on_ready: Callable[[dict[str, object]], None], on_output: OnOutput = None
    ) -> None:
        self.name = name
        self.on_output = on_output
        self._log_task: asyncio.Task[None] | None = None
        self.settings = settings
        self.on_ready = on_ready  # what the pool says about itself when it is ready
        self.ready = asyncio.Event()
        self.process: Process | None = None
        self.failure: DspexError | None = None  # why it does not run; None while it does
        self._tasks = Tasks("dspex.pool", self._keeper_failed)
        self._relays = Tasks("dspex.pool.log", lambda _, error: _log.error("a pool's log is lost", pool=name, why=repr(error)))
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
        command += ["--relayed"] if self.on_output else []
        env, rest = environment.sealed({**os.environ, "DSPEX_SETTINGS_JSON": self.settings.to_json()})
        handed = () if rest is None else (rest,)
        # A session of its own: ^C goes to the engine alone, which drains the pool when it has drained itself.
        try:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE if self.on_output else None,
                cwd=self.settings.root,
                env=env,
                pass_fds=handed,
                start_new_session=True,
            )
        finally:
            for descriptor in handed:
                os.close(descriptor)
        if self.process.stderr is not None and self.on_output is not None:
            self._log_task = self._relays.start(relay(self.process.stderr, self.on_output), "log")
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
        try:
            await self._end(grace)
        finally:
            if self._log_task is not None:
                await asyncio.wait([self._log_task], timeout=1.0)  # until its last lines are read
            await self._relays.stop()

    async def _end(self, grace: float) -> None:
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


async def relay(stream: asyncio.StreamReader, on_output: Callable[[str], None]) -> None:
    """Hand on what a pool logs, line by line; a line that is very long in parts."""
    rest = b""
    while part := await stream.read(READ):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            on_output(line.decode(errors="replace"))
        if len(rest) >= READ:
            on_output(rest.decode(errors="replace"))
            rest = b""
    if rest:
        on_output(rest.decode(errors="replace"))


class Pools:
    """The pools that an engine started."""

    def __init__(
        self,
        names: Sequence[str],
        settings: Settings,
        on_ready: Callable[[dict[str, object]], None],
        on_output: OnOutput = None,
    ) -> None:
        self.names = tuple(names)
        self.processes = [PoolProcess(name, settings, on_ready, on_output) for name in names]

    async def ready(self) -> None:
        """Wait until every pool is ready, or has failed for good."""
        await asyncio.gather(*(p.ready.wait() for p in self.processes))

    @property
    def alive(self) -> set[str]:
        """Those whose processes run."""
        return {p.name for p in self.processes if p.process is not None and p.process.returncode is None}

    @property
    def failures(self) -> list[DspexError]:
        """Why pools do not run; empty where all do."""
        return [p.failure for p in self.processes if p.failure]

    async def stop(self, grace: float = 30.0) -> None:
        """Drain all of them."""
        await asyncio.gather(*(p.stop(grace) for p in self.processes))
