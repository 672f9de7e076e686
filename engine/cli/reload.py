"""`dspex run --reload`: what runs begins anew when its files change.

The process drains, and then becomes a new one in its own place (exec): terminal, signals and process id stay, and no second
process has to watch over it. What was committed is where the new one goes on, so no event is lost.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import warnings
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import typer

from dspex.bus.errors import ConfigError, DspexError
from dspex.bus.settings import environment
from dspex.bus.tasks import Tasks, first
from dspex.engine.cli.terminal.terminal import Terminal
from dspex.engine.cli.topology.targets import named

EVERY: Final = 0.5  # seconds between two looks at the files
RELOAD: Final = 0  # stands where the number of a signal does
_KINDS: Final = (".py", ".yaml", ".yml", ".toml")
_NOT_YOURS: Final = frozenset({"__pycache__", "node_modules", "site-packages"})
_MOST: Final = 5000  # folders: to look at so many every time takes a good part of a core


class Files:
    """The files that a run is made of: Python, YAML and TOML in the project's folder, where refs are looked for, and targets.

    Raises ConfigError (DX100) where there are too many folders to look at.
    """

    def __init__(self, t: Terminal, given: Sequence[str] | None) -> None:
        self._t, self._given = t, list(given or ())
        settings = t.settings()
        self._files = [t.config] if t.config else []
        beside: list[str] = []  # targets may lie elsewhere
        for target in named(t, given):
            if target.endswith((".yaml", ".yml")):
                beside.append(str(Path(target).parent))
            elif (spec := find_spec(re.split("[.:]", target)[0])) is not None:  # of a package's first part: it is not imported
                beside += spec.submodule_search_locations or []
                self._files += [spec.origin] if spec.origin and spec.has_location else []
        self._folders = sorted({os.path.realpath(folder) for folder in (str(settings.root), *settings.search_path, *beside)})
        self._seen = self._look()

    def _look(self) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        folders = 0
        paths = [os.path.realpath(file) for file in self._files]
        for top in self._folders:
            for folder, below, names in os.walk(top):
                inside = "pyvenv.cfg" not in names
                below[:] = [b for b in below if inside and b not in _NOT_YOURS and not b.startswith(".")]
                paths += [os.path.join(folder, name) for name in names if inside and name.endswith(_KINDS)]
                if (folders := folders + 1) > _MOST:
                    why = f"--reload looks at all folders below {', '.join(self._folders)}, and there are over {_MOST:,}"
                    raise ConfigError(why, fix="run it in a folder that holds the project alone, or without --reload")
        for path in paths:
            with suppress(FileNotFoundError):  # it was removed meanwhile
                status = os.stat(path)
                found[path] = status.st_mtime_ns, status.st_size
        return found

    async def changed(self) -> set[str]:
        """Wait until files have changed and nobody writes them any more. Their paths."""
        last = now = self._seen
        while now == self._seen or now != last:
            await asyncio.sleep(EVERY)
            last, now = now, await asyncio.to_thread(self._look)
        paths = {path for path in now.keys() | self._seen.keys() if now.get(path) != self._seen.get(path)}
        self._seen = now
        return paths

    async def good(self) -> None:
        """Wait until files have changed to what can run, and say so. What cannot run is said, and what runs goes on."""
        since: set[str] = set()  # what ran last
        while True:
            since |= await self.changed()
            paths = sorted(since)
            shown = [_shown(path) for path in paths]
            wrong = [said for path in paths if (said := _unreadable(path))] or await self._check()
            self._t.emit({"event": "changed", "files": shown, "ok": not wrong})
            if not wrong:
                self._t.note(f"changed: {', '.join(shown)}; starting again")
                return
            for line in wrong:
                self._t.relay(line)
            self._t.note(f"changed: {', '.join(shown)}; it cannot run, so nothing is started again until it changes once more")

    async def _check(self) -> list[str]:
        """What `dspex check` finds: in a process of its own, since this one has the modules of before."""
        options = ["--json"] if self._t.json else []
        options += ["--config", self._t.config] if self._t.config else []
        env, rest = environment.sealed(os.environ)
        handed = () if rest is None else (rest,)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "dspex", *options, "check", "--", *self._given),
                stdout=PIPE,
                stderr=STDOUT,
                env=env,
                pass_fds=handed,
            )
        finally:
            for descriptor in handed:
                os.close(descriptor)
        said = (await process.communicate())[0].decode(errors="replace").splitlines()
        return (said or [f"dspex check ended with exit code {process.returncode}"]) if process.returncode else []


def _shown(path: str) -> str:
    return os.path.relpath(path)


def _unreadable(path: str) -> str | None:
    """What keeps Python from reading a file: also one that no topology imports, such as a pool's."""
    try:
        with warnings.catch_warnings(action="ignore"):
            if path.endswith(".py"):
                compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as e:  # ValueError: a null byte
        return f"{_shown(path)}: {type(e).__name__}: {e}"
    except FileNotFoundError:
        pass  # it was removed: whoever needs it says so
    return None


@asynccontextmanager
async def watching(t: Terminal, files: Files | None, stopped: asyncio.Future[int]) -> AsyncGenerator[None, None]:
    """`stopped` gets `RELOAD` once the files have changed to what can run."""

    async def watch(files: Files) -> None:
        await files.good()
        if not stopped.done():
            stopped.set_result(RELOAD)

    tasks = Tasks("dspex", lambda name, error: t.note(f"changes of files are not seen any more: {error!r}"))
    if files is not None:
        tasks.start(watch(files), "reload")
    try:
        yield
    finally:
        await tasks.stop()


def again_and_again(t: Terminal, files: Files, start: Callable[[], Coroutine[Any, Any, int]]) -> None:
    """Run what `start` makes, and begin anew in this process's place when it ends with RELOAD.

    Where it fails, say so and wait for the next change. Raises typer.Exit at a signal.
    """
    code = 0
    try:
        ended = t.run(start())
    except DspexError as e:
        t.error(e)
        code, ended = e.exit_code, t.run(_next(t, files))
    if ended != RELOAD:
        raise typer.Exit(code)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


async def _next(t: Terminal, files: Files) -> int:
    from dspex.engine.hosting.engine import stop_on_signals

    stopped = stop_on_signals()
    t.note("waiting for a change of the files; ^C to stop")
    await first(stopped, files.good())
    return stopped.result() if stopped.done() else RELOAD
