"""What processes take, as the parent of a pool sees it."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from dspex.workers.processes.ending import children_of


def resident(pid: int) -> int:
    """Resident memory of a process in bytes; 0 when it has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def below(pid: int) -> list[int]:
    """Process ids of all that is below a process: what it has started, and what those have."""
    if sys.platform != "linux":
        try:
            return [process.pid for process in psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
    found: list[int] = []
    to_see = [pid]
    while to_see:
        more = children_of(to_see.pop())
        found += more
        to_see += more
    return found


def taken(pid: int) -> int:
    """Memory in bytes of a worker and of what its programs have started.

    Of those, what a process shares with others counts in part only: a program that forks has its memory once.
    """
    return resident(pid) + sum(map(_own_part, below(pid)))


def _own_part(pid: int) -> int:
    """The proportional set size of a process; its resident memory where the system does not tell that."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return resident(pid)
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:")), 0)
