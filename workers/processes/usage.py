"""What processes take, as the parent of a pool sees it."""

from __future__ import annotations

import psutil


def resident(pid: int) -> int:
    """Resident memory of a process in bytes; 0 when it has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
