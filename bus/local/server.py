"""A nats-server of our own: started, watched and stopped, on one store, with no way to be left behind.

How it becomes a process that stops with us is `launch`; how other processes find it is `state`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, Literal, Self

from dspex.bus.errors import BusError
from dspex.bus.local import launch, probe, state, whole_file
from dspex.bus.settings.duration import Duration

READY_TIMEOUT = 20.0  # seconds; recovering a large store takes some


class LocalServer:
    """A nats-server on loopback with JetStream.

    Args:
        store: folder of the streams; made if missing.
        port: taken if it is free, else a free one; None or -1: any free one. Later starts take the same again.
        sync_interval: how often the server syncs to disk; "always" for each write.
        extra_config: lines for its configuration file.
        max_file: bytes that all streams may have together; None: the server's default.
        user, password: required of clients; None: anyone on this machine may connect.
        detached: outlive this process (`dspex server start`).

    Raises (from start): ConfigError where there is no nats-server or another one has the store, BusError where it did
    not start, with its last words.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        *,
        port: int | None = 4222,
        sync_interval: Duration | Literal["always"] = "2m",
        extra_config: str = "",
        max_file: int | None = None,
        user: str | None = None,
        password: str | None = None,
        detached: bool = False,
    ) -> None:
        self.store = Path(store).absolute()
        self._wanted = None if port in (None, -1, 0) else port
        self._port: int | None = None
        self._sync = sync_interval
        self._extra = extra_config
        self._max_file = max_file
        self._login = (user, password)
        self._detached = detached
        self._process: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._version = ""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """`nats://127.0.0.1:PORT`. The port stays the same over restarts."""
        if self._port is None:
            raise RuntimeError("the server was never started")
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Of the nats-server itself."""
        if self._pid is None:
            raise RuntimeError("the server is not running")
        return self._pid

    @property
    def version(self) -> str:
        """As the server reports it, e.g. "2.15.1"."""
        return self._version

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        return self.store.with_name(f"{self.store.name}.log")

    @property
    def _config(self) -> Path:
        return self.store.with_name(f"{self.store.name}.conf")

    # -- start and stop
    async def start(self) -> None:
        """Start, and return once JetStream answers."""
        binary = launch.find_binary()
        await self._end(signal.SIGTERM)
        self.store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.store.mkdir(mode=0o700, exist_ok=True)
        lock = await state.lock(self.store, state.STOP_TIMEOUT if self._port else 0.5)
        try:
            for tries_left in (2, 1, 0):
                port = self._port or launch.free_port(self._wanted)
                process = self._launch(binary, port, lock)
                if await self._ready(process, port, again=tries_left > 0 and self._port is None):
                    break
            state.write(self.store, url=self.url, pid=self.pid, version=self.version, detached=self._detached)
        except BaseException:  # cancelled, or the disk is full: no other process would know of the server
            await self.kill()
            raise
        finally:
            lock.close()  # if the server runs, it holds the lock now

    async def stop(self) -> None:
        """SIGTERM, and return once it is gone. Nothing to do where it is not running."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL, as a crash does it. `start()` brings it back on the same port and store."""
        await self._end(signal.SIGKILL)

    async def died(self) -> None:
        """Returns when the server is not running any more, whatever ended it."""
        while self.running:  # noqa: ASYNC110  waiting for a process in a thread could not be cancelled
            await asyncio.sleep(0.1)

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, how)
        try:
            await asyncio.to_thread(process.wait, state.STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            await asyncio.to_thread(process.wait)
        if process.stdin:
            process.stdin.close()
        pid, self._pid = self._pid, None
        state.forget(self.store, pid)

    def _launch(self, binary: str, port: int, lock: IO[str]) -> subprocess.Popen[bytes]:
        text = launch.configuration(
            self.store, port, sync_interval=self._sync, max_file=self._max_file, login=self._login, extra=self._extra
        )
        whole_file.write(self._config, text.encode(), mode=0o600)  # there may be a password in it
        for left in self.store.parent.glob("nats-server_*.ports"):  # by a server that was killed
            left.unlink()
        if self._port is None:
            self.log.unlink(missing_ok=True)
            self.log.touch(mode=0o600)
        how = launch.detached if self._detached else launch.supervised
        process, self._pid = how([binary, "-c", str(self._config)], self.log, lock)
        self._process = process
        return process

    async def _ready(self, process: subprocess.Popen[bytes], port: int, *, again: bool) -> bool:
        """Wait until JetStream answers. False, with `again` only: another process took the port meanwhile."""
        user, password = self._login
        end = time.monotonic() + READY_TIMEOUT
        why = "no answer"
        while process.poll() is None and time.monotonic() < end:
            if not launch.listens(self.store, self.pid):  # who else listens there would be told the password
                await asyncio.sleep(0.02)
                continue
            try:
                found = await probe.ask("127.0.0.1", port, user=user, password=password, timeout=1.0)
            except (OSError, TimeoutError, EOFError, ValueError) as e:
                why = str(e) or type(e).__name__
                await asyncio.sleep(0.02)
                continue
            if found.jetstream is not None:
                self._port, self._version = port, found.version
                return True
            why = "JetStream does not answer yet"
            await asyncio.sleep(0.02)
        words = launch.last_words(self.log)
        await self.kill()
        if "address already in use" in words and again:
            return False
        raise BusError(
            f"the local nats-server did not start ({why}); its last words:\n{words}",
            code="DX413",
            fix=f"correct what it complains about; its configuration is {self._config}",
        )

    # -- others
    @classmethod
    def find(cls, root: str | os.PathLike[str]) -> str | None:
        """URL of the server that runs on `root`/.dspex; None where there is none."""
        found = state.running(Path(root) / state.HOME)
        return str(found["url"]) if found else None
