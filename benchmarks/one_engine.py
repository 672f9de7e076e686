"""One engine in a process of its own, for the other benchmarks. It says what it does, a line of JSON each:

    {"what": "commit", "at": monotonic clock in seconds, "cpu": seconds of this process so far, "events": 999}

A commit is one of the last stage, which stores the results.

`began`: the modules are there, and the engine starts. `owns`: it claimed a partition; `partitions` is how many it owns.
`goes on`: it stood still, by SIGSTOP, and runs again. It ends at SIGTERM.

    python benchmarks/one_engine.py --url nats://… --app bench --stream S --subject s [--partitions 4] [--job hops --number 1]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial

import structlog
from arguments import positive
from jobs.topologies import JOBS, topology
from running import TOPOLOGY

from dspex.bus import telemetry
from dspex.bus.settings.model import Settings
from dspex.engine.hosting.engine import Engine, stop_on_signals, until_stopped
from dspex.engine.telemetry.exporting import exporting


def say(what: str, **facts: object) -> None:
    """Print a line: what happened, and when."""
    print(json.dumps({"what": what, "at": time.monotonic(), "cpu": time.process_time(), **facts}), flush=True)


class Listener:
    """Says what the engine says of itself. `last`: the stage that stores the results."""

    def __init__(self, last: str) -> None:
        self.last, self.owned = last, set[object]()

    def __call__(self, name: str, facts: Mapping[str, object]) -> None:
        if (
            name == "commit" and facts["messages"] and facts["stage"] == self.last
        ):  # else a position moved over what is another partition's
            say("commit", events=facts["messages"])  # an event gives one message
        elif name in ("claimed", "released", "fenced"):
            change = self.owned.add if name == "claimed" else self.owned.discard
            change((facts["stage"], facts["partition"]))
            say("owns", partitions=len(self.owned))


async def main(args: argparse.Namespace) -> None:
    """Run the engine until a signal ends it."""
    made = topology(TOPOLOGY, args.job, args.number, args.subject, args.stream, f"{args.app}.out", args.partitions)
    stopped = stop_on_signals()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCONT, partial(say, "goes on"))
    listener = Listener(f"s{1 + JOBS[args.job].behind(args.number)}")
    telemetry.subscribe(listener, ("commit", "claimed", "released", "fenced"))
    say("began")
    settings = Settings.load(server__url=args.url, app=args.app, engine__encrypt_key_env="SEAL" if args.sealed else None)
    with exporting(args.app, "engine", "bench", None):  # where the environment asks for it
        async with Engine(made, settings=settings, pools="none") as engine:
            await until_stopped(engine, stopped)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--url", "--app", "--stream", "--subject"):
        parser.add_argument(name, required=True)
    parser.add_argument("--partitions", type=positive, default=1)
    parser.add_argument("--job", choices=JOBS, default="hops", help="of jobs/topologies.py")
    parser.add_argument("--number", type=int, default=0, help="how many of it: hops, maps, stages")
    parser.add_argument("--sealed", action="store_true", help="with the key in the variable SEAL")
    errors = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=errors, logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(parser.parse_args()))
