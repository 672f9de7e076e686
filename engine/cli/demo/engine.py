"""An engine in a process of its own, `dspex run` without pools, so that the demo can kill it as a crash would."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process

import orjson

from dspex.bus.errors import BusError
from dspex.bus.settings.model import Settings
from dspex.bus.tasks import Tasks

TARGET = "dspex.topologies.support_triage:topology"


class EngineProcess:
    """`dspex run` with these settings. It ends with this process, whatever becomes of that.

    `tasks`: one of them fails with a BusError where the engine ends and nobody has killed or stopped it.
    """

    def __init__(self, settings: Settings, tasks: Tasks) -> None:
        self._settings, self._tasks = settings, tasks
        self._process: Process | None = None
        self._ends = False  # because we end it
        self.killed = False  # and not started again

    @property
    def pid(self) -> int | None:
        """Of the process that runs, or ran last."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start it, and wait until it runs the topology. Raises BusError where it ends before."""
        self._ends = self.killed = False
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dspex", "--json", "--quiet", "run", TARGET),
            *("--pools", "none", "--no-server", "--with-parent"),
            stdin=PIPE,
            stdout=PIPE,
            cwd=self._settings.root,
            env={**os.environ, "DSPEX_SETTINGS_JSON": self._settings.to_json()},
            start_new_session=True,  # ^C goes to the demo alone, which drains it
        )
        assert process.stdout is not None
        async for line in process.stdout:
            if orjson.loads(line).get("event") == "ready":
                self._tasks.start(self._watch(process), "engine")
                return
        raise await _ended(process)

    async def kill(self) -> None:
        """SIGKILL: it can finish, commit and say nothing any more."""
        if self._process is not None:
            self._ends = self.killed = True
            self._process.kill()
            await self._process.wait()

    async def stop(self, grace: float) -> None:
        """Drain it: its stdin ends. Kill it where `grace` seconds were not enough."""
        process, self._ends = self._process, True
        if process is None or process.stdin is None or process.returncode is not None:
            return
        process.stdin.close()
        try:
            async with asyncio.timeout(grace):
                await process.wait()
        except TimeoutError:
            await self.kill()

    async def _watch(self, process: Process) -> None:
        await process.wait()
        if not self._ends:
            raise await _ended(process)


async def _ended(process: Process) -> BusError:
    return BusError(f"the demo's engine ended with exit code {await process.wait()}", fix="see what it wrote above")
