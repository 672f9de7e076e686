"""The model servers of a pool, as its parent sees them: started when a call needs them, started again when they die."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus.errors import LMUnavailable
from dspex.bus.records import CallRequest
from dspex.bus.settings import environment
from dspex.bus.tasks import Tasks
from dspex.workers.config import PoolConfig, Profile
from dspex.workers.models import weights
from dspex.workers.processes.ending import kill, started

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

START_TIMEOUT = 60.0  # seconds to load the weights
LOG_WITHIN = 1.0  # seconds for the last log lines of a server that was killed
PAUSE = 1.0  # seconds between two starts
SLOTS = 1  # requests that a local model serves at once: more share the same cores, and each prompt cache is cold


class LocalModel:
    """`url` of an OpenAI-compatible server for one local model, alive while it is needed."""

    def __init__(self, profile: Profile, slots: int, threads: int) -> None:
        self.profile, self.slots, self.threads = profile, slots, threads
        self._process: asyncio.subprocess.Process | None = None
        self._url = ""
        self._lock = asyncio.Lock()
        self._tasks = Tasks("model-server")
        self._starts = 0

    @property
    def pid(self) -> int | None:
        """Of the server; None while there is none."""
        return self._process.pid if self._alive() and self._process else None

    async def url(self) -> str:
        """Where it listens; starts it if it does not run. Raises ConfigError (not installed) or LMUnavailable."""
        async with self._lock:
            if not self._alive():
                self._url = await self._start()
            return self._url

    @property
    def running(self) -> str | None:
        """Where it listens; None while it does not run."""
        return self._url if self._alive() and not self._lock.locked() else None

    async def stop(self) -> None:
        """End the server."""
        if self._process is not None:
            kill(self._process)
            await self._process.wait()
        await self._tasks.finish(LOG_WITHIN)
        await self._tasks.stop()

    def _alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def _start(self) -> str:
        path = await asyncio.to_thread(weights.require, self.profile.model)
        if self._starts:
            log.warning("model server died", model=self.profile.model, code=self._process and self._process.returncode)
            await asyncio.sleep(PAUSE)
        self._starts += 1
        arguments = [str(path), str(self.slots), str(self.threads), str(os.getpid())]
        try:
            self._process = process = await started(
                sys.executable,
                "-m",
                "dspex.workers.models.server",
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment.bare(),
            )
        except OSError as error:  # too many processes or open files, or no memory
            why = f"the model server of {self.profile.model} cannot be started: {error.strerror}"
            raise LMUnavailable(why, node=f"lm.{self.profile.name}") from error
        assert process.stdout is not None
        assert process.stderr is not None
        self._tasks.start(_forward(process.stderr, self.profile.model), "log")
        line = b""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(START_TIMEOUT):
                    line = await process.stdout.readline()
        finally:
            if not line:  # also where the call that needed it is cancelled: nobody knows its URL
                kill(process)
        if not line:
            await process.wait()
            raise LMUnavailable(
                f"the model server of {self.profile.model} did not start (exit code {process.returncode})",
                fix="look at the lines of the model server in the pool's log",
                node=f"lm.{self.profile.name}",
            )
        url: str = json.loads(line)["url"]
        log.info("model server ready", model=self.profile.model, pid=process.pid, url=url)
        return url


class LocalModels:
    """The local models of one pool, each with its server."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._models: dict[str, LocalModel] = {}

    @property
    def pids(self) -> list[int]:
        """Of the servers that run."""
        return [m.pid for m in self._models.values() if m.pid is not None]

    def needed(self, work: CallRequest, lms: Sequence[str] | None = None) -> str | None:
        """The profile of the local model that a call may ask; None where it names none. `lms`: see `Execution`."""
        default = self._config.default_profile()
        names = lms or work.spec.lm or ([default.name] if default else [])
        profiles = self._config.profiles
        return next((name for name in names if name in profiles and profiles[name].local), None)

    def running(self, name: str) -> str | None:
        """Where the server of the profile's model listens; None while it does not run."""
        model = self._models.get(self._config.profile(name).model)
        return model.running if model is not None else None

    async def url(self, name: str) -> str:
        """Where the server of the profile's model listens; starts it if it does not run.

        Raises ConfigError (not installed) or LMUnavailable.
        """
        profile = self._config.profile(name)
        if profile.model not in self._models:
            # One core is left to everybody else. llama.cpp's threads wait for each other at every step: with as many as
            # there are cores, any other process on one of them made calls eight times slower (8.9 s instead of 1.1 s).
            threads = max(1, (os.cpu_count() or 1) - 1)
            self._models[profile.model] = LocalModel(profile, SLOTS, threads)
        return await self._models[profile.model].url()

    async def stop(self) -> None:
        """End the servers."""
        await asyncio.gather(*(m.stop() for m in self._models.values()))


async def _forward(stream: asyncio.StreamReader, model: str) -> None:
    while line := await stream.readline():
        log.debug("model server", model=model, line=line.decode(errors="replace").rstrip())
