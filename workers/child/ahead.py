"""What is imported once, before the children of a pool are forked: dspex, the programs of the pool, and DSPy if they use it.

A fork copies the memory of a process, one thread and no other, and shares what is open. So a process that is to be forked may
hold nothing that has meaning in one process alone:

* no second thread: in the children it would be gone, with every lock that it held;
* no socket, pipe, poll or file position: two children would read and write on one connection, in each other's turn;
* no device: drivers such as CUDA's do not work in a fork;
* no process of its own, which would be nobody's there.

Importing dspex, DSPy and LiteLLM leaves none of these. What the programs of a user do where they are imported nobody knows: so
it is looked at afterwards, and where they left something, children are started one by one, and each imports for itself.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import stat
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping

from dspex.workers.answerers.lazy_dspy import needed_at_start
from dspex.workers.answerers.refs import Refs
from dspex.workers.config import PoolConfig
from dspex.workers.processes.ending import children_of

_HARMLESS = ("/dev/null", "/dev/urandom", "/dev/random")
_ALWAYS = ("dspex.workers.child.main", "dspex.workers.child.runner", "dspex.workers.answerers.router")
_NATIVE = ("aiohttp", "dspex.operators.native.prompts.chat", "dspex.operators.native.replies.parse_chat")  # at the first call


def import_ahead(pool: PoolConfig) -> str | None:
    """Import what the children of the pool need. Why no child may be forked then, as the end of a sentence; None: each may."""
    before = _open()
    for name in (*_ALWAYS, *(_NATIVE if pool.profiles else ())):
        importlib.import_module(name)
    refs = Refs(pool.name, pool.programs, pool.path)
    _, failed = refs.scan()
    if needed_at_start(pool, refs, failed):
        with contextlib.suppress(ImportError):  # each child finds that again, and says what to do
            importlib.import_module("dspex.workers.dspy.programs")
            importlib.import_module("dspex.workers.dspy.versions.litellm_import").ahead(pool)
    return _unfit(before)


def _unfit(before: Mapping[int, str]) -> str | None:
    if len(threads := [t.name for t in threading.enumerate()]) > 1:
        return f"they start a thread when they are imported ({threads[1]})"
    if len(os.listdir("/proc/self/task")) > 1:
        return "they start a thread of a library when they are imported"
    if children_of(os.getpid()):
        return "they start a process when they are imported"
    if opened := [what for fd, what in _open().items() if before.get(fd) != what and not _shared_safely(fd, what)]:
        return f"they open {opened[0]} when they are imported, and leave it open"
    return None


def _open() -> dict[int, str]:
    """What is open, by file descriptor."""
    found: dict[int, str] = {}
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def _shared_safely(fd: int, what: str) -> bool:
    """Whether several processes may use it at once: a log file, to which each line is appended whole; and the cache that DSPy
    opens before 3.4, which sees by its process id that it was forked, and opens its files anew. Workers do not use it.
    """
    if (cache := os.environ.get("DSPY_CACHEDIR")) and what.startswith(f"{cache}{os.sep}"):
        return True
    import fcntl

    appended = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)
    return what in _HARMLESS or (appended and stat.S_ISREG(os.fstat(fd).st_mode))


class Seen:
    """The files of a user's code, as they were imported."""

    def __init__(self) -> None:
        self._files = {path: _state(path) for path in _own_files()}

    def changed(self) -> str | None:
        """One that has been changed since; None: all are as they were."""
        return next((path for path, state in self._files.items() if _state(path) != state), None)


def _state(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _own_files() -> Iterator[str]:
    """Files of modules that belong neither to Python, nor to what is installed, nor to dspex."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    installed = tuple(f"{os.path.realpath(sysconfig.get_path(kind))}{os.sep}" for kind in kinds)
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path and name.partition(".")[0] not in ("dspex", "__main__") and not os.path.realpath(path).startswith(installed):
            yield path
