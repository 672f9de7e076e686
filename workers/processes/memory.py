"""How much memory a process of a pool may take."""

from __future__ import annotations

import sys

_STACK = 8 << 20  # bytes of a thread's stack, where the system names no limit


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
