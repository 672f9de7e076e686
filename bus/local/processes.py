"""Processes of this machine, as engines and pools name themselves to each other."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1
_LOOK: Final = 0.5  # seconds between two looks at the parent


def process() -> dict[str, Any]:
    """This process as heartbeats name it.

    `boot`: of the machine since its start, for two machines may have one host name. `pids`: who gives the numbers, for
    containers share a machine. Both are "" where the system does not tell.
    """
    return {**_machine(), "pid": os.getpid()}


@cache
def _machine() -> dict[str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pids = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        boot = pids = ""
    return {"host": socket.gethostname(), "boot": boot, "pids": pids}


def is_dead(said: Mapping[str, Any]) -> bool:
    """Whether an engine was a process of this machine that is gone: nothing to wait for. False where that is not certain."""
    here = process()
    if not here["boot"] or (said.get("boot"), said.get("pids")) != (here["boot"], here["pids"]):
        return False
    pid = said.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def when_stdin_ends(then: Callable[[], object]) -> None:
    """Call `then`, in a thread, when stdin ends: as it does with the process at its other end, however that ends."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        then()

    threading.Thread(target=wait, daemon=True, name="stdin").start()


def drain_or_end(grace: float) -> None:
    """Drain, as at SIGTERM, and end whatever becomes of that: nobody is left to kill this process."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace + 5.0)
    os._exit(128 + signal.SIGTERM)


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
