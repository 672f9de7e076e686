"""What processes are called in lists of processes: `dspex child lightweight/3` says more than `python -m dspex…`."""

from __future__ import annotations

import importlib


def set_title(kind: str, of: str) -> None:
    """Call this process "dspex KIND OF", in `ps` and `top`. Where setproctitle is not installed, as may be in a pool's own
    interpreter, its name stays what it was.
    """
    try:
        module = importlib.import_module("setproctitle")
    except ImportError:
        return
    module.setproctitle(f"dspex {kind} {of}")
