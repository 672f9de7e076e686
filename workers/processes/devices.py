"""Which process of this machine has which GPU: a lock on a file for each, which lasts for as long as the process lives.

Pools know nothing of each other, and may be of several applications and users. So the lock is the system's (flock), on a file
whose name all of them know. Its holder is a worker process: it has the file open from its first moment and never closes it. No
crash of anything can leave a lock behind, and none can take it from a process that still uses the device.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from dspex.bus.errors import ConfigError

FOLDER = Path("/tmp")  # of the machine, not of a user: TMPDIR may be one's own
_MOST = 200  # bytes of what a file says of its holder


class GpuLease:
    """GPUs for one process. `devices`: their numbers; `descriptors`: for the process, which holds the locks by them."""

    def __init__(self) -> None:
        self.devices: list[int] = []
        self.descriptors: list[int] = []

    @property
    def env(self) -> dict[str, str]:
        """What the process finds in its environment."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, self.devices))} if self.devices else {}

    def close(self) -> None:
        """Hold the locks no more in this process; the one that they were made for does."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()


def lease(devices: Sequence[int], count: int, holder: str, folder: Path = FOLDER) -> GpuLease:
    """`count` of the devices that nobody holds. Raises ConfigError (DX140), which says who holds the others.

    `holder`: who they are for, in a few words.
    """
    found = GpuLease()
    taken: list[str] = []
    for device in devices:
        if len(found.devices) == count:
            break
        path = folder / f"dspex-gpu-{device}.lock"
        if (descriptor := _locked(path)) is None:
            taken.append(f"{device} by {_said(path)}")
        else:
            found.devices.append(device)
            found.descriptors.append(descriptor)
            _say(descriptor, holder)
    if len(found.devices) < count:
        found.close()
        held = "; ".join(taken) or "none is listed"
        raise ConfigError(
            f"{holder} needs {count} of the GPUs {', '.join(map(str, devices))}, and not so many are free ({held})",
            code="DX140",
            fix="lower the pool's size, list other devices, or stop who holds them",
        )
    return found


def _locked(path: Path) -> int | None:
    """The file, open and locked; None where another process has the lock. Raises ConfigError where it cannot be opened."""
    try:
        descriptor = _open(path)
    except OSError as error:
        message = f"{path}, which says who has a GPU, cannot be opened: {error.strerror}"
        raise ConfigError(message, code="DX140", fix="remove it, if it is no file of dspex") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _open(path: Path) -> int:
    """Anybody may lock it, and a link that somebody has put there is not followed. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, 0o666)
    except PermissionError:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is no file")
    return descriptor


def _say(descriptor: int, holder: str) -> None:
    with contextlib.suppress(OSError):  # a file of another user that may only be read
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode()[:_MOST], 0)


def _said(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        said = file.read(_MOST).decode(errors="replace")
        return "".join(c for c in said if c.isprintable()) or "another process"
    return "another process"
