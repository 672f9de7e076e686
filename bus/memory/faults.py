"""What goes wrong on the in-memory bus on purpose, as a seed decides."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from dspex.bus.settings.not_built import lacks


@lacks("Faults")
@dataclass(frozen=True)
class Faults:
    """What goes wrong on purpose: rates from 0 to 1 for each operation, and the longest delay in seconds.

    Attributes:
        duplicate: work is delivered once more, though it may be settled: as if its ack were lost.
        disconnect: a call raises Unreachable and does nothing.
        delay: every call, and every delivery to a reader, comes up to this much later.
        unsettled: a write raises Unsettled, and has landed, lands within `LATE` seconds, or never does.
    """

    duplicate: float = 0.0
    disconnect: float = 0.0
    delay: float = 0.0
    unsettled: float = 0.0


class Luck:
    """Decides by the seed which fault happens when. Draws nothing for a fault that is off."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.random = Random(seed)
        self.faults = faults

    def hits(self, rate: float) -> bool:
        return rate > 0 and self.random.random() < rate

    def pause(self) -> float:
        """Seconds until the next thing arrives."""
        return self.random.uniform(0, self.faults.delay) if self.faults.delay else 0.0
