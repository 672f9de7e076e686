"""How the processes of a pool end: with their parent, and at once when they must."""

from __future__ import annotations

import asyncio.subprocess
import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Be killed by the kernel when the parent ends, whatever this process does then (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def kill(process: asyncio.subprocess.Process) -> None:
    """SIGKILL, if it still runs.

    Not `process.kill()`: that looks first whether the process has ended, which takes its exit code away from asyncio's own
    watcher, and then every such death looks like exit code 255.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
