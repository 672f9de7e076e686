"""What a process finds in its environment, and what is kept from it.

Programs of one user can read the environment that another process of theirs began with, for as long as it runs (Linux:
/proc/PID/environ). So keys and logins are in no environment that dspex chooses. A worker's parent begins without them, and
takes them from a file in memory that only it has open; its children get the keys of their pool over their socket.

With the rights of root, or those of a debugger, a program can still look: whoever must not share keys needs another user.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Final

_NAMES: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT"),
        *("VIRTUAL_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD", "MALLOC_ARENA_MAX", "CUDA_VISIBLE_DEVICES", "NO_COLOR"),
        *("PYTHONPATH", "PYTHONHOME", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONNOUSERSITE", "PYTHONUTF8"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    }
)
_PREFIXES: Final = ("COVERAGE_", "LC_", "XDG_")
_DESCRIPTOR: Final = "DSPEX_ENVIRONMENT_FD"  # of the file with the whole environment
_PR_SET_DUMPABLE: Final = 4


def bare(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that any process needs, to find its files, its language and its way out. A proxy's may have a login."""
    return {name: value for name, value in environ.items() if name in _NAMES or name.startswith(_PREFIXES)}


def sealed(environ: Mapping[str, str]) -> tuple[dict[str, str], int | None]:
    """The environment to start a process of ours with, and a descriptor to hand on under which it finds the whole of `environ`;
    the caller closes it. Where the system has no such files (not Linux), or refuses them: `environ` itself and None.
    """
    try:
        descriptor = os.memfd_create("environment") if sys.platform == "linux" else None
    except OSError:
        descriptor = None
    if descriptor is None:
        return dict(environ), None
    with os.fdopen(os.dup(descriptor), "w") as file:
        json.dump(dict(environ), file)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return {**bare(environ), _DESCRIPTOR: str(descriptor)}, descriptor


def seal() -> None:
    """Have this process begin anew with a bare environment, unless it did, and put the whole one where only it can read it.

    To be called before anything else: where it begins anew, it does not return.
    """
    with suppress(ImportError):  # it looks for the name of the process before its environment, which moves when that grows
        import_module("setproctitle").getproctitle()
    if (handed := os.environ.pop(_DESCRIPTOR, None)) is not None:
        with os.fdopen(int(handed)) as file:
            os.environ.update(json.load(file))
    else:
        environ, descriptor = sealed(os.environ)
        if descriptor is not None:
            os.set_inheritable(descriptor, True)
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)
    hide()


def hide() -> None:
    """Keep other processes of this user from reading memory and environment of this one, and from tracing it (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)
