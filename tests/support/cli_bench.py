"""Projects in a folder, and `python -m dspex` in them: what the tests of the CLI stand on."""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import io
import json
import logging
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from standin import StandIn
from waiting import eventually

from dspex import __main__ as cli

HERE = Path(__file__).parent
# Before a command: it runs as one of a user who is not root does, who may not look into every process.
NOT_ROOT = ["setpriv", "--bounding-set=-sys_ptrace,-perfmon,-sys_admin"] if os.geteuid() == 0 else []
needs_proc = pytest.mark.skipif(
    sys.platform != "linux" or (bool(NOT_ROOT) and not shutil.which("setpriv")),
    reason="Linux alone has /proc, and root may look everywhere unless setpriv gives that up",
)
_MOVES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ERASES = re.compile(r"(?:\r?\x1b\[[12]K(?:\x1b\[1A)?)+")  # what was drawn goes, line by line
CLASSIFY = "text -> intent: Literal['card_arrival','lost_card','exchange_rate','other'], urgency: int"

NATIVE = """
dspex: 1
topology: native
sources: {{ {u}.in: {{}} }}
nodes:
  check:
    from: {u}.in
    validate: {{ type: object, required: [text], properties: {{ text: {{ type: string, minLength: 3 }} }} }}
  count: {{ from: check, set: {{ size: "len(text)" }} }}
sinks: {{ {u}.out: {{ from: count }} }}
"""
TRIAGE = """
dspex: 1
topology: triage
sources: {{ {u}.in: {{}} }}
nodes:
  classify: {{ from: {u}.in, predict: "{signature}", retry: {{ attempts: 1 }} }}
sinks: {{ {u}.out: {{ from: classify }} }}
"""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def objects(self) -> list[dict[str, Any]]:
        """The lines of its output, each an object of version 1."""
        return objects(self.out)

    def error(self) -> dict[str, Any]:
        """The error that it told with --json."""
        found = [o["error"] for o in objects(self.err) if "error" in o]
        assert len(found) == 1, self.err
        assert list(found[0])[:6] == ["code", "message", "fix", "node", "run", "retryable"]
        return found[0]


def objects(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines() if '"v":1' in line]
    assert all(one.pop("v") == 1 for one in found)
    return found


def in_this_process(*args: str, stdin: str = "") -> Done:
    """Run a command through the door of `python -m dspex`; logging is as it was at the end."""
    out, err = io.StringIO(), io.StringIO()
    with kept_logging(), fed(stdin), redirect_stdout(out), redirect_stderr(err):
        code = cli.main(args)
    return Done(code, out.getvalue(), err.getvalue())


