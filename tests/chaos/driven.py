"""The chaos topology on the testing driver, with faults on the bus and crashes at random moments.

    python tests/chaos/driven.py --seeds 200

The door that users have: `dspex.testing.Driver(topology, seed=…, faults=…)`. One engine, and a model that never fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import replace
from random import Random

import structlog
import workload
from oracle import Report, judge
from simulation import ROUGH

from dspex.bus import subjects
from dspex.bus.message import Message
from dspex.engine.testing.driver import APP, Driver
from dspex.engine.testing.places import START

CALM = {"plain", "ask", "many", "big", "poison"}  # kinds that need no model that fails


def drive(seed: int, count: int = 60) -> Report:
    """One run, and the oracle's report on it."""
    random = Random(seed)
    made = workload.events(count, seed, keys=5, big=random.randrange(3), start=START)
    events = [e for e in made if e.data and e.data["kind"] in CALM]
    with Driver(workload.build(1 + 3 * (seed % 2)), seed=seed, faults=replace(ROUGH, crash=0.002, freeze=0.0005)) as d:
        d.answer("classify", lambda inputs: workload.model(inputs, "classify"), after=random.choice(["0s", "300ms", "2s"]))
        d.answer("label", lambda inputs: workload.model(inputs, "label"), after="1s")
        crashes, given = 0, list[workload.Given]()
        for event in events:
            run = d.publish(workload.SOURCE, event.data, id=event.id, key=event.key)
            given.append(replace(event, id=run))
            if random.random() < 0.3:
                d.advance(random.uniform(0, 0.5))
            if random.random() < 0.1:
                crashes += 1
                d.crash(random.choice(["engine", "workers", "all"]))
        d.advance("120s")
        d.dead_letters()
        report = judge(APP, given, stored(d))
    report.numbers |= {"seed": seed, "crashes": crashes}
    return report


def stored(d: Driver) -> list[Message]:
    """The whole application stream, logs and all, which the driver shows to nobody else."""
    return list(d._place.server.streams[subjects.stream(APP)].messages.values())


def main() -> int:
    """The command: prints what each bad seed shows, and the sums; 1 if there is a bad one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    o = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    sums, bad, began = Counter[str](), 0, time.monotonic()
    for seed in range(o.first, o.first + o.seeds):
        report = drive(seed)
        sums.update({k: v for k, v in report.numbers.items() if k != "seed"})
        if not report.good:
            bad += 1
            sys.stdout.write(f"{report}\n\n")
    sums["wall seconds"] = round(time.monotonic() - began)
    sums["runs"], sums["bad runs"] = o.seeds, bad
    sys.stdout.write("".join(f"{name:<28} {value}\n" for name, value in sums.items()))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
