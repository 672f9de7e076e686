"""Processes that do shares of what there is to do: forked from this one, so they have all that it has, and import nothing.

A fork has one thread, and locks that others held stay locked in it for ever. So this process is forked only where it has no
threads but those that wait for it; where it has others, `processes` says 1, and all is done here.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import socket
import sys
import warnings
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

from dspex.bus.local.processes import die_with
from dspex.bus.tasks import Tasks

S = TypeVar("S")
R = TypeVar("R")

_MOST: Final = 16  # processes that are forked unless more are asked for
_HEAD: Final = 8  # bytes that say how long what follows is


def processes(asked: int | None = None, *, threads: int = 1) -> int:
    """How many processes may do something together: as many as asked for, or as there are processors for this one; 1: it alone.

    `threads`: that this process has while nothing else goes on in it.
    """
    if sys.platform != "linux" or len(os.listdir("/proc/self/task")) > threads:
        return 1
    return asked or min(len(os.sched_getaffinity(0)), _MOST)


class Crew(Generic[S, R]):
    """Processes that live as long as the `with` block. They end with this one, whatever becomes of it.

    Args:
        work: does a share, in an event loop of the process that does it. Shares, and what comes of them, are pickled.
        count: of processes.
    """

    def __init__(self, work: Callable[[S], Awaitable[R]], count: int) -> None:
        self.count, self._work, self._members = count, work, list[_Member]()

    def __enter__(self) -> Crew[S, R]:
        for _ in range(self.count):
            self._members.append(_forked(self._work))
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            member.end()
        for member in self._members:
            member.wait()

    async def done(self, shares: AsyncIterable[S]) -> AsyncGenerator[R, None]:
        """What comes of shares, in their order. One that a process does not bring to its end is done here: what it raised there
        it raises here, when it is its turn.
        """
        free, coming = asyncio.Queue[_Member](), deque[asyncio.Task[R]]()
        for member in self._members:
            free.put_nowait(member)
        tasks = Tasks("crew", lambda name, error: None)  # who waits for a share hears of it

        async def one(share: S) -> R:
            member = await free.get()
            try:
                answer = await member.asked(pickle.dumps(share))
            finally:
                if not member.gone or all(each.gone for each in self._members):
                    free.put_nowait(member)
            if answer is None:
                return await self._work(share)
            found: R = pickle.loads(answer)
            return found

        try:
            async for share in shares:
                coming.append(tasks.start(one(share), "share"))
                await asyncio.sleep(0)  # who is free has it while the next one is made
                if len(coming) > 2 * self.count:  # so many lie here, or are on their way
                    yield await coming.popleft()
            while coming:
                yield await coming.popleft()
        finally:
            await tasks.stop()


class _Member:
    """One process of a crew, as this one sees it. `gone`: it has ended, and does nothing more."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self._pid, self._line = pid, line
        self._idle, self.gone = True, False

    async def asked(self, share: bytes) -> bytes | None:
        """What comes of a share; None: the process has ended."""
        if self.gone:
            return None
        self._idle = False
        with suppress(BrokenPipeError, ConnectionResetError):
            await _send(self._line, share)
            if (answer := await _receive(self._line)) is not None:
                self._idle = True
                return answer
        self.gone = True
        return None

    def end(self) -> None:
        """Have it end: by itself, or at once if it does something of which nobody wants to know."""
        self._line.close()
        if not self._idle:
            os.kill(self._pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until it has ended."""
        with suppress(ChildProcessError):  # this process lets the system reap
            os.waitpid(self._pid, 0)


def _forked(work: Callable[[S], Awaitable[R]]) -> _Member:
    parent, (ours, theirs) = os.getpid(), socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside this one, see `processes`
        pid = os.fork()
    if pid:
        theirs.close()
        ours.setblocking(False)
        return _Member(pid, ours)
    try:
        die_with(parent)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a ^C is for all in front of the terminal: the parent ends this one
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ours.close()
        theirs.setblocking(False)
        gc.freeze()  # what is the parent's is not looked at again
        asyncio.run(_member(theirs, work))
    finally:
        os._exit(0)  # what was raised here is raised by the parent, see `Crew.done`


async def _member(line: socket.socket, work: Callable[[S], Awaitable[R]]) -> None:
    while (share := await _receive(line)) is not None:
        found = await work(pickle.loads(share))
        sys.stdout.flush()
        sys.stderr.flush()
        await _send(line, pickle.dumps(found))


async def _send(line: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(line, len(data).to_bytes(_HEAD, "big") + data)


async def _receive(line: socket.socket) -> bytes | None:
    """What was sent; None: there is nobody at the other end."""
    head = await _exactly(line, _HEAD)
    return await _exactly(line, int.from_bytes(head, "big")) if head is not None else None


async def _exactly(line: socket.socket, size: int) -> bytes | None:
    found, loop = bytearray(), asyncio.get_running_loop()
    while len(found) < size:
        if not (more := await loop.sock_recv(line, min(size - len(found), 1 << 20))):
            return None
        found += more
    return bytes(found)
