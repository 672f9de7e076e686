"""An engine in a process of its own, for tests that kill it.

    engine_process.py URL APP SOURCE SINK PARTITIONS [calls] [HEARTBEAT]

With `calls` each event is a call. The heartbeat is the longest that there is, unless another one is given. It prints a line of
JSON when it runs, and drains on SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

STARTED = time.perf_counter()


async def main(url: str, app: str, source: str, sink: str, partitions: int, calls: bool, heartbeat: str) -> None:
    from dspex.bus.settings.imports import lean, lean_nats

    lean("structlog", without=["rich"])  # as `dspex run` does
    lean_nats()
    from dspex.bus.settings.model import Settings
    from dspex.engine.cli.terminal import log
    from dspex.engine.hosting.engine import Engine, stop_on_signals, until_stopped
    from dspex.operators.topology import Topology

    log.configure()  # to stderr: stdout is for the test
    topology = Topology("processed")
    events = topology.source(source, partitions=partitions)
    if calls:
        events.predict("n: int -> label: str", name="label", deadline="10m").sink(sink)
    else:
        events.map(lambda d: {**d, "seen": True}, name="see").sink(sink)
    settings = Settings.load(server__url=url, app=app, engine__heartbeat=heartbeat)
    stopped = stop_on_signals()
    async with Engine(topology, settings=settings, pools="none") as engine:
        heavy = sorted({"dspy", "litellm", "torch", "numpy", "pyarrow"} & {m.split(".")[0] for m in sys.modules})
        sys.stdout.write(json.dumps({"seconds": time.perf_counter() - STARTED, "heavy": heavy, "id": engine.id}) + "\n")
        sys.stdout.flush()
        await until_stopped(engine, stopped)


if __name__ == "__main__":
    url, app, source, sink, partitions, *more = sys.argv[1:]
    asyncio.run(main(url, app, source, sink, int(partitions), "calls" in more, next((m for m in more if m != "calls"), "30s")))
