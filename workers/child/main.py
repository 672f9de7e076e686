"""A worker's child process: forked from the zygote of its pool, or `python -m dspex.workers.child.main FD`.

It runs programs and does not use NATS.

Programs run on the main thread's loop, or in threads, and what they raise there ends the task that raised it, and never the
loop. The loop reads the socket too: a thread of its own for that would have each call wait for the GIL twice. What it buys,
a cancel that is read while a program keeps the loop busy, is of no use: nothing can act on it, and the parent kills the
process. A program that keeps the loop busy does not outlive the parent: the zygote ends with that, and this process with the
zygote (see `processes.ending`).
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
from typing import Any, NoReturn

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus.errors import DecodeError, DspexError
from dspex.bus.local.processes import die_with
from dspex.bus.tasks import Tasks
from dspex.workers.answerers.context import with_trace
from dspex.workers.child.receiving import receive
from dspex.workers.config import OVER, PoolConfig
from dspex.workers.frames import FatalFrame, Frame, HelloFrame, StartFrame
from dspex.workers.processes.link import Link
from dspex.workers.processes.memory import limit_memory
from dspex.workers.processes.titles import set_title

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


def limited(pool: PoolConfig) -> bool:
    """Hold this process to the memory of its pool; whether the system does that. Before anything of the user's is imported."""
    most = _HOP_THREADS + pool.slots + _OTHER_THREADS
    return pool.memory is not None and limit_memory(int(pool.memory * OVER), most)


def log_as_json(app: str) -> None:
    """Have log lines go to stderr as JSON, which the parent reads."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            with_trace(app),
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _event_first,
            structlog.processors.JSONRenderer(sort_keys=False),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def serve(sock: socket.socket) -> NoReturn:
    """Run what the parent sends over `sock`, until it says stop or ends. The process ends with it."""
    start = receive(sock)
    if isinstance(start, StartFrame):  # else the parent has ended already
        die_with(start.parent)
        set_title("child", f"{start.pool.name}/{start.index}")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        log_as_json(start.pool.app)
        _run(_main(sock, start.pool, limited(start.pool)))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # do not wait for threads of programs, which cannot be cancelled


def main() -> None:
    """Serve over the socket whose number is the argument."""
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)  # a process that a program starts must not keep the socket open
    serve(socket.socket(fileno=fd))


def _event_first(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    return {"event": event.pop("event"), **event}


if __name__ == "__main__":
    main()
