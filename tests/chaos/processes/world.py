"""The world of a chaos run: servers, engines and pools as processes of their own, started again when they die.

Every process is started so that the kernel kills it when this one dies (Linux), so nothing is left behind however a run ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from broken.cluster import Cluster
from broken.wire_cutter import WireCutter
from oracle import Ledger
from workload import PARTITIONS, SOURCE

from dspex.bus import nats, subjects
from dspex.bus.errors import BusError
from dspex.bus.local.server import LocalServer
from dspex.bus.port import StreamConfig
from dspex.bus.serving.keys.keyring import Keyring
from processes.clocks import Clocks
from processes.disk import SmallDisk
from processes.process import Process, last_words
from processes.publisher import Publisher

T = TypeVar("T")
HERE = Path(__file__).parents[1]
APP, POOL, EVENTS = "chaos", "lightweight", "EVENTS"
KEY = {"SEAL": "a key of the chaos runs, and of nothing else"}

SETTINGS = """\
app = "{app}"
path = ["{here}"]
server.url = "{url}"
server.replicas = {replicas}
engine.heartbeat = "{heartbeat}s"
lm.main = {lm}
pools.{pool} = {{ size = {size}, slots = 8, restart = {{ max = 10000, within = "60s" }} }}
"""


@dataclass
class World:
    """Args:
    folder: for store, logs and settings.
    lm: the language model profile, as an inline TOML table.
    engines, pools: processes of each. size: workers of a pool.
    wire: put a proxy between them and the server, whose connections can be cut.
    foreign: the source is a stream of somebody else, and not in the application's own.
    partitions, on_gap: of the topology.
    replicas: 3 is a cluster of three servers. heartbeat: of engines, in seconds.
    clocks: give each of them a clock of its own. disk: megabytes of a file system of its own for the server's store.
    sealed: payloads are sealed.
    """

    folder: Path
    lm: str
    engines: int = 2
    pools: int = 1
    size: int = 2
    wire: bool = False
    foreign: bool = False
    partitions: int = PARTITIONS
    on_gap: str = "stop"
    replicas: int = 1
    heartbeat: float = 0.2
    clocks: bool = False
    disk: int = 0
    sealed: bool = False
    done: Counter[str] = field(default_factory=Counter)  # faults, by name
    problems: list[str] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    bursting: asyncio.Event = field(default_factory=asyncio.Event)  # an output of a big event was heard
    over: bool = False  # nothing is missing any more
    away: list[tuple[float, float]] = field(default_factory=list)  # when no majority of the servers ran
    unread: set[str] = field(default_factory=set)  # see Facts
    again: Counter[str] = field(default_factory=Counter)

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        try:
            await self._begin()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _begin(self) -> None:
        if self.replicas == 3:
            self.cluster = await self._stack.enter_async_context(Cluster(self.folder / "nats"))
            self.url = ",".join(self.cluster.urls)
        else:
            self.small = self._stack.enter_context(SmallDisk(self.folder / "nats", self.disk))
            self.server = await self._stack.enter_async_context(LocalServer(self.folder / "nats" / "jetstream", port=None))
            self.url = self.server.url
        self.bus = await insist(lambda: nats.connect(self.url, name="oracle"))
        self._stack.push_async_callback(self.bus.close)
        if self.sealed:
            self.bus.sealing = Keyring(self.bus, APP, "SEAL", KEY)
        if self.foreign:
            await self.make_source()
        self.cutter = WireCutter(self.url.partition(",")[0])
        await self.cutter.start()
        self._stack.push_async_callback(self.cutter.stop)
        self.clock = Clocks(self.folder) if self.clocks else None
        self._write_settings()
        for _ in range(self.engines):
            self.add_engine()
        for i in range(self.pools):
            self._add(f"pool-{i}", [sys.executable, "-m", "dspex", "--json", "worker", POOL])
        self._keeper = asyncio.create_task(self._keep())

    def watched(self, ledger: Ledger, publisher: Publisher) -> None:
        """Faults of the source look at what was published, and at what has come of it."""
        self.ledger, self.publisher = ledger, publisher

    async def make_source(self) -> None:
        """Make the stream of the source, which is nobody's."""
        await insist(lambda: self.bus.ensure_stream(StreamConfig(EVENTS, [SOURCE], replicas=self.replicas)))

    def _write_settings(self) -> None:
        text = SETTINGS.format(
            app=APP, here=HERE, url=self.cutter.url if self.wire else self.url, replicas=self.replicas,
            heartbeat=self.heartbeat, lm=self.lm, pool=POOL, size=self.size,
        )  # fmt: skip
        (self.folder / "dspex.toml").write_text(text + ('engine.encrypt_key_env = "SEAL"\n' if self.sealed else ""))

    def add_engine(self) -> None:
        """Another engine."""
        number = sum(p.name.startswith("engine") for p in self.processes)
        command = [sys.executable, "-m", "dspex", "--json", "-v", "run", "workload:topology", "--pools", "none", "--no-server"]
        self._add(f"engine-{number}", command)

    def _add(self, name: str, command: list[str]) -> None:
        env = {
            **os.environ,
            "OPENAI_API_KEY": "stand-in",
            **KEY,
            "CHAOS_TOPOLOGY": f"{self.partitions} {self.on_gap}",
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            **(self.clock.of(name) if self.clock else {}),
        }
        process = Process(name, command, self.folder, env)
        process.start()
        self.processes.append(process)

    @contextmanager
    def no_majority(self) -> Iterator[None]:
        """While too few of the servers run, or have no room."""
        began = time.time()
        try:
            yield
        finally:
            self.away.append((began, time.time()))

    async def leader(self) -> str:
        """The server that leads the application's stream, once all replicas have everything."""
        subject = f"$JS.API.STREAM.INFO.{subjects.stream(APP)}"
        while True:
            answer = json.loads((await insist(lambda: self.bus.request(subject, b""))).data)
            cluster = answer.get("cluster", {})
            if cluster.get("leader") and all(r["current"] and not r.get("offline") for r in cluster["replicas"]):
                return str(cluster["leader"])
            await asyncio.sleep(0.2)

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
        with self.no_majority():
            await self.server.kill()
            await self.server.start()

    async def __aexit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._keeper.cancel()
        for p in self.processes:
            p.wanted = False
        await self.drain(5.0 if e else 40.0)
        await self._stack.aclose()

    async def drain(self, timeout: float) -> None:
        """SIGTERM to all: engines first, then pools. What does not end is killed, and is a problem."""
        for kind in ("engine", "pool"):
            those = [p for p in self.processes if p.name.startswith(kind)]
            for p in those:
                p.wanted = False
                p.signal(signal.SIGCONT)
            for p in those:
                while p.alive and not p.handles(signal.SIGTERM):  # else it dies of it, as any program that just starts
                    await asyncio.sleep(0.02)
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


def profile(**options: Any) -> str:
    """A language model profile as an inline TOML table."""
    return "{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in options.items()) + " }"


async def insist(do: Callable[[], Awaitable[T]]) -> T:
    """Do something until the servers let it."""
    while True:
        try:
            return await do()
        except BusError:
            await asyncio.sleep(0.2)
