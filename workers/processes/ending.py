"""How the processes of a pool end: with those that started them, at once when they must, and with all that they started.

Programs start processes too, and may put those into sessions of their own. So no group of processes, and no environment, says
whose they are. What says it is the kernel: a process whose parent has died gets the next *subreaper* above it as its parent.
Workers are subreapers, so what their programs leave behind stays below them; so is the process that starts workers, and the
parent of a pool. What a process has as a child and did not start is left of one that died, and is killed (Linux; elsewhere it
lives on).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Collection
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_PAUSE = 0.05  # seconds until a process that is being started is known

_ours: list[asyncio.subprocess.Process] = []
_starting = 0
_adopts = False


def adopt() -> None:
    """Become the parent of what processes below this one leave behind (Linux)."""
    global _adopts
    if sys.platform == "linux":
        _adopts = ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1) == 0


def children_of(pid: int) -> list[int]:
    """Process ids of the children of a process, those that wait to be reaped too; none where it has ended (Linux)."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with (
                contextlib.suppress(FileNotFoundError, ProcessLookupError),
                open(f"/proc/{pid}/task/{thread}/children") as file,
            ):
                found += map(int, file.read().split())
    return found


def kill_all(pids: Collection[int]) -> None:
    """SIGKILL to those that still run."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# -- of a pool's parent ----------------------------------------------------------------------------------------------
async def started(*command: str, **options: Any) -> asyncio.subprocess.Process:
    """Start a process, as asyncio does, in a session of its own; `end_left` knows that it is ours."""
    global _starting
    _starting += 1
    try:
        process = await asyncio.create_subprocess_exec(*command, start_new_session=True, **options)
        _ours[:] = [*(p for p in _ours if p.returncode is None), process]
    finally:
        _starting -= 1
    return process


async def end_left() -> None:
    """Kill and reap what processes that died have left behind: what this process has adopted, and did not start itself.

    Only for a process that starts others through `started` alone; without effect in one that did not call `adopt`.
    """
    while _adopts:
        if _starting:  # a process of ours that `_ours` does not have yet
            await asyncio.sleep(_PAUSE)
            continue
        left = set(children_of(os.getpid())) - {p.pid for p in _ours}
        if not left:
            return
        kill_all(left)
        await asyncio.to_thread(_reap, left)


def _reap(pids: Collection[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def kill(process: asyncio.subprocess.Process) -> None:
    """SIGKILL, if it still runs.

    Not `process.kill()`: that looks first whether the process has ended, which takes its exit code away from asyncio's own
    watcher, and then every such death looks like exit code 255.
    """
    if process.returncode is None:
        kill_all([process.pid])
