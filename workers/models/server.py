"""llama.cpp as a process of its own: `python -m dspex.workers.models.server PATH SLOTS THREADS`.

One server for a pool, not one in each child: the weights are in memory once, and a crash in native code takes no program
with it. It says where it listens on stdout, and ends when stdin does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

import xllamacpp

from dspex.bus.local.processes import die_with

CONTEXT = 4096  # tokens of prompt and answer together, in each slot


def _wait_for_end() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    """Load the weights, say where the server listens, and serve until the parent ends."""
    path, slots, threads, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    die_with(parent)
    threading.Thread(target=_wait_for_end, daemon=True).start()
    runtime: Any = xllamacpp  # a native module without type information
    params = runtime.CommonParams()
    params.model.path = path
    params.n_parallel = slots
    params.n_ctx = CONTEXT * slots
    params.cpuparams.n_threads = threads
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # sleep while there is nothing to do, do not spin
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.verbosity = 1  # errors only
    server = runtime.Server(params)  # returns when the model is loaded and the port is open
    print(json.dumps({"url": f"{server.listening_address}/v1"}), flush=True)  # noqa: T201  the parent reads it
    threading.Event().wait()


if __name__ == "__main__":
    main()
