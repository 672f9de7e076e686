"""Groups of processes that the kernel holds to a share of the CPU and to memory: cgroup v2, one for each worker (Linux).

A process may make groups where it was given the right to: below the group of a systemd unit with `Delegate=yes`, or below the
one above its own with `DelegateSubgroup=` too, or as root. A group with groups below it that have limits holds no processes
itself. So a process that is alone in its group goes down into a group of its own first; one that is not uses the group above,
where that is empty.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

PERIOD = 100_000  # microseconds in which a share of the CPU is counted
_PARENT = "dspex-parent"
_OURS = re.compile(r"dspex-(\d+)-")


class Unavailable(Exception):
    """No group can be made here; the text is the reason, as the end of a sentence."""


class Groups:
    """Where the groups of this process's workers are. `base`: the folder of the group that they are below."""

    def __init__(self, base: Path) -> None:
        self._base = base
        for old in base.glob("dspex-*-*"):
            if (found := _OURS.match(old.name)) and not Path("/proc", found[1]).exists():
                with contextlib.suppress(OSError):  # not empty: what is in it has survived its parent
                    old.rmdir()

    @classmethod
    def here(cls, controllers: Sequence[str], proc: Path = Path("/proc/self")) -> Groups:
        """Below or beside this process's own group, with these controllers ("cpu", "memory"). Raises Unavailable.

        `proc`: what the system says of this process.
        """
        mount = _mount(proc)
        if mount is None:
            raise Unavailable("this system has no cgroup v2")
        path = next((line[3:] for line in (proc / "cgroup").read_text().splitlines() if line.startswith("0::")), "/")
        own, why = mount / path.strip("/"), ""
        candidates = [own.parent] if own.name == _PARENT else [own] if own == mount else [own, own.parent]
        for base in candidates:
            try:
                _enable(base, controllers, alone=base == own)
            except OSError as error:
                why = why or f"{base} cannot be written ({error.strerror})"
            except Unavailable as reason:
                why = why or str(reason)
            else:
                return cls(base)
        raise Unavailable(why)

    def make(self, name: str, *, cpu: float | None, memory: int | None) -> Group:
        """A group for one worker. `cpu`: cores; `memory`: bytes, of the worker and all that it starts. Raises OSError."""
        path = self._base / f"dspex-{os.getpid()}-{name}"
        path.mkdir()
        if cpu is not None:
            (path / "cpu.max").write_text(f"{int(cpu * PERIOD)} {PERIOD}")
        if memory is not None:
            (path / "memory.max").write_text(str(memory))
            (path / "memory.oom.group").write_text("1")
        return Group(path)


class Group:
    """One of them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, pid: int) -> None:
        """Put a process into it; what that starts from now on is in it, too. Raises OSError."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def remove(self) -> bool:
        """Remove it; whether it is gone. It is not while something in it has not ended."""
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


def _mount(proc: Path) -> Path | None:
    for line in (proc / "mounts").read_text().splitlines():
        _, where, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(where)
    return None


def _enable(base: Path, controllers: Sequence[str], *, alone: bool) -> None:
    """Have groups below `base` get these controllers. Raises Unavailable, OSError."""
    has = (base / "cgroup.controllers").read_text().split()
    if missing := [name for name in controllers if name not in has]:
        raise Unavailable(f"{base} has no controller {missing[0]}")
    wanted = [name for name in controllers if name not in (base / "cgroup.subtree_control").read_text().split()]
    if not wanted:
        return
    inside = (base / "cgroup.procs").read_text().split()
    if alone and inside == [str(os.getpid())]:
        (base / _PARENT).mkdir(exist_ok=True)
        (base / _PARENT / "cgroup.procs").write_text(str(os.getpid()))
    elif inside:
        raise Unavailable(f"{base} has other processes in it")
    (base / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted))
