"""Run a script as on a machine whose clock is wrong: `wrong_clock.py SECONDS SCRIPT ARGUMENT…`."""

from __future__ import annotations

import runpy
import sys
import time


def main() -> None:
    by, right = float(sys.argv[1]), time.time
    time.time = lambda: right() + by
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
