"""What it takes to choose the models of a call, and to learn from its record: microseconds, of each call by itself.

    python benchmarks/calling/routing.py [--calls 200000] [--json]

* one: a profile alone. list: three profiles that are well. cheapest: the last of the three costs least, and is asked first.
* worse: the first of three is much slower, and goes behind.
* open: the breaker of the first of three is open. refused: all are, and the call ends in CircuitOpen.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from dspex.bus.errors import CircuitOpen
from dspex.bus.records import ANSWERED, CallRecord, CallRequest, Tried
from dspex.bus.serving.call_spec import CallSpec
from dspex.workers.config import PoolConfig, Profile
from dspex.workers.pool.routing.routing import Routing

NAMES = ("first", "second", "third")
CASES = {"one": NAMES[:1], "list": NAMES, "cheapest": NAMES, "worse": NAMES, "open": NAMES, "refused": NAMES}
DOWN = {"type": "LMUnavailable"}


@dataclass(eq=False)
class Call:
    """As much of an execution as routing looks at."""

    work: CallRequest
    lms: Any = None
    hedge: Any = None
    routing: list[Tried] = field(default_factory=list[Tried])
    ran: float = 0.01
    ended_worker: bool = False
    batch: bool = False


def record(lm: str, error: Any = None, ms: float = 10.0) -> CallRecord:
    """The record of a call that `lm` answered."""
    tried = [Tried(lm, ANSWERED if error is None else error["type"], ms)]
    usage = {"input_tokens": 400, "output_tokens": 60}
    return CallRecord("c", 1, 1, "t", "n", error=error, lm=lm, elapsed=ms / 1000, routing=tried, usage=usage)


def measure(case: str, calls: int) -> dict[str, float]:
    """Percentiles of the microseconds of choosing and learning, for one call."""
    prices = [{"input": float(n), "output": 4.0 * n} for n in (3, 2, 1)]
    profiles = {name: Profile(name, "openai/x", breaker={"open": 1e9}, price=price) for name, price in zip(NAMES, prices)}
    choose = case if case == "cheapest" else "listed"
    routing: Any = Routing(PoolConfig("app", "pool", lm="first", profiles=profiles), time.monotonic)
    work = CallRequest(
        "c", 1, 1, "t", "n", CallSpec("predict", "a -> b", "a -> b", lm=CASES[case], choose=choose), {"a": 1}, "r"
    )
    for _ in range(200):
        for name in NAMES:
            routing.after(Call(work), record(name, ms=100.0 if (case, name) == ("worse", "first") else 10.0))
    for name in {"open": NAMES[:1], "refused": NAMES}.get(case, ()):
        for _ in range(10):
            routing.after(Call(work), record(name, DOWN))
    took, made = list[int](), [Call(work) for _ in range(calls)]
    gc.disable()
    for one in made:
        answer, began = record("second" if case in ("worse", "open") else "first"), time.perf_counter_ns()
        try:
            routing.before(one)
        except CircuitOpen:
            pass
        else:
            routing.after(one, answer)
        took.append(time.perf_counter_ns() - began)
    gc.enable()
    cuts = statistics.quantiles(took, n=100)
    return {"p50": cuts[49] / 1000, "p99": cuts[98] / 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = {case: measure(case, args.calls) for case in CASES}
    if args.json:
        print(json.dumps(found))
        return
    print(f"{'µs a call':<12}{'p50':>8}{'p99':>8}")
    for case, row in found.items():
        print(f"{case:<12}{row['p50']:>8.2f}{row['p99']:>8.2f}")


if __name__ == "__main__":
    main()
