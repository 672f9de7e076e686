"""How the processes of a pool end: with their parent, and at once when they must."""

from __future__ import annotations

import asyncio.subprocess
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_LOOK = 0.5  # seconds between two looks
_STACK = 8 << 20  # bytes of a thread's stack, where the system names no limit


def die_with(parent: int) -> None:
    """End when the parent does, whatever this process does then: the kernel sees to it (Linux), or a thread that looks."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_look, args=(parent,), daemon=True, name="parent").start()
    if os.getppid() != parent:
        os._exit(1)


def _look(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def limit_memory(memory: int, threads: int) -> bool:
    """Refuse this process more data than `memory` bytes and the stacks of so many threads; whether that holds (Linux).

    What it allocates then fails with a MemoryError. The limit is for data: files and devices that are mapped are not counted.
    """
    if sys.platform != "linux":
        return False
    import resource

    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    most = memory + threads * (_STACK if stack == resource.RLIM_INFINITY else stack)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most if hard == resource.RLIM_INFINITY else min(most, hard)))
    except (ValueError, OSError):  # a lower one holds already
        return False
    return True


def kill(process: asyncio.subprocess.Process) -> None:
    """SIGKILL, if it still runs.

    Not `process.kill()`: that looks first whether the process has ended, which takes its exit code away from asyncio's own
    watcher, and then every such death looks like exit code 255.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
