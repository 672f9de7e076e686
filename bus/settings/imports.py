"""Importing a library without what it would take along: for one command, or a process of a pool, that costs more than the rest.

structlog takes rich to draw tracebacks that dspex writes otherwise, and nats-py takes aiohttp for servers behind websockets.
Both do without where it is not installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import cast


def lean_nats() -> None:
    """Import the bus on NATS for a command of ours: no server of dspex's is behind websockets."""
    lean("dspex.bus.nats", without=["aiohttp"])


def lean(library: str, without: Sequence[str]) -> None:
    """Import a library as if those packages were not installed. Who imports them later, or has them already, gets them."""
    hidden = [name for name in without if name not in sys.modules]
    modules = cast("dict[str, object]", sys.modules)
    modules.update(dict.fromkeys(hidden))  # None: an import of it raises ImportError
    try:
        import_module(library)
    finally:
        for name in hidden:
            del modules[name]
