"""A `dspex` command in a process beside this one: a pool, or another engine.

Its settings, with all secrets, come from here, what it says is read here as JSON, and it drains when its stdin ends: so a
process that is killed leaves none behind.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from dspex.bus.seldom import logger
from dspex.bus.settings import environment
from dspex.bus.settings.model import Settings
from dspex.bus.tasks import Tasks

_log = logger("dspex.engine")
OnOutput: TypeAlias = Callable[[str], None] | None
"""Gets each line that a process logs, for people; None: it writes to our stderr itself."""
OnSaid: TypeAlias = Callable[[Mapping[str, Any]], None]
"""Gets each object that a process prints."""
READ = 65536  # bytes of what a process logs at a time
BACK_OFF = (0.5, 1.0, 2.0, 5.0, 10.0)  # seconds before a process that died is started again


class CommandProcess:
    """One such process at a time.

    Args:
        name: for the log. command: a verb and what stands behind it; `--relayed` is added where there is an `on_output`.
        folder: that it is started in.
    """

    def __init__(
        self, name: str, command: Sequence[str], settings: Settings, on_said: OnSaid, on_output: OnOutput, *, folder: Path
    ) -> None:
        self.name, self._command, self._settings, self._folder = name, tuple(command), settings, folder
        self._on_said, self._on_output = on_said, on_output
        self.process: Process | None = None
        self._log_task: asyncio.Task[None] | None = None
        self._relays = Tasks("dspex.log", lambda _, error: _log.error("a log is lost", of=name, why=repr(error)))

    async def live(self) -> int:
        """Start it, and hear what it says until it ends. Its exit code."""
        verb, *rest = self._command
        relayed = ["--relayed"] if self._on_output else []
        command = [sys.executable, "-m", "dspex", "--json", "--no-progress", verb, *relayed, *rest]
        env, secrets = environment.sealed({**os.environ, "DSPEX_SETTINGS_JSON": self._settings.to_json()})
        handed = () if secrets is None else (secrets,)
        # A session of its own: ^C goes to the engine alone, which drains it.
        try:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE if self._on_output else None,
                cwd=self._folder,
                env=env,
                pass_fds=handed,
                start_new_session=True,
            )
        finally:
            for descriptor in handed:
                os.close(descriptor)
        if self.process.stderr is not None and self._on_output is not None:
            self._log_task = self._relays.start(relay(self.process.stderr, self._on_output), "log")
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            try:
                said = orjson.loads(line)
            except orjson.JSONDecodeError:
                text = line[:200].decode(errors="replace")
                _log.warning("a process printed a line that is not JSON", of=self.name, line=text)
                continue
            self._on_said(said)
        return await self.process.wait()

    @property
    def lives(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.returncode is None

    async def stop(self, grace: float) -> None:
        """End its stdin, which drains it; kill it when `grace` seconds were not enough."""
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
            _log.warning("did not drain in time: killed; what it had open is taken up again", of=self.name)
            p.kill()
            await p.wait()


async def relay(stream: asyncio.StreamReader, on_output: Callable[[str], None]) -> None:
    """Hand on what a process logs, line by line; a line that is very long in parts."""
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
