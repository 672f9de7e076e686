"""Functions that the tests run in real workers: some good, most bad. A pool of them alone imports no DSPy."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import stat
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dspex.bus.errors import Reject, RetryLater
from dspex.workers import context

LONG = 600  # seconds: longer than any test waits, so that nothing passes because a program ended by itself


def long_enough(inputs: dict[str, Any], found: Any) -> float:
    """A reward: for BestOfN and Refine."""
    return float(len(found.reply) > 10)


class Answer(BaseModel):
    reply: str
    score: float


def pydantic_answer(text: str) -> Answer:
    return Answer(reply=text.upper(), score=0.5)


async def echo(text: str) -> dict[str, Any]:
    return {"reply": text, "extra": "not asked for"}


def pid(text: str) -> dict[str, Any]:
    return {"reply": os.getpid()}


def raises(text: str) -> dict[str, Any]:
    raise ValueError("a bug in the program " + "x" * 20_000)


def exits(text: str) -> dict[str, Any]:
    sys.exit(3)


class _Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("this exception cannot say what it is")


def raises_silently(text: str) -> dict[str, Any]:
    raise _Silent


class _Unmade(Reject):
    def __init__(self) -> None:
        pass


def raises_unmade(text: str) -> dict[str, Any]:
    raise _Unmade


async def leaks_a_cancellation(text: str) -> dict[str, Any]:
    raise asyncio.CancelledError


async def _exits() -> None:
    sys.exit(3)


async def exits_in_a_task(text: str) -> dict[str, Any]:
    await asyncio.create_task(_exits())
    return {}


async def exits_beside(text: str) -> dict[str, Any]:
    """A task that it does not wait for, and a callback of its loop, call `sys.exit`."""
    beside = asyncio.create_task(_exits())
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.wait([beside])
    await asyncio.sleep(0)
    return {"reply": text}


async def interrupts(text: str) -> dict[str, Any]:
    raise KeyboardInterrupt


class _NoException(BaseException):
    pass


def raises_no_exception(text: str) -> dict[str, Any]:
    raise _NoException


def retry_later(text: str) -> dict[str, Any]:
    raise RetryLater("the shop is closed", after=7.5)


def reject(text: str) -> dict[str, Any]:
    raise Reject("not for us")


def dies(text: str) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def prints(text: str) -> dict[str, Any]:
    print("printed by a program", text)  # noqa: T201
    os.write(1, b"written to fd 1\n")
    return {"reply": "ok"}


def writes_frames(text: str) -> dict[str, Any]:
    """Write bytes to the sockets of the process, as hex, and go on."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, bytes.fromhex(text))
    time.sleep(LONG)
    return {}


def prints_lines(text: str) -> dict[str, Any]:
    """Print the lines of `text`, and then more than a pipe holds."""
    sys.stdout.write(f"{text}\n" + f"{'and so on ' * 100}\n" * 200)
    sys.stdout.flush()
    return {"reply": "printed"}


def status(text: str) -> dict[str, Any]:
    call = context()
    call.status("half way")
    call.log.info("logged by a program", seen=text)
    return {"reply": f"{call.call} {call.run} {call.session} {call.attempt}"}


async def sleeps(text: str) -> dict[str, Any]:
    context().status("running")
    await asyncio.sleep(LONG)
    return {}


def blocks(text: str) -> dict[str, Any]:
    context().status("running")
    time.sleep(LONG)
    return {}


async def blocks_the_loop(text: str) -> dict[str, Any]:
    time.sleep(LONG)
    return {}


async def holds_the_gil(text: str) -> dict[str, Any]:
    """Sleeps in C without giving the GIL up: no thread of the process runs any more."""
    context().status("running")
    ctypes.PyDLL(None).sleep(LONG)
    return {}


def environment(text: str) -> dict[str, Any]:
    """What this process has and what /proc says of it and, by their numbers in `text`, of others: `NAME=value`, each."""
    found = [Path("/proc", number, "environ").read_bytes() for number in ("self", *text.split())]
    own = [f"{name}={value}" for name, value in os.environ.items()]
    return {"reply": [*own, *(v for one in found for v in one.decode().split("\0") if v)]}


def big(text: str) -> dict[str, Any]:
    return {"reply": "x" * int(text)}


def length(text: str) -> dict[str, Any]:
    return {"reply": str(len(text))}


def eats_memory(text: str) -> dict[str, Any]:
    """Keep as many MiB; after that, as many seconds pass as a second number says."""
    size, _, seconds = text.partition(" ")
    eats_memory.kept = bytearray(b"x") * (int(size) << 20)  # type: ignore[attr-defined]
    time.sleep(int(seconds or 0))
    return {"reply": os.getpid()}


async def cancels_others(text: str) -> dict[str, Any]:
    """Cancel all tasks of the process that have `text` in their name, its own among them."""
    for task in asyncio.all_tasks():
        if text in task.get_name():
            task.cancel()
    await asyncio.sleep(LONG)
    return {}