@contextmanager
def kept_logging() -> Iterator[None]:
    """Handlers and levels at the end are those of the beginning."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()


@contextmanager
def fed(text: str) -> Iterator[None]:
    """This process reads `text` from its standard input, whether by `sys.stdin` or by the descriptor."""
    kept = os.dup(0)
    with tempfile.TemporaryFile("w+") as file, pytest.MonkeyPatch.context() as patch:
        file.write(text)
        file.seek(0)
        os.dup2(file.fileno(), 0)
        patch.setattr(sys, "stdin", file)
        try:
            yield
        finally:
            os.dup2(kept, 0)
            os.close(kept)


class Running:
    """A `dspex` command that runs. Its output is read as it comes."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str]) -> None:
        self.log = tempfile.TemporaryFile("w+", dir=folder)  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.lines.append(line.rstrip("\n"))
                self._more.notify_all()
        with self._more:
            self._more.notify_all()

    def until(self, text: str, timeout: float = 60.0) -> str:
        """The first line with `text` in it."""
        with self._more:
            self._more.wait_for(lambda: any(text in line for line in self.lines) or not self._reader.is_alive(), timeout)
        found = [line for line in self.lines if text in line]
        assert found, f"{text!r} did not come: {self.lines} {self.errors()}"
        return found[0]

    def errors(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def end(self, how: int = signal.SIGTERM, timeout: float = 60.0) -> int:
        """Its exit code, after a signal."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


class Project:
    """A folder with settings, and commands in it."""

    def __init__(self, folder: Path, unique: str, settings: str = "", **env: str) -> None:
        self.folder, self.u = folder, unique
        self.input, self.output = f"{unique}.in", f"{unique}.out"
        (folder / "dspex.toml").write_text(f'app = "{unique}"\n{settings}')
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NATS_", "DSPEX_"))}
        self.env = {**inherited, **env}

    def write(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return name

    def dspex(self, *args: str, stdin: str = "", timeout: float = 60.0, **env: str) -> Done:
        found = subprocess.run(
            self._command(args),
            cwd=self.folder, env={**self.env, **env}, input=stdin, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        return Done(found.returncode, found.stdout, found.stderr)

    def here(self, *args: str, stdin: str = "", **env: str) -> Done:
        """The same command in this process: a subprocess costs a second of a core.

        What it imports of the project is forgotten: another one may have a module of the same name.
        """
        with pytest.MonkeyPatch.context() as patch, self._forgotten():
            patch.chdir(self.folder)
            for name in [n for n in os.environ if n.startswith(("NATS_", "DSPEX_"))]:
                patch.delenv(name)
            for name, value in {**self.env, **env}.items():
                patch.setenv(name, value)
            return in_this_process(*args, stdin=stdin)

    @contextmanager
    def _forgotten(self) -> Iterator[None]:
        path = [*sys.path]
        try:
            yield
        finally:
            sys.path[:] = path
            importlib.invalidate_caches()
            for name, module in [*sys.modules.items()]:
                if (getattr(module, "__file__", None) or "").startswith(f"{self.folder}{os.sep}"):
                    del sys.modules[name]

    @contextmanager
    def start(self, *args: str, under: Sequence[str] = (), **env: str) -> Iterator[Running]:
        running = Running([*under, *self._command(args)], self.folder, {**self.env, **env})
        try:
            yield running
        finally:
            running.close()

    def publish(self, *args: str, stdin: str = "") -> Done:
        """Publish to the source, and wait for the runs."""
        return self.here("--json", "publish", self.input, *args, "--wait", "60s", stdin=stdin)

    @staticmethod
    def _command(args: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "dspex", *args]


# A command whose terminal is its own, so that ^C, which somebody types there, comes to it.
_OWN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "dspex", *sys.argv[1:]])
"""


class Seen:
    """A command whose output is a terminal of 160 columns. `typed`: its input, too."""

    def __init__(self, project: Project, *args: str, typed: bool = False) -> None:
        self._master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 160, 0, 0))
        self.raw = ""
        self.process = subprocess.Popen(
            [sys.executable, *(["-c", _OWN_TERMINAL] if typed else ["-m", "dspex"]), *args],
            cwd=project.folder,
            # where tests run in several processes, COLUMNS is set, which counts for more than the terminal's own
            env={**{k: v for k, v in project.env.items() if k not in ("COLUMNS", "LINES")}, "TERM": "xterm"},
            stdin=terminal if typed else subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)

    def type(self, text: str) -> None:
        """Type it on the keyboard, once the command waits for keys.

        Python's prompt loses a ^C that comes between what it prints and its wait for keys, until the next key comes.
        """
        eventually(self._sleeps)
        os.write(self._master, text.encode())

    def _sleeps(self) -> bool:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"

    def modes(self) -> list[Any]:
        """How the terminal is set."""
        return termios.tcgetattr(self._master)

    def wait(self) -> int:
        """Its exit code, once it has ended by itself."""
        while self.more():
            pass
        return self.process.wait(60)

    def until(self, text: str, timeout: float = 60.0) -> list[str]:
        """The lines that were drawn last, with `text` among them."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            screen, wanted = self.lines(_ERASES.split(self.raw)[-1]), " ".join(text.split())
            whole = screen[: None if self._rests() else -1]  # what was read may end in the middle of a line
            if any(wanted in " ".join(line.split()) for line in whole):
                return screen
            if not self.more():
                break
        raise AssertionError(f"{text!r} did not come: {self.lines()}")

    def _rests(self) -> bool:
        """Whether nothing more comes now."""
        return not select.select([self._master], [], [], 0.1)[0]

    def more(self) -> bool:
        """Read more; False at the end."""
        if not select.select([self._master], [], [], 1.0)[0]:
            return self.process.poll() is None
        try:
            self.raw += os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # how a terminal ends
            return False
        return True

    def lines(self, raw: str | None = None) -> list[str]:
        """All that was printed and drawn, as lines of text."""
        return [line.rstrip() for line in _MOVES.sub("", self.raw if raw is None else raw).replace("\r", "\n").split("\n")]

    def end(self, how: int = signal.SIGINT) -> int:
        self.process.send_signal(how)
        return self.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@contextmanager
def stand_in(server: StandIn | None = None) -> Iterator[str]:
    """The URL of a stand-in for a model's server, in a thread of its own."""
    loop, server = asyncio.new_event_loop(), server or StandIn()
    thread = threading.Thread(target=loop.run_forever, name="stand-in")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(60)
        try:
            yield server.url
        finally:
            asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory, nats_url: str) -> Iterator[Project]:
    """A project whose native topology runs."""
    project = Project(
        tmp_path_factory.mktemp("native"), f"n{os.urandom(5).hex()}", 'topologies = ["native.yaml"]', NATS_URL=nats_url
    )
    project.write("native.yaml", NATIVE.format(u=project.u))
    with project.start("run", "--pools", "none") as run:
        run.until("ready")
        yield project
        assert run.end() == 0, run.errors()


RUNS = (
    ["runs", "ls"],
    ["runs", "ls", "--failed"],
    ["runs", "show", "@last"],
    ["runs", "explain", "@last", "classify#0"],
    ["runs", "export", "@last-1", "-o", "one.jsonl"],
    ["replay", "@last"],
    ["replay", "--topology", "triage"],
    ["diff", "@last-1", "@last"],
)


def reads_runs(run: Callable[..., Done], submit: Callable[[], None]) -> None:
    """An operator sees and replays runs, which are read from the stream of the commits; others are told that they may not."""
    assert run("operator", "runs", "wait", "@last").code == 1  # it has a dead letter
    for verb in RUNS:
        done = run("operator", "--json", *verb)
        assert (done.code, "Traceback" in done.err) == (1 if verb[0] == "diff" else 0, False), (verb, done.out, done.err)
    for role in ("publisher", "worker", "caller", "reader", "approver"):
        for verb in (["runs", "ls"], ["replay", "@last"], ["diff", "@last-1", "@last"]):
            done = run(role, "--json", *verb)
            assert (done.error()["code"], done.out, "Traceback" in done.err) == ("DX403", "", False), (role, verb, done.err)
    submit()
    for verb in (["replay", "@last"], ["replay", "--topology", "_submit"]):  # which is in nobody's code
        assert run("operator", *verb).code == 0
