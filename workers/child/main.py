"""A worker's child process: `python -m dspex.workers.child.main FD`. Runs programs, does not use NATS.

Three things must not depend on what a program does: that the parent's end is noticed, that frames stay whole, and that a
cancel is read. So a thread of its own reads the socket, and ends the process when the socket does; the kernel does the same
(PR_SET_PDEATHSIG) for a program that holds the GIL in C. Programs run on the main thread's loop, or in threads, and what they
raise there ends the task that raised it, and never the loop.
"""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus.errors import DspexError
from dspex.bus.tasks import Tasks
from dspex.workers.config import OVER, PoolConfig
from dspex.workers.frames import FatalFrame, Frame, HelloFrame, Pipe, StartFrame
from dspex.workers.processes import die_with, limit_memory

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

_HOP_THREADS = 64  # DSPy's acall goes through the loop's default executor several times a call
_OTHER_THREADS = 16  # of the process itself, and of libraries


def _listen(pipe: Pipe, loop: asyncio.AbstractEventLoop, handle: Callable[[Frame], None]) -> None:
    while (frame := pipe.receive()) is not None:
        loop.call_soon_threadsafe(handle, frame)
    os._exit(0)  # the parent has ended: nobody would read an answer


async def _main(pipe: Pipe, pool: PoolConfig, limited: bool) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_HOP_THREADS, thread_name_prefix="dspy"))
    early: list[Frame] = []  # that come before there is a runner
    handle: Callable[[Frame], None] = early.append
    threading.Thread(target=_listen, args=(pipe, loop, lambda f: handle(f)), daemon=True, name="frames").start()
    try:
        from dspex.workers.answerers.router import Router  # here, so that the socket is read while they are imported
        from dspex.workers.child.runner import Runner

        router = Router(pool)
    except DspexError as error:
        pipe.send(FatalFrame(error.as_dict()))
        return
    runner = Runner(pipe, router)
    handle = runner.handle
    for frame in early:
        runner.handle(frame)
    found, failed = router.scan()
    pipe.send(HelloFrame(os.getpid(), router.dspy_version, platform.python_version(), found, failed, limited))
    await runner.wait()
    await router.close()


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
    pipe = Pipe(socket.socket(fileno=fd))
    start = pipe.receive()
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
    _run(_main(pipe, start.pool, limited))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # do not wait for threads of programs, which cannot be cancelled


def _event_first(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    return {"event": event.pop("event"), **event}


if __name__ == "__main__":
    main()
