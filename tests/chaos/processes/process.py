"""One process of the world: an engine or a pool."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

_LIBC = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@dataclass
class Process:
    """One process under supervision. `lives`: how often it was started; `wanted`: whether it is started again."""

    name: str
    command: list[str]
    folder: Path
    env: dict[str, str]
    wanted: bool = True
    lives: int = 0
    begins: int = 0  # where the log of this life begins
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        self.lives += 1
        self.begins = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=_die_with_parent, start_new_session=True,
            )  # fmt: skip

    def children(self) -> list[int]:
        """Pids of what is below it: the workers of a pool, and what starts them."""
        try:
            return [c.pid for c in psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            os.kill(self.pid, number)

    @property
    def was_ready(self) -> bool:
        """Whether it has said in this life that it is ready."""
        return b'ready","' in self.log.read_bytes()[self.begins :]

    def handles(self, number: signal.Signals) -> bool:
        """Whether it has a handler for a signal by now."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)

    async def ended(self, timeout: float) -> int | None:
        """Its exit code; None where it still runs."""
        end = time.monotonic() + timeout
        while self.alive and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return self.process.poll() if self.process else None


def last_words(log: Path, lines: int = 5) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-lines:])[-1500:]
