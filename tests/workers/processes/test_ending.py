"""What is left of a pool's processes, and of those that programs started, when any of them is killed: nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from waiting import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux sees to it")

PROGRAM = """
import os, subprocess, sys

async def starts(data):
    "A process of its own in a session of its own, with an environment of its own, and one that forgets its parent."
    started = subprocess.Popen(["sleep", "600"], start_new_session=True, env={})
    script = "import os, time; os.fork() and os._exit(0); os.setsid(); print(os.getpid(), flush=True); time.sleep(600)"
    daemon = subprocess.Popen([sys.executable, "-Sc", script], stdout=subprocess.PIPE)
    return {"pids": [os.getpid(), started.pid, int(daemon.stdout.readline())]}
"""

PARENT = """
import asyncio, json, os, sys
from pool_bench import config, running, work
from dspex.bus.serving.call_spec import CallSpec
from dspex.workers.processes.ending import adopt

async def main():
    adopt()
    settings = config("", profiles={}, programs=("starts:*",), path=(sys.argv[1],), zygote=sys.argv[2] == "fork")
    async with running(settings) as bench:
        while True:
            (record,) = await bench.ask(work(spec=CallSpec("enrich", "starts:starts", ""), inputs={}))
            print(json.dumps({"pids": (record.outputs or {}).get("pids")}), flush=True)
            if not await asyncio.to_thread(sys.stdin.readline):
                return

asyncio.run(main())
"""


class Tree:
    """A pool's parent in a process of its own, with what is below it."""

    def __init__(self, folder: Path, start: str) -> None:
        (folder / "starts.py").write_text(PROGRAM)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(folder), start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.child, *self.started = self.said()
        self.zygote = psutil.Process(self.child).ppid()

    def said(self) -> list[int]:
        """The child that answered, and the processes that its program has started."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith(b'{"pids"'):
                return list(json.loads(line)["pids"])
        raise AssertionError("it ended")

    def again(self) -> list[int]:
        """The same, of one more call."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return self.said()


def runs(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture(params=["fork", pytest.param("exec", marks=pytest.mark.long)])
def tree(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tree]:
    made = Tree(tmp_path, request.param)
    yield made
    made.process.kill()
    made.process.communicate()
    eventually(lambda: not runs(made.zygote))


def test_nothing_is_left_below_a_process_of_a_pool_that_is_killed(tree: Tree) -> None:
    os.kill(tree.child, signal.SIGKILL)
    eventually(lambda: not any(map(runs, tree.started)))
    child, *started = tree.again()
    assert child != tree.child
    os.kill(tree.zygote, signal.SIGKILL)
    eventually(lambda: not any(map(runs, [child, *started])))
    child, *started = tree.again()
    zygote = psutil.Process(child).ppid()
    tree.process.kill()
    eventually(lambda: not any(map(runs, [zygote, child, *started])))
