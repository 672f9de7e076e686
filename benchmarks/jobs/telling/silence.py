"""What telemetry costs where nobody listens: how often the engine says something, or looks whether anybody listens, for a run;
and what each of the two takes. Two builds beside each other, of which one never looks, would differ by their noise.
"""

from __future__ import annotations

import sys
import timeit
from pathlib import Path
from types import ModuleType
from typing import Any

from dspex.bus import telemetry
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

ROOT = Path(telemetry.__file__).parents[1]
TIMES = 200_000
NAME = "telemetry.listeners"  # how code looks whether anybody listens


class Counted(ModuleType):
    """The module with looks at its listeners counted, of which there are none."""

    looks = 0

    @property
    def listeners(self) -> tuple[Any, ...]:
        """None."""
        type(self).looks += 1
        return ()


def per_run(runs: int = 200) -> dict[str, float]:
    """How often one run of an event and a call makes the engine say something, and look.

    Each event has a commit of its own here: where many come at once they share one, and less is said.
    """
    topology = Topology("told")
    topology.source("in").predict("text -> reply", name="ask").sink("out")
    with Driver(topology) as driver:
        driver.answer("ask", {"reply": "yes"})
        driver.publish("in", {"text": "warm"})
        said, before, looked = 0, telemetry.emit, Counted.looks

        def emit(name: str, /, **facts: object) -> None:
            nonlocal said
            said += 1

        module, kind = sys.modules[telemetry.__name__], telemetry.__class__
        module.__class__ = Counted
        telemetry.emit = emit
        try:
            for number in range(runs):
                driver.publish("in", {"text": str(number)})
        finally:
            telemetry.emit, module.__class__ = before, kind
    return {"said": said / runs, "looks": (Counted.looks - looked) / runs}


def looks_of_a_pool() -> int:
    """How often a pool looks for a call, at most: at every place of its code where it can."""
    return sum(path.read_text().count(NAME) for path in (ROOT / "workers").rglob("*.py"))


def takes() -> dict[str, float]:
    """Nanoseconds of saying something with nobody there, with as many facts as the longest has, and of a look."""
    names = ("topology", "stage", "partition", "arrivals", "messages", "bytes", "seconds", "sequence", "place")
    facts: dict[str, Any] = dict.fromkeys(names, 1)
    said = min(timeit.repeat(lambda: telemetry.emit("commit", **facts), number=TIMES, repeat=5))
    look = min(timeit.repeat(NAME, globals={"telemetry": telemetry}, number=TIMES, repeat=5))
    return {"said": 1e9 * said / TIMES, "look": 1e9 * look / TIMES}


def cost() -> dict[str, float]:
    """Microseconds of a run, or a call: of the engine, and at most of a pool; and what they are made of."""
    often, nanos = per_run(), takes()
    engine = (often["said"] * nanos["said"] + often["looks"] * nanos["look"]) / 1000
    return {**often, "emit, ns": nanos["said"], "look, ns": nanos["look"], "engine": engine} | {
        "pool": looks_of_a_pool() * nanos["look"] / 1000
    }
