"""Clocks of machines that can be set while processes run."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


class Clocks:
    """One clock for each process, its children included. Needs a C compiler: the library of each names the file of its clock,
    because a worker drops the variables that it does not know.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.clock"

    def of(self, name: str) -> dict[str, str]:
        """What the environment of a process needs. Its clock is right at first."""
        self._file(name).write_bytes(struct.pack("q", 0))
        library = self._folder / f"{name}.so"
        if not library.exists():
            options = ["-shared", "-fPIC", "-O1", f'-DCLOCK="{self._file(name)}"', "-o", library, SOURCE, "-ldl"]
            subprocess.run([compiler() or "cc", *options], check=True)
        return {"LD_PRELOAD": str(library)}

    def ahead(self, name: str) -> int:
        """By how many seconds a clock is ahead now."""
        return int(struct.unpack("q", self._file(name).read_bytes())[0])

    def set(self, name: str, ahead: int) -> None:
        """From now on a process sees a clock that is `ahead` seconds ahead."""
        with self._file(name).open("r+b") as file:
            file.write(struct.pack("q", ahead))


def compiler() -> str | None:
    return shutil.which("cc")
