"""All scenarios at full length: what `scripts/chaos` runs.

    scripts/chaos [NAME…] [--json]

Prints a report for each scenario and a table at the end; 1 if any of them found a violation. One that cannot run here is
skipped, with the reason. Takes about half an hour on two idle cores, six minutes of it for the real model.
`scripts/test --long` runs one short scenario with processes and a few seeds of the simulation: everything else runs here only.
docs/testing.md lists them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import driven
import run
import simulation
import structlog
import talking
import timed_simulation
from oracle import Report, Violation
from processes import replaying
from processes.calls import agents, batched, optimizing, required, spending, submitting
from processes.clocks import compiler
from processes.disk import may_mount

from dspex.workers.models import weights

ALL = "--banking --events 3080 --timeout 900"


class Scenario(NamedTuple):
    """`shows`: the number in the report that must be over zero, or the scenario has shown nothing."""

    arguments: str
    what: str
    shows: str = ""


SCENARIOS: dict[str, Scenario] = {
    "no faults": Scenario(f"{ALL} --target none", "every message of banking77, as fast as it goes"),
    "engines killed": Scenario(f"{ALL} --target engine --kills 10 --seed 1", "SIGKILL of an engine, ten times"),
    "workers killed": Scenario(
        f"{ALL} --target worker --kills 10 --seed 2", "SIGKILL of a pool's parent or of a child, ten times"
    ),
    "scaled": Scenario(
        "--events 2000 --pace 0.3 --pools 2 --target scale --kills 6 --seed 25",
        "a pool made larger, smaller, restarted or drained, and its parents and workers killed meanwhile",
    ),
    "server killed": Scenario(f"{ALL} --target server --kills 10 --seed 3", "SIGKILL of the NATS server, ten times"),
    "all killed": Scenario(f"{ALL} --target all --kills 10 --seed 4", "each of them ten times in one run"),
    "sealed": Scenario(
        "--events 2000 --sealed --big 1 --target all --kills 6 --seed 24", "payloads sealed, and each of them killed six times"
    ),
    "taken over": Scenario(
        f"{ALL} --target take-over --kills 5 --seed 5",
        "an engine frozen until it was taken over, then thawed: it commits nothing more, and says why",
        "fenced, and said so",
    ),
    "late commits": Scenario(
        "--events 2000 --target freeze-server --kills 5 --seed 6",
        "the server frozen for longer than a client waits for its answer",
        "claims after the first",
    ),
    "drained": Scenario(
        "--events 2000 --foreign --target drain --kills 5 --seed 10", "SIGTERM of engines and pools, one by one"
    ),
    "all frozen": Scenario("--events 2000 --target freeze --kills 3 --seed 7", "engines, pools and server frozen"),
    "wires cut": Scenario("--events 2000 --target wire --kills 10 --seed 8", "connections cut in a message, or held up"),
    "large events": Scenario(
        "--events 60 --big 20 --target parts --kills 10 --seed 9",
        "engines killed between parts of an event",
        "events split over owners",
    ),
    "engines come and go": Scenario(
        "--events 2000 --pace 0.5 --engines 3 --target come-and-go --kills 12 --seed 12",
        "one to four engines: new ones come, others leave for good by SIGTERM or SIGKILL",
    ),
    "slow wire": Scenario(
        "--events 300 --foreign --round-trip 2 --heartbeat 4 --target engine --kills 2 --seed 13 --timeout 900",
        "4 partitions are taken over while each answer of the server takes 2 s longer",
        "claims after the first",
    ),
    "slow wire, many": Scenario(
        "--events 600 --keys 300 --foreign --partitions 64 --round-trip 0.12 --heartbeat 0.5 --target engine --kills 3",
        "64 partitions are taken over while each answer takes 120 ms longer",
        "claims after the first",
    ),
    "clocks stepped": Scenario(
        "--events 2000 --pace 0.3 --target clocks --kills 5 --seed 15",
        "the clocks of engines and of pools are set an hour ahead, an hour back, or right, and engines are killed",
    ),
    "leader killed": Scenario(
        "--events 2000 --pace 1 --target kill-leader --kills 4 --seed 16", "three servers: SIGKILL of the stream's leader"
    ),
    "leader frozen": Scenario(
        "--events 2000 --pace 1 --target freeze-leader --kills 4 --seed 17", "three servers: the leader frozen, then thawed"
    ),
    "leader isolated": Scenario(
        "--events 2000 --pace 1 --target isolate-leader --kills 3 --seed 18",
        "three servers: the leader cut off from the others, and let back in",
    ),
    "source replaced": Scenario(
        "--events 2000 --pace 0.3 --big 0 --target source --kills 3 --seed 19",
        "the source's stream deleted, made again and refilled, or rolled back to an older copy, while engines run",
    ),
    "disk full": Scenario(
        "--events 2000 --pace 0.3 --disk 256 --target fill-disk --kills 4 --seed 20",
        "the server's store on a small tmpfs that is full for some seconds",
    ),
    "real model": Scenario(
        "--banking --model --events 300 --target none --timeout 1800", "the first 300 by the real local model"
    ),
}
SEEDS = 200


def judged(arguments: str, shows: str = "") -> Report:
    """A run with these arguments of run.py; that its faults did not happen is a violation too."""
    options = run.parser().parse_args(arguments.split())
    report = asyncio.run(run.planned(options).go())
    report.numbers["claims after the first"] = report.numbers["claims"] - options.partitions
    wanted = dict.fromkeys(run.TARGETS.get(options.target, (options.target,)), options.kills)
    if options.target not in run.AT_ONCE and report.numbers["faults"] != wanted:
        report.violations.append(Violation("every fault happens", f"{report.numbers['faults']}, not {wanted}"))
    if shows and report.numbers[shows] <= 0:
        report.violations.append(Violation("the scenario shows what it is for", f"{shows}: {report.numbers[shows]}"))
    return report


def _swept(reports: Iterable[Report]) -> Report:
    """Many reports as one."""
    total, numbers = Report(), Counter[str]()
    for report in reports:
        numbers.update({k: v for k, v in report.numbers.items() if k != "seed"})
        seed = report.numbers["seed"]
        total.violations += [v._replace(what=f"seed {seed}: {v.what}") for v in report.violations]
    total.numbers = {"runs": SEEDS, **numbers}
    return total


def _missing(name: str) -> str | None:
    """Why a scenario cannot run here."""
    arguments = SCENARIOS[name].arguments if name in SCENARIOS else ""
    if "--banking" in arguments and not run.BANKING.is_file():
        return f"there is no {run.BANKING}"
    if "--target clocks" in arguments and not compiler():
        return "there is no C compiler for the clocks"
    if "--disk" in arguments and not may_mount():
        return "this user may not mount a tmpfs"
    if "--model" in arguments and not weights.installed(weights.find("smollm2")):
        return "the model is not installed: dspex model install smollm2"
    return None


def scenarios() -> dict[str, Callable[[], Report]]:
    """Each scenario by name."""
    found: dict[str, Callable[[], Report]] = {
        "simulation": lambda: _swept(simulation.Simulation(seed, kills=8).run() for seed in range(SEEDS)),
        "time": lambda: _swept(timed_simulation.TimedSimulation(seed, kills=8).run() for seed in range(SEEDS)),
        "driver": lambda: _swept(map(driven.drive, range(SEEDS))),
        "agents killed": lambda: asyncio.run(agents.judged()),
        "optimizers killed": lambda: asyncio.run(optimizing.judged()),
        "batches": lambda: asyncio.run(batched.judged()),
        "required workers killed": lambda: asyncio.run(required.judged()),
        "sessions": lambda: asyncio.run(talking.talk(50, 4, 25)),
        "submitted": lambda: asyncio.run(submitting.judged()),
        "replays": lambda: asyncio.run(replaying.judged()),
        "limits": lambda: asyncio.run(spending.judged()),
    }
    return found | {name: lambda s=s: judged(s.arguments, s.shows) for name, s in SCENARIOS.items()}


def main() -> int:
    """The command."""
    known = scenarios()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    if unknown := set(o.names) - set(known):
        parser.error(f"no scenario {unknown.pop()!r}; there are: {', '.join(known)}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    lines, bad = list[str](), 0
    for name in o.names or known:
        if why := _missing(name):
            lines.append(f"{name:<20} skipped: {why}")
            continue
        sys.stderr.write(f"{name}\n")
        report = known[name]()
        bad += not report.good
        text = json.dumps({"scenario": name, **report.as_dict()}) if o.json else f"\n== {name}\n{report}"
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
        lines.append(f"{name:<20} {report.numbers['events']:>7} events  {len(report.violations):>3} violations")
    if not o.json:
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
