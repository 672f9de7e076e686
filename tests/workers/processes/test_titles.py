"""What processes are called in lists of processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TITLED = """
import os
from dspex.bus.settings import environment
from dspex.workers.processes.titles import set_title

environment.seal()
os.environ |= {f"GROWS_{n}": "x" * 100 for n in range(200)}
set_title("worker", "lightweight writers")
with open("/proc/self/cmdline") as file:
    print(file.read().rstrip("\\0"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux lists them")
def test_a_parent_says_what_it_is_whatever_was_added_to_its_environment() -> None:
    path = os.pathsep.join(sys.path)
    found = subprocess.run(
        [sys.executable, "-c", TITLED], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert found.stdout.strip() == "dspex worker lightweight writers"
