"""A small file system of its own for a server's store."""

from __future__ import annotations

import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

CHUNK = bytes(1 << 12)


class SmallDisk(AbstractContextManager["SmallDisk"]):
    """A tmpfs of `megabytes` on `folder`, which is made; with 0 it is a folder as any. Needs the right to mount."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self._folder, self._megabytes = folder, megabytes
        self._ballast = folder / "ballast"

    def __enter__(self) -> SmallDisk:
        self._folder.mkdir(exist_ok=True)
        if self._megabytes:
            mount(self._folder, self._megabytes)
        return self

    def __exit__(self, *error: object) -> None:
        if self._megabytes:
            unmount(self._folder)

    def fill(self) -> None:
        """Take what room there is."""
        try:
            with self._ballast.open("ab", buffering=0) as file:
                while True:
                    file.write(CHUNK)
        except OSError:
            pass  # it is full now

    def empty(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)


def mount(folder: Path, megabytes: int) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], check=True, capture_output=True)


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", folder], check=True, capture_output=True)


def may_mount() -> bool:
    """Whether this process may mount a file system."""
    with TemporaryDirectory() as folder:
        try:
            mount(Path(folder), 1)
        except (OSError, subprocess.CalledProcessError):
            return False
        unmount(Path(folder))
        return True
