"""Processes of this machine, as engines and pools name themselves to each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any


def process() -> dict[str, Any]:
    """This process as leases and members name it. `pids`: who gives the numbers; containers may share a host's name."""
    try:
        pids = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        pids = ""
    return {"host": socket.gethostname(), "pids": pids, "pid": os.getpid()}


def is_dead(holder: Mapping[str, Any]) -> bool:
    """Whether the holder (of a lease, or a member) was a process of this machine that is gone: nothing to wait for."""
    here = process()
    if (holder.get("host"), holder.get("pids")) != (here["host"], here["pids"]):
        return False
    pid = holder.get("pid")
    if not isinstance(pid, int) or not 0 < pid < 1 << 31:  # not what `process` gives: anybody may write to a bucket
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
