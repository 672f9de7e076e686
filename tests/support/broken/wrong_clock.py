"""Machines whose clock is wrong, or is set while processes run there."""

from __future__ import annotations

import os
from pathlib import Path

CLOCK = """
import signal, time
right, ahead = time.time, [{ahead}]
time.time = lambda: right() + ahead[0]
signal.signal(signal.SIGUSR1, lambda number, frame: ahead.__setitem__(0, ahead[0] + {step}))
"""


def machine(folder: Path, ahead: float, *, step: float = 0.0) -> dict[str, str]:
    """The environment of Python processes on a machine whose clock is `ahead` seconds ahead, those that they start included.

    Args:
        folder: for a file of its own.
        step: seconds by which the clock of a process is set when it gets SIGUSR1.
    """
    (folder / "sitecustomize.py").write_text(CLOCK.format(ahead=ahead, step=step))
    return {**os.environ, "PYTHONPATH": str(folder)}
