"""Where the server of a store is: what lies beside the store, and how other processes read it.

`server.json` says where the server listens. The lock is held by the server process itself, so it is free exactly when the
server is gone, and the file is believed only while the lock is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from dspex.bus.errors import ConfigError
from dspex.bus.local import whole_file
from dspex.bus.local.login import check_folder

HOME = ".dspex"
STOP_TIMEOUT = 20.0  # seconds


def running(home: Path) -> Mapping[str, Any] | None:
    """What `server.json` says (url, pid, version, store, detached), if that server is alive: it holds its lock.

    Raises ConfigError (DX123) where others could have written it.
    """
    try:
        state: dict[str, Any] = json.loads(_state_file(home).read_text())
        file = _lock_file(Path(state["store"])).open()
    except (OSError, ValueError, KeyError):
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            check_folder(home)
            return state
    return None


async def stop_running(home: Path) -> bool:
    """Stop the server that runs there, whoever started it. False where there is none."""
    state = running(home)
    if state is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(state["pid"]), signal.SIGTERM)
    with await lock(Path(state["store"]), STOP_TIMEOUT):
        _state_file(home).unlink(missing_ok=True)
    return True


def write(store: Path, *, url: str, pid: int, version: str, detached: bool) -> None:
    """Tell other processes of the server that has started on `store`. `detached`: it outlives the process that started it."""
    found = {"url": url, "pid": pid, "version": version, "store": str(store), "detached": detached}
    whole_file.write(_state_file(store.parent), json.dumps(found).encode(), mode=0o600)


def forget(store: Path, pid: int | None) -> None:
    """Remove what `write` has written of this server. Another process may have started one on the store meanwhile."""
    file = _state_file(store.parent)
    with contextlib.suppress(OSError, ValueError, KeyError):  # what it says is not believed without the lock
        if json.loads(file.read_text())["pid"] == pid:
            file.unlink()


def _state_file(home: Path) -> Path:
    return home / "server.json"


def _lock_file(store: Path) -> Path:
    return store.with_name(f"{store.name}.lock")


async def lock(store: Path, patience: float) -> IO[str]:
    """The locked lock file of a store. A server that was just stopped may hold it for another moment."""
    _lock_file(store).touch(0o600)
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
