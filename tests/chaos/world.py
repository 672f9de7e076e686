"""The world of a chaos run: a server, engines and pools as processes of their own, started again when they die.

Every process is started so that the kernel kills it when this one dies (Linux), so nothing is left behind however a run ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from broken.wire_cutter import WireCutter
from workload import SOURCE

from dspex.bus import nats
from dspex.bus.local.server import LocalServer
from dspex.bus.port import StreamConfig

HERE = Path(__file__).parent
APP, POOL = "chaos", "lightweight"
_LIBC = ctypes.CDLL(None)

SETTINGS = """\
app = "{app}"
path = ["{here}"]
server.url = "{url}"
engine.heartbeat = "200ms"
lm.main = {lm}
pools.{pool} = {{ size = {size}, slots = 8, restart = {{ max = 10000, within = "60s" }} }}
"""


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
        """Pids of its own children: the workers of a pool."""
        try:
            return [c.pid for c in psutil.Process(self.pid).children()]
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


@dataclass
class World:
    """Args:
    folder: for store, logs and settings.
    lm: the language model profile, as an inline TOML table.
    engines, pools: processes of each. size: workers of a pool.
    wire: put a proxy between them and the server, whose connections can be cut.
    foreign: the source is a stream of somebody else, and not in the application's own.
    """

    folder: Path
    lm: str
    engines: int = 2
    pools: int = 1
    size: int = 2
    wire: bool = False
    foreign: bool = False
    topology: str = "workload:topology"
    done: Counter[str] = field(default_factory=Counter)  # faults, by name
    problems: list[str] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    bursting: asyncio.Event = field(default_factory=asyncio.Event)  # an output of a big event was heard
    over: bool = False  # nothing is missing any more

    async def __aenter__(self) -> Self:
        self.server = LocalServer(self.folder / "nats" / "jetstream", port=None)
        await self.server.start()
        self.bus = await nats.connect(self.server.url, name="oracle")
        if self.foreign:
            await self.bus.ensure_stream(StreamConfig("EVENTS", [SOURCE]))
        self.cutter = WireCutter(self.server.url)
        await self.cutter.start()
        self._write_settings()
        python = [sys.executable, "-m", "dspex", "--json"]
        for i in range(self.engines):
            self._add(f"engine-{i}", [*python, "-v", "run", self.topology, "--pools", "none", "--no-server"])
        for i in range(self.pools):
            self._add(f"pool-{i}", [*python, "worker", POOL])
        self._keeper = asyncio.create_task(self._keep())
        return self

    def _write_settings(self) -> None:
        url = self.cutter.url if self.wire else self.server.url
        text = SETTINGS.format(app=APP, here=HERE, url=url, lm=self.lm, pool=POOL, size=self.size)
        (self.folder / "dspex.toml").write_text(text)

    def _add(self, name: str, command: list[str]) -> None:
        env = {
            **os.environ,
            "OPENAI_API_KEY": "stand-in",
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        }
        process = Process(name, command, self.folder, env)
        process.start()
        self.processes.append(process)

    def of(self, kind: str) -> list[Process]:
        """The processes of a kind, "engine" or "pool", that live now."""
        return [p for p in self.processes if p.name.startswith(kind) and p.alive]

    async def _keep(self) -> None:
        """Start again what died, as a service manager does."""
        while True:
            await asyncio.sleep(0.1)
            for p in self.processes:
                if p.wanted and not p.alive:
                    self._ended(p)
                    p.start()

    def _ended(self, p: Process) -> None:
        code = p.process.returncode if p.process else None
        found_no_server = code == 4 and not p.was_ready
        if code not in (0, -signal.SIGKILL) and not found_no_server:
            self.problems.append(f"{p.name} ended with {code}; its last words: {last_words(p.log)}")

    async def restart_server(self) -> None:
        """SIGKILL, and back on the same port and store."""
        await self.server.kill()
        await self.server.start()

    async def __aexit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._keeper.cancel()
        for p in self.processes:
            p.wanted = False
        await self.drain(5.0 if e else 40.0)
        await self.bus.close()
        await self.cutter.stop()
        await self.server.stop()

    async def drain(self, timeout: float) -> None:
        """SIGTERM to all: engines first, then pools. What does not end is killed, and is a problem."""
        for kind in ("engine", "pool"):
            those = [p for p in self.processes if p.name.startswith(kind)]
            for p in those:
                p.wanted = False
                p.signal(signal.SIGCONT)
                p.signal(signal.SIGTERM)
            for p in those:
                code = await p.ended(timeout)
                if code is None:
                    p.signal(signal.SIGKILL)
                    await p.ended(5.0)
                if code not in (0, -signal.SIGKILL):
                    self.problems.append(f"{p.name} did not drain: exit code {code}; its last words: {last_words(p.log)}")

    def logged(self, process: Process, words: str) -> list[str]:
        """Lines of a process's log that have these words."""
        return [line for line in process.log.read_text(errors="replace").splitlines() if words in line]


def last_words(log: Path, lines: int = 5) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-lines:])[-1500:]


def profile(**options: Any) -> str:
    """A language model profile as an inline TOML table."""
    return "{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in options.items()) + " }"
