"""The processes of a system: started, watched and ended; and the CPU that each has used."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from calling.load import Load
from calling.where import Where

READY = 60.0  # seconds until a worker must answer
END = 5.0  # seconds that it has to end
FOLDER = Path(__file__).parents[1]  # where these modules are imported from


@dataclass(frozen=True)
class System:
    """What is measured: how it is asked, and the processes that answer, by what they are."""

    load: Load
    workers: Mapping[str, int]

    def processes(self, where: Where) -> dict[str, list[psutil.Process]]:
        """All that take part, by what they are, in the order of a call. The children of `x` are `x: children`."""
        found = {"client": [psutil.Process()], "server": [psutil.Process(where.server)]}
        for name, pid in self.workers.items():
            found[name] = [parent := psutil.Process(pid)]
            if children := parent.children(recursive=True):
                found[f"{name}: children"] = children
        return found


def used(processes: Mapping[str, list[psutil.Process]]) -> dict[str, list[float]]:
    """Seconds of the processor that each process has used, without those of its children."""
    times = {name: [one.cpu_times() for one in several] for name, several in processes.items()}
    return {name: [one.user + one.system for one in several] for name, several in times.items()}


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module with this Python."""
    return [sys.executable, "-m", name, *arguments]


@asynccontextmanager
async def running(
    command: list[str], variables: Mapping[str, str], *, ready: str = "", folder: str | None = None
) -> AsyncGenerator[int]:
    """A process from its start to its end: its id, when it has said `ready`. What it says is shown where something fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**variables, "PYTHONPATH": str(FOLDER)},
        cwd=folder,
    )
    said, heard = deque[str](maxlen=10), asyncio.Event()
    listening = asyncio.create_task(_listen(process, ready, said, heard))
    try:
        async with asyncio.timeout(READY):
            await heard.wait()
        if process.returncode is not None:
            raise SystemExit(f"bench: {' '.join(command)} ended by itself")
        yield process.pid
    except BaseException:
        print(f"bench: what {' '.join(command)} said last:\n" + "".join(said), file=sys.stderr)
        raise
    finally:
        await _end(process)
        listening.cancel()


async def _listen(process: asyncio.subprocess.Process, ready: str, said: deque[str], heard: asyncio.Event) -> None:
    """Take in what it says; nobody reads most of it. `heard`: it said that it is ready, or has ended."""
    assert process.stdout is not None
    if not ready:
        heard.set()
    async for line in process.stdout:
        said.append(line.decode(errors="replace"))
        if ready in said[-1]:
            heard.set()
    await process.wait()
    heard.set()


async def _end(process: asyncio.subprocess.Process) -> None:
    """End it and what it started, as its user would; by force what does not end."""
    if process.returncode is not None:
        return
    all_of_it = [parent := psutil.Process(process.pid), *parent.children(recursive=True)]
    process.terminate()
    try:
        async with asyncio.timeout(END):
            await process.wait()  # it waits for children too that hold its output
    except TimeoutError:
        pass
    for one in all_of_it:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            pass
    await process.wait()
