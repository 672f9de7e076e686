"""Processes that do shares: what comes of them comes in order, whatever becomes of the processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is forked")

SCRIPT = """
import asyncio, os, signal, threading
from dspex.bus.local.crew import Crew, processes

ME = os.getpid()

async def work(n):
    if os.getpid() != ME and {dies}:
        os.kill(os.getpid(), signal.SIGKILL)
    if n in {wrong}:
        raise ValueError(n)
    return n, os.getpid() == ME, b"x" * 3_000_000

async def shares():
    for n in range(8):
        yield n

async def main():
    try:
        async for n, here, data in crew.done(shares()):
            print(n, here, len(data))
    except ValueError as error:
        print("raised", error)

with Crew(work, 3) as crew:
    asyncio.run(main())
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no children")
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("beside a thread", processes(4), processes(4, threads=2))
"""


def said(dies: str = "False", wrong: str = "()") -> list[str]:
    script = SCRIPT.format(dies=dies, wrong=wrong)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


END = ["no children", "beside a thread 1 4"]


def test_what_processes_do_comes_in_order_however_much_it_is() -> None:
    assert said() == [*(f"{n} False 3000000" for n in range(8)), *END]


def test_what_a_process_that_dies_has_not_done_is_done_here() -> None:
    assert said(dies="n == 2") == [*(f"{n} {n == 2} 3000000" for n in range(8)), *END]
    assert said(dies="True") == [*(f"{n} True 3000000" for n in range(8)), *END]


def test_what_was_raised_there_is_raised_here_in_its_turn() -> None:
    assert said(wrong="(2, 3)") == ["0 False 3000000", "1 False 3000000", "raised 2", *END]
