"""One child process, as its parent sees it: a socket with frames, two pipes with what user code prints, an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Self

import structlog

from dspex.bus import errors
from dspex.bus.errors import WorkerLost
from dspex.workers import frames
from dspex.workers.config import PoolConfig, child_environment
from dspex.workers.frames import Frame
from dspex.workers.processes import kill

log: Any = structlog.get_logger("dspex.workers")

CLOSED_WITHIN = 0.5  # seconds between the end of a child's socket and the end of the child
STOP_WITHIN = 2.0  # seconds between being asked to stop and being killed


class Child:
    """A worker process.

    Attributes:
        hello: what it said when it was ready; None before.
        busy, calls: calls it runs now, and has finished.
        retiring: it takes no more calls.
        gone: set when the process is dead and its calls are answered.
    """

    def __init__(self, pool: str, process: asyncio.subprocess.Process, stream: tuple[Any, Any]) -> None:
        self.pool = pool
        self.hello: Frame | None = None
        self.busy = self.calls = 0
        self.retiring = False
        self.gone = asyncio.Event()
        self._process = process
        self._reader: asyncio.StreamReader = stream[0]
        self._writer: asyncio.StreamWriter = stream[1]
        self._open: dict[int, asyncio.Future[Frame]] = {}
        self._status: dict[int, Callable[[str], None]] = {}
        self._ids = itertools.count(1)
        self._started = time.monotonic()
        self._greeting: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._read()), *self._printed()]

    @classmethod
    async def start(cls, config: PoolConfig, index: int) -> Self:
        """Start the process and tell it what it is."""
        ours, theirs = socket.socketpair()
        process = await asyncio.create_subprocess_exec(
            config.python or sys.executable,
            "-m",
            "dspex.workers.child.main",
            str(theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=child_environment(config, index),
            pass_fds=(theirs.fileno(),),
            start_new_session=True,  # ^C in a terminal goes to the parent alone, which drains
        )
        theirs.close()
        child = cls(config.name, process, await asyncio.open_connection(sock=ours, limit=2**20))
        child._send({"op": "config", "parent": os.getpid(), **config.for_child()})
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code; minus the signal's number if one killed it; None while it runs."""
        return self._process.returncode

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started

    async def ready(self, timeout: float) -> Frame:
        """Its hello. Raises the error that it reported, or WorkerLost."""
        try:
            async with asyncio.timeout(timeout):
                hello = await asyncio.shield(self._greeting)
        except TimeoutError:
            raise WorkerLost(f"worker {self.pid} was not ready within {timeout:.0f} s") from None
        self.hello = hello
        return hello

    # -- calls -----------------------------------------------------------------------------------------------------
    def call(self, work: bytes, local: str | None, status: Callable[[str], None]) -> tuple[int, asyncio.Future[Frame]]:
        """Run a packed Work; a number to cancel it by, and its "done" frame to come (WorkerLost if the process dies)."""
        number = next(self._ids)
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        if self.gone.is_set():
            future.set_exception(self._lost())
            return number, future
        self._open[number], self._status[number] = future, status
        self._send({"op": "call", "id": number, "work": work, "local": local})
        return number, future

    def cancel(self, number: int) -> None:
        """Ask the child to give a call up."""
        self._send({"op": "cancel", "id": number})

    async def idle(self) -> None:
        """Returns when no call runs."""
        while self._open:
            await asyncio.wait(self._open.values())

    # -- end -------------------------------------------------------------------------------------------------------
    def kill(self) -> None:
        """End it at once."""
        kill(self._process)

    async def stop(self) -> None:
        """Ask it to end, kill it if it does not, and wait until it is gone."""
        self._send({"op": "stop"})
        try:
            async with asyncio.timeout(STOP_WITHIN):
                await self._process.wait()
        except TimeoutError:
            self.kill()
        await self._process.wait()
        await self.gone.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- frames ----------------------------------------------------------------------------------------------------
    def _send(self, frame: Frame) -> None:
        if not self._writer.is_closing():
            self._writer.write(frames.pack(frame))

    async def _read(self) -> None:
        while (frame := await frames.read(self._reader)) is not None:
            self._handle(frame)
        try:
            async with asyncio.timeout(CLOSED_WITHIN):
                await self._process.wait()
        except TimeoutError:
            self.kill()  # its socket is closed and it lives: it is of no use any more
            await self._process.wait()
        self._writer.close()
        if not self._greeting.done():
            self._greeting.set_exception(self._lost())
            self._greeting.exception()  # nobody may be waiting any more
        for future in self._open.values():
            if not future.done():
                future.set_exception(self._lost())
        self._open.clear()
        self.gone.set()

    def _handle(self, frame: Frame) -> None:
        op, number = frame["op"], frame.get("id", 0)
        if op == "done":
            future = self._open.pop(number, None)
            self._status.pop(number, None)
            if future is not None and not future.done():
                future.set_result(frame)
        elif op == "status" and number in self._status:
            self._status[number](str(frame["text"]))
        elif op == "hello" and not self._greeting.done():
            self._greeting.set_result(frame)
        elif op == "fatal" and not self._greeting.done():
            self._greeting.set_exception(errors.from_dict(frame["error"]))

    def _lost(self) -> WorkerLost:
        code = self.returncode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        return WorkerLost(f"worker {self.pid} of pool {self.pool} {how}", node=self.pool)

    # -- what user code prints -------------------------------------------------------------------------------------
    def _printed(self) -> list[asyncio.Task[None]]:
        streams = {"stdout": self._process.stdout, "stderr": self._process.stderr}
        return [asyncio.create_task(self._forward(s, name)) for name, s in streams.items() if s is not None]

    async def _forward(self, stream: asyncio.StreamReader, name: str) -> None:
        """Lines of user code into the log; those of our own child are JSON already, and keep their fields."""
        while line := await _line(stream):
            if line.startswith('{"event"'):
                with contextlib.suppress(ValueError):
                    fields = json.loads(line)
                    getattr(log, fields.pop("level", "info"), log.info)(fields.pop("event"), pid=self.pid, **fields)
                    continue
            if line.strip():
                log.info("program output", pool=self.pool, pid=self.pid, stream=name, line=line.rstrip())


async def _line(stream: asyncio.StreamReader) -> str:
    """One line; "" at the end. A line over the stream's limit comes in parts, cut where they fall."""
    try:
        raw = await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        raw = end.partial
    except asyncio.LimitOverrunError as over:
        raw = await stream.readexactly(over.consumed)
    return raw.decode(errors="replace")
