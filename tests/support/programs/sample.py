"""Programs that the tests run in real workers: some good, most bad."""

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

import dspy
from pydantic import BaseModel

from dspex.bus.errors import Reject, RetryLater
from dspex.workers import context

LONG = 600  # seconds: longer than any test waits, so that nothing passes because a program ended by itself


class Draft(dspy.Module):
    """Asynchronous, as in the quick start."""

    def __init__(self) -> None:
        super().__init__()
        self.write = dspy.ChainOfThought("text, intent -> reply")

    async def aforward(self, text: str, intent: str) -> Any:
        return await self.write.acall(text=text, intent=intent)


class OwnModel(dspy.Module):
    """Asks models that it makes itself, at `url`, beside that of its profile."""

    def forward(self, url: str, text: str) -> dspy.Prediction:
        with dspy.context(lm=dspy.LM("openai/own", api_base=url, api_key="none", cache=False)):
            return dspy.Predict("text -> reply")(text=text)


class Side(dspy.Module):
    """Asks twice at a time, in threads of DSPy's."""

    def forward(self, text: str) -> Any:
        ask = dspy.Predict("text -> reply")
        return dspy.Parallel(num_threads=2)([(ask, {"text": text}), (ask, {"text": text})])[0]


class Slow(dspy.Module):
    """Synchronous only: runs in a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.write = dspy.Predict("text -> reply")

    def forward(self, text: str) -> Any:
        return self.write(text=text)


class Keyed(dspy.Module):
    """Has a model of its own, with a key."""

    def __init__(self) -> None:
        super().__init__()
        self.write = dspy.Predict("text -> reply")
        self.write.lm = dspy.LM("openai/own", api_key="SECRET", api_base="http://127.0.0.1:9/SECRET")


def interpreter() -> Any:
    """Where code that a model wrote runs in the tests: DSPy's own sandbox needs Deno."""
    return dspy.LocalInterpreter()


def long_enough(inputs: dict[str, Any], found: Any) -> float:
    """A reward: for BestOfN and Refine."""
    return float(len(found.reply) > 10)


class Shouting(dspy.ReAct):
    """Below a class with an asynchronous path, and with a `forward` of its own alone."""

    def __init__(self) -> None:
        super().__init__("text -> reply", tools=[])

    def forward(self, text: str) -> Any:
        return dspy.Prediction(reply=text.upper())


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


def made() -> Any:
    """A factory: no parameters."""
    return dspy.Predict("text -> reply")


async def cancels_others(text: str) -> dict[str, Any]:
    """Cancel all tasks of the process that have `text` in their name, its own among them."""
    for task in asyncio.all_tasks():
        if text in task.get_name():
            task.cancel()
    await asyncio.sleep(LONG)
    return {}


class Chatty(dspy.Module):
    """Says how it goes, also in threads of its own."""

    async def aforward(self, text: str) -> dict[str, Any]:
        context().status("half of it")
        await asyncio.to_thread(context().status, "nearly \ud83d there")
        return {"reply": text}


class Blocking(dspy.Module):
    """Asks a model from a coroutine, as if it were none."""

    async def aforward(self, text: str) -> Any:
        return dspy.Predict("text -> reply")(text=text)


class Twice(dspy.Module):
    """Writes the same output twice, at a time."""

    async def aforward(self, text: str) -> Any:
        ask = dspy.Predict("text -> reply")
        found = await asyncio.gather(ask.acall(text=text), ask.acall(text=f"{text} again"))
        return found[1]


class Remembers(dspy.Module):
    """Says how much of earlier calls it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.write = dspy.Predict("text -> reply")

    def forward(self, text: str) -> dict[str, str]:
        found = len(self.history) + len(self.write.history) + len(dspy.settings.trace or ())
        self.write(text=text)
        return {"reply": str(found)}
