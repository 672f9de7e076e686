"""A worker's child process: `python -m dspex.workers.child.main FD`. Runs programs, does not use NATS.

Programs run on the main thread's loop, or in threads, and what they raise there ends the task that raised it, and never the
loop. The loop reads the socket too: a thread of its own for that would have each call wait for the GIL twice. What it buys,
a cancel that is read while a program keeps the loop busy, is of no use: nothing can act on it, and the parent kills the
process. A program that keeps the loop busy does not outlive the parent: the kernel ends the process with it (PR_SET_PDEATHSIG),
and where there is no such kernel, `die_with` has a thread that looks.
"""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus.errors import DecodeError, DspexError
from dspex.bus.tasks import Tasks
from dspex.workers.config import OVER, PoolConfig
from dspex.workers.frames import FatalFrame, Frame, HelloFrame, Link, StartFrame, receive
from dspex.workers.processes import die_with, limit_memory

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

_HOP_THREADS = 64  # DSPy's acall goes through the loop's default executor several times a call
_OTHER_THREADS = 16  # of the process itself, and of libraries


async def _main(sock: socket.socket, pool: PoolConfig, limited: bool) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_HOP_THREADS, thread_name_prefix="dspy"))
    early: list[Frame] = []  # that come before there is a runner
    handle: Callable[[Frame], None] = early.append
    link = Link(lambda frame: handle(frame), _parent_ended)
    await link.begin(sock)
    try:
        from dspex.workers.answerers.router import Router
        from dspex.workers.child.runner import Runner

        router = Router(pool)
    except DspexError as error:
        link.send(FatalFrame(error.as_dict()))
        return
    runner = Runner(link, router)
    handle = runner.handle
    for frame in early:
        runner.handle(frame)
    found, failed = router.scan()
    link.send(HelloFrame(os.getpid(), router.dspy_version, platform.python_version(), found, failed, limited))
    await runner.wait()
    await router.close()


def _parent_ended(wrong: DecodeError | None) -> None:
    os._exit(0)  # nobody would read an answer


def _run(serving: Coroutine[Any, Any, None]) -> None:
    """Run the loop until `serving` ends. Raises what it raises.

    asyncio gives a SystemExit or KeyboardInterrupt to the task that raised it, and then leaves the loop as well: a program
    that starts a task which calls `sys.exit` would end the calls of others. So the loop is entered again.
    """
    with asyncio.Runner() as runner:
        task = runner.run(_start(serving))
        while not task.done():
            try:
                runner.run(_end_of(task))
            except (SystemExit, KeyboardInterrupt) as error:
                log.error("a task of a program tried to end the process", error=repr(error))
        task.result()


async def _start(serving: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return Tasks("child process").start(serving, "serving")


async def _end_of(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])


def main() -> None:
    """Serve until the parent says stop or ends."""
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)  # a process that a program starts must not keep the socket open
    sock = socket.socket(fileno=fd)
    start = receive(sock)
    if not isinstance(start, StartFrame):  # the parent has ended already
        return
    die_with(start.parent)
    memory = start.pool.memory  # limited before anything of the user's is imported
    limited = memory is not None and limit_memory(int(memory * OVER), _HOP_THREADS + start.pool.slots + _OTHER_THREADS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _event_first,
            structlog.processors.JSONRenderer(sort_keys=False),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    _run(_main(sock, start.pool, limited))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # do not wait for threads of programs, which cannot be cancelled


def _event_first(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    return {"event": event.pop("event"), **event}


if __name__ == "__main__":
    main()
