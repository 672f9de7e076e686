"""A zygote (`workers.child.zygote`), as the pool's parent sees it: asked for children, and told when they end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus.errors import ConfigError, WorkerLost
from dspex.bus.tasks import Tasks
from dspex.workers.config import PoolConfig, child_environment
from dspex.workers.frames import StartFrame, pack
from dspex.workers.pool.children.output import forward
from dspex.workers.processes.ending import end_left, kill, started

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

START_TIMEOUT = 120.0  # seconds until it must be ready: importing a user's programs can be slow
BORN_WITHIN = 10.0  # seconds between two forks at most, on a machine that has too much to do
STOP_WITHIN = 2.0  # seconds between the end of its socket and its own
KILLED_WITHIN = 2.0  # seconds that it has to kill a child


class UnfitToFork(Exception):
    """The programs of the pool leave something behind where they are imported; the text is the end of a sentence."""


class Stale(Exception):
    """A file of the programs has changed since they were imported; the text is its path."""


class Spawned:
    """A process that a zygote started.

    Attributes:
        pid: 0 before it is known.
        returncode: exit code; minus the signal's number if one killed it; None while it runs, and where nobody saw it end.
        ended: set when it has ended.
    """

    def __init__(self, zygote: ZygoteProcess, number: int) -> None:
        self._zygote, self._number = zygote, number
        self.pid = 0
        self.returncode: int | None = None
        self.ended = asyncio.Event()
        self.born: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def zygote(self) -> int:
        """Process id of its parent."""
        return self._zygote.pid

    def kill(self) -> None:
        """End it at once. Not by its process id, which only its parent knows to be its own still.

        Where that does not do it, because it is frozen, it is ended itself, and all its children with it.
        """
        if not self.ended.is_set():
            self._zygote.say(kill=self._number)
            asyncio.get_running_loop().call_later(KILLED_WITHIN, self._insist)

    def _insist(self) -> None:
        if not self.ended.is_set():
            log.error("what starts workers does not react, killing it", pid=self._zygote.pid)
            self._zygote.kill()

    async def wait(self) -> None:
        """Wait until it has ended."""
        await self.ended.wait()


class ZygoteProcess:
    """One zygote.

    Attributes:
        gone: set when it has ended, and its children with it.
    """

    def __init__(self, pool: str, process: asyncio.subprocess.Process, sock: socket.socket) -> None:
        self._pool, self._process, self._sock = pool, process, sock
        self._numbers = itertools.count(1)
        self._spawned: dict[int, Spawned] = {}
        self.gone = asyncio.Event()
        self._unfit: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._tasks = Tasks(f"zygote {process.pid}")

    @classmethod
    async def start(cls, config: PoolConfig, *, fork: bool) -> Self:
        """One that is ready. Raises UnfitToFork; WorkerLost where it is not ready in time; ConfigError (DX142) where the pool's
        interpreter cannot be started.
        """
        python = config.python or sys.executable
        ours, theirs = socket.socketpair()
        try:
            process = await started(
                python,
                "-m",
                "dspex.workers.child.zygote",
                str(theirs.fileno()),
                *(["fork"] if fork else []),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=child_environment(config),
                pass_fds=(theirs.fileno(),),
            )
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            ours.close()
            message = f"pools.{config.name}.python: {python} cannot be started: {error.strerror}"
            raise ConfigError(message, code="DX142", fix="name an interpreter that is there", node=config.name) from None
        finally:
            theirs.close()
        ours.sendall(pack(StartFrame(os.getpid(), replace(config.for_child(), keys={}))))
        zygote = cls(config.name, process, ours)
        await zygote._begin()
        await zygote._ready()
        return zygote

    async def _begin(self) -> None:
        for name, printed in {"stdout": self._process.stdout, "stderr": self._process.stderr}.items():
            assert printed is not None
            self._tasks.start(forward(printed, name, self._pool, self.pid), name)
        reader, self._writer = await asyncio.open_connection(sock=self._sock)
        self._tasks.start(self._hear(reader), "hears")

    async def _ready(self) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                unfit = await asyncio.shield(self._unfit)
        except TimeoutError:
            await self.stop()
            raise WorkerLost(f"process {self.pid} was not ready to start workers within {START_TIMEOUT:.0f} s") from None
        except WorkerLost:
            await self.stop()
            raise
        if unfit is not None:
            await self.stop()
            raise UnfitToFork(unfit)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lives(self) -> bool:
        """Whether it runs, as far as is known."""
        return self._process.returncode is None

    async def childless(self) -> None:
        """Wait until it has no children."""
        while self._spawned:
            await next(iter(self._spawned.values())).ended.wait()

    async def birth(self, env: Mapping[str, str], descriptors: Sequence[int]) -> Spawned:
        """A new child, with these open and these variables besides its own. Raises Stale, WorkerLost."""
        spawned = Spawned(self, number := next(self._numbers))
        self._spawned[number] = spawned
        self.say(descriptors, birth=number, env=dict(env), fds=len(descriptors))
        try:
            async with asyncio.timeout(BORN_WITHIN):
                await spawned.born
        except TimeoutError:
            kill(self._process)  # frozen, or broken by what it imported
            raise WorkerLost(f"process {self.pid} started no worker within {BORN_WITHIN:.0f} s") from None
        return spawned

    def say(self, descriptors: Sequence[int] = (), **said: object) -> None:
        """Tell it something; without effect where it has ended."""
        try:
            socket.send_fds(self._sock, [json.dumps(said).encode() + b"\n"], descriptors)
        except BlockingIOError:  # it is told little at a time, and has not read it for long
            kill(self._process)
        except OSError:
            pass

    def kill(self) -> None:
        """End it at once. The kernel ends its children with it."""
        kill(self._process)

    async def stop(self) -> None:
        """End it, and every process below it."""
        with contextlib.suppress(OSError):  # it has ended already
            self._sock.shutdown(socket.SHUT_WR)
        try:
            async with asyncio.timeout(STOP_WITHIN):
                await self._process.wait()
        except TimeoutError:
            kill(self._process)
        await self.gone.wait()
        await self._tasks.stop()

    # -- what it says
    async def _hear(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._heard(json.loads(line))
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, OSError) as error:
            # what a program does where it is imported, it does in this process
            log.error("what starts workers said what it never says, and is ended", pool=self._pool, why=repr(error))
            kill(self._process)
        await self._process.wait()
        self._over()
        await end_left()
        self.gone.set()

    def _heard(self, said: dict[str, Any]) -> None:
        if "ready" in said:
            if not self._unfit.done():
                self._unfit.set_result(None if said["unfit"] is None else str(said["unfit"]))
        elif "born" in said:
            spawned = self._spawned[said["born"]]
            spawned.pid = int(said["pid"])
            if not spawned.born.done():
                spawned.born.set_result(None)
        elif "stale" in said:
            self._not_born(said["stale"], Stale(str(said["file"])))
        elif "refused" in said:
            self._not_born(said["refused"], WorkerLost(f"no worker of pool {self._pool} can be started: {said['why']}"))
        else:
            spawned = self._spawned.pop(said["ended"])
            spawned.returncode = int(said["code"])
            spawned.ended.set()

    def _not_born(self, number: int, why: Exception) -> None:
        spawned = self._spawned.pop(number)
        if not spawned.born.done():
            spawned.born.set_exception(why)
            spawned.born.exception()  # nobody may be waiting any more
        spawned.ended.set()

    def _over(self) -> None:
        code = self._process.returncode
        lost = WorkerLost(f"the process that starts the workers of pool {self._pool} ended (exit code {code})")
        waits: list[asyncio.Future[Any]] = [self._unfit, *(s.born for s in self._spawned.values())]
        for waiting in waits:
            if not waiting.done():
                waiting.set_exception(lost)
                waiting.exception()  # nobody may be waiting any more
        for spawned in self._spawned.values():
            spawned.ended.set()
        self._spawned.clear()
        self._writer.close()
