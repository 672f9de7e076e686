"""The process that starts the children of a pool: `python -m dspex.workers.child.zygote FD`.

It has imported once what every child needs, and forks one when the parent asks for it: a further child is ready in a tenth of
a second, and shares most of its memory with the others. Where a fork is not safe (`ahead`), or is not wanted, it starts
children by `exec`, and is only their parent.

It is the one that reaps them, and that kills what they leave behind (`processes.ending`). It ends when its socket does: the
pool's parent has ended, however that died. Then it kills all that is left below it.

One thread, no loop, no library that has either: whatever this process has, its children have.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from dspex.workers.child.ahead import Seen, import_ahead
from dspex.workers.child.main import limited, log_as_json, serve
from dspex.workers.child.receiving import receive
from dspex.workers.config import PoolConfig
from dspex.workers.frames import StartFrame
from dspex.workers.processes.ending import adopt, children_of, kill_all
from dspex.workers.processes.titles import set_title

_READ = 65536
_FDS = 32  # descriptors that come with one read, at most
_STDOUT, _STDERR = 1, 2


@dataclass(frozen=True)
class Newborn:
    """What a child begins with. `env`: variables besides those of the zygote."""

    sock: socket.socket
    env: Mapping[str, str]


class Zygote:
    """Starts children, reaps them, and tells the parent.

    The parent sends lines of JSON, each with the descriptors it needs:

        {"birth": NUMBER, "env": {…}, "fds": COUNT}   the child's socket, stdout, stderr, and what it keeps open while it lives
        {"kill": NUMBER}

    It gets such lines back:

        {"ready": true, "unfit": WHY}       first; WHY no child can be forked, or null
        {"born": NUMBER, "pid": PID}
        {"stale": NUMBER, "file": PATH}     instead, where a file of the programs has changed
        {"refused": NUMBER, "why": TEXT}    instead, where the system starts no more processes
        {"ended": NUMBER, "code": CODE}
    """

    def __init__(self, control: socket.socket, fork: bool) -> None:
        self._control, self._fork = control, fork
        self._numbers: dict[int, int] = {}  # by process id
        self._lines = b""
        self._fds: deque[int] = deque()
        self._seen = Seen()
        self._woken, wake = socket.socketpair()
        for end in (self._woken, wake):
            end.setblocking(False)
        self._wake = wake
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> Newborn:
        """Serve until the parent ends. Returns in a forked child, and only there."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._woken.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(_READ)
                self._reap()
            if self._control.fileno() in ready and (born := self._read()) is not None:
                return born

    def tell(self, **said: object) -> None:
        """Tell the parent."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended: the next read says so
            self._control.sendall(json.dumps(said).encode() + b"\n")

    def end(self) -> NoReturn:
        """Kill all that is below this process, and end."""
        while True:
            kill_all(children_of(os.getpid()) or list(self._numbers))
            try:
                self._numbers.pop(os.waitpid(-1, 0)[0], None)
            except ChildProcessError:
                os._exit(0)

    def _read(self) -> Newborn | None:
        """Do what the parent asks. In a forked child: what it begins with."""
        try:
            data, fds, _, _ = socket.recv_fds(self._control, _READ, _FDS)
        except ConnectionResetError:
            self.end()
        if not data:
            self.end()
        self._fds.extend(fds)
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            asked = json.loads(line)
            if "birth" in asked:
                if (born := self._birth(asked["birth"], asked["env"], asked["fds"])) is not None:
                    return born
            else:
                kill_all([pid for pid, number in self._numbers.items() if number == asked["kill"]])
        return None

    def _birth(self, number: int, env: Mapping[str, str], count: int) -> Newborn | None:
        fds = [self._fds.popleft() for _ in range(count)]
        if self._fork and (changed := self._seen.changed()) is not None:
            self.tell(stale=number, file=changed)
        else:
            try:
                pid = os.fork()
            except OSError as error:  # too many processes, or no memory
                self.tell(refused=number, why=str(error))
            else:
                if pid == 0:
                    return self._born(fds, env)
                self._numbers[pid] = number
                self.tell(born=number, pid=pid)
        for fd in fds:
            os.close(fd)
        return None

    def _born(self, fds: list[int], env: Mapping[str, str]) -> Newborn:
        """In the child: leave what is the zygote's, and begin."""
        os.setsid()  # ^C in a terminal goes to the parent alone, which drains
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in (self._control, self._woken, self._wake):
            end.close()
        for fd in self._fds:
            os.close(fd)
        sock, out, err, *kept = fds
        os.dup2(out, _STDOUT)
        os.dup2(err, _STDERR)
        os.close(out)
        os.close(err)
        for fd in (sock, *kept):
            os.set_inheritable(fd, not self._fork)  # by what programs start it is not
        adopt()
        if not self._fork:
            command = [sys.executable, "-m", "dspex.workers.child.main", str(sock)]
            os.execve(sys.executable, command, {**os.environ, **env})
        return Newborn(socket.socket(fileno=sock), env)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if (number := self._numbers.pop(pid, None)) is not None:
                self.tell(ended=number, code=os.waitstatus_to_exitcode(status))
        kill_all(set(children_of(os.getpid())) - set(self._numbers))  # what a child that has ended left behind


def _prepare(pool: PoolConfig, fork: bool) -> str | None:
    """Import what the children need. Why they cannot be forked; None: they can, or shall not be."""
    if not fork:
        return None
    limited(pool)
    log_as_json(pool.app)
    gc.disable()  # what is imported stays: looking for garbage in it takes an eighth of the time
    unfit = import_ahead(pool)
    gc.collect()
    gc.freeze()  # else the first collection in each child would touch, and copy, every page with an object in it
    gc.enable()
    return unfit


def main() -> None:
    """Serve over the socket whose number is the argument; "fork" behind it: children are forked."""
    fd, fork = int(sys.argv[1]), "fork" in sys.argv[2:]
    os.set_inheritable(fd, False)
    control = socket.socket(fileno=fd)
    start = receive(control)
    if not isinstance(start, StartFrame):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    adopt()
    set_title("zygote", start.pool.name)
    unfit = _prepare(start.pool, fork)
    zygote = Zygote(control, fork)
    zygote.tell(ready=True, unfit=unfit)
    if unfit is not None:
        zygote.end()
    born = zygote.run()
    os.environ.update(born.env)
    _new_chances()
    serve(born.sock)


def _new_chances() -> None:
    """Have the children of one zygote draw different random numbers. Python sees to its own generator, and to the system's."""
    random: Any = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()


if __name__ == "__main__":
    main()
