"""Clocks of machines that can be set while processes run."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


class Clocks:
    """One clock for each process, its children included. Needs a C compiler."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._library = folder / "clock.so"
        subprocess.run([compiler() or "cc", "-shared", "-fPIC", "-O1", "-o", self._library, SOURCE, "-ldl"], check=True)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.clock"

    def of(self, name: str) -> dict[str, str]:
        """What the environment of a process needs. Its clock is right at first."""
        self._file(name).write_bytes(struct.pack("q", 0))
        return {"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(self._file(name))}

    def ahead(self, name: str) -> int:
        """By how many seconds a clock is ahead now."""
        return int(struct.unpack("q", self._file(name).read_bytes())[0])

    def set(self, name: str, ahead: int) -> None:
        """From now on a process sees a clock that is `ahead` seconds ahead."""
        with self._file(name).open("r+b") as file:
            file.write(struct.pack("q", ahead))


def compiler() -> str | None:
    return shutil.which("cc")
