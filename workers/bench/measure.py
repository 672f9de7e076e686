"""Timing two ways of doing the same thing, so that their ratio holds on a machine that is busy with other things too.

Time is the processor's time of this process. By wall-clock time, a longer batch is also interrupted more often by other
processes: with three of them on two cores, ratios came out twice as high as they are.

The sides take turns, a batch each, and the order of the two changes with every round: whatever slows the machine down for a
moment affects both. The median of all batches counts. While a batch runs no garbage is collected; what was there before the
measurement is never looked through, so a big program pays no more than a small one.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat

BATCH = 1e-3  # seconds: much longer than reading the clock takes, much shorter than a time slice of the machine
FEWEST = 5  # rounds, however little time there is


@dataclass(frozen=True)
class Timing:
    """Microseconds that one operation takes: the median, and the 99th percentile."""

    p50: float
    p99: float

    def less(self, other: Timing) -> Timing:
        """Both less the median of `other`; never below zero."""
        return Timing(max(self.p50 - other.p50, 0.0), max(self.p99 - other.p50, 0.0))


def timing(samples: Sequence[float]) -> Timing:
    """Of samples in seconds."""
    found = sorted(samples)
    return Timing(found[len(found) // 2] * 1e6, found[min(len(found) - 1, len(found) * 99 // 100)] * 1e6)


def measure(sides: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Timing]:
    """Time all sides, in turns, for `seconds` together (at least FEWEST rounds)."""
    loops = {name: _loops(run, min(BATCH, seconds / (FEWEST * len(sides)))) for name, run in sides.items()}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    order, end, rounds = list(sides), time.perf_counter() + seconds, 0
    with quiet():
        while rounds < FEWEST or time.perf_counter() < end:
            for name in order:
                samples[name].append(_batch(sides[name], loops[name]))
            order.reverse()
            rounds += 1
    return {name: timing(found) for name, found in samples.items()}


@contextmanager
def quiet() -> Generator[None, None, None]:
    """The garbage collector leaves alone what is alive now until the block ends, or longer where the caller has frozen more."""
    theirs = gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not theirs:  # only all of it can be given back, and looking through a large program each time takes seconds
            gc.unfreeze()


def _loops(run: Callable[[], object], batch: float) -> int:
    """How often to run it in a batch of `batch` seconds. Runs it a few times first: lazy parts are made then."""
    run()
    loops = 1
    while (took := _batch(run, loops) * loops) < batch / 2 and loops < 1_000_000:
        loops *= 2
    return max(1, round(loops * batch / max(took, 1e-9))) if took < batch else loops


def _batch(run: Callable[[], object], loops: int) -> float:
    """Processor seconds for one run, on average over `loops`."""
    gc.disable()
    try:
        began = time.process_time()
        for _ in repeat(None, loops):
            run()
        return (time.process_time() - began) / loops
    finally:
        gc.enable()
