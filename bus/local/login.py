"""The login of the local server: a password in a file that only its owner can read.

Loopback is no border: every user of the machine can connect there, and who can publish can call programs that run as the
engine's user.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from dspex.bus.errors import ConfigError

USER = "dspex"


def file_of(home: Path) -> Path:
    """Where the password of the server in `home` lies."""
    return home / "password"


def check_folder(home: Path) -> None:
    """Raise ConfigError (DX123) where others could have put what lies in `home`: another password, or another server."""
    found = home.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise ConfigError(
            f"others can write to the folder of the local server: {home}",
            code="DX123",
            fix=f"take it for yourself (chown, chmod 700 {home}), or name another one: server.local.store",
        )


def make(home: Path) -> str:
    """The password of the server in `home`; made where there is none. Raises ConfigError as `read`."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_folder(home)
    new = home / f"password.{secrets.token_hex(8)}"
    with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(32))
    try:
        # Of two processes that begin at once one is first, and nobody ever reads half of a password.
        with contextlib.suppress(FileExistsError):
            os.link(new, file_of(home))
    finally:
        new.unlink()
    return read(home)


def read(home: Path) -> str:
    """The password. Raises ConfigError (DX123) where it cannot be read, or others can read it."""
    file = file_of(home)
    try:
        check_folder(home)
        with file.open() as opened:
            found, password = os.fstat(opened.fileno()), opened.read().strip()
    except OSError as e:
        raise ConfigError(
            f"the password of the local server cannot be read: {file}: {e.strerror}",
            code="DX123",
            fix="work as the user whose server it is, or name a server of your own: --server nats://host:4222",
        ) from e
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077 or not password:
        raise ConfigError(
            f"others could read or have written the password of the local server: {file}",
            code="DX123",
            fix=f"stop the server (dspex server stop) and remove the file: rm {file}; the next start makes another one",
        )
    return password
